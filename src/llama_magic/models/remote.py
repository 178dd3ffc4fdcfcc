"""Read only the header of a GGUF file on the Hub, over HTTP range requests.

It uses huggingface_hub's own session, token and endpoint, so that proxies, certificates and
``HF_ENDPOINT`` hold here too. A token goes to the Hub and to nobody that it redirects to.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from llama_magic.errors import DownloadError, InvalidModelError, LlamaMagicError, ModelNotFoundError
from llama_magic.models.gguf import join_parts, part_names, read_header, read_metadata
from llama_magic.models.hub_cache import find_cached
from llama_magic.models.metadata import ModelMetadata
from llama_magic.models.references import HubReference, choose_file
from llama_magic.progress import Progress, Report
from llama_magic.units import format_bytes

__all__ = ["inspect_hub", "read_remote"]

#: Bytes of the requests, one after the other; then the last again. 7.5 MiB hold a vocabulary of 260,000 tokens.
_PIECES = (512 << 10, 1 << 20, 2 << 20, 2 << 20)
#: No header is longer; what claims to be is refused before it is fetched.
_MOST = 64 << 20
#: Seconds before a request is made again; after the last one it has failed.
_PAUSES = (0.5, 1.0, 2.0)
#: The longest that a server may ask to wait (Retry-After).
_LONGEST_PAUSE = 10.0
_REDIRECTS = (301, 302, 303, 307, 308)
_AGAIN = (408, 429, 500, 502, 503, 504)
_MOST_REDIRECTS = 5
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def inspect_hub(reference: HubReference, progress: Report | None = None) -> ModelMetadata:
    """Return the metadata of a model on the Hub: from the cache where it is there, else from its header alone.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, DownloadError
    """
    cached = find_cached(reference)
    if cached is not None:
        return read_metadata(cached)
    file = reference.file
    if file is None:
        try:
            file = choose_file(_list(reference), reference.quant, reference.repo)
        except DownloadError:
            settled = find_cached(reference, settle=True)
            if settled is None:
                raise
            return read_metadata(settled)
    return read_remote(reference.repo, file, reference.revision, progress)


def _list(reference: HubReference) -> list[str]:
    from huggingface_hub import HfApi

    with _explained(reference.repo, None):
        return list(HfApi().list_repo_files(reference.repo, revision=reference.revision))


def read_remote(repo: str, file: str, revision: str | None = None, progress: Report | None = None) -> ModelMetadata:
    """Return what a file of a repository says of itself; of a split model, with the tensors of all its parts.

    Raises
    ------
    ModelNotFoundError, InvalidModelError
    DownloadError
        The Hub did not give it, or serves only whole files.
    """
    names = {str(HubReference(repo, name, None, revision)): name for name in part_names(file) or [file]}

    def read(label: str) -> ModelMetadata:
        remote = _RemoteFile(repo, names[label], revision, label, progress)
        remote.begin()
        found = read_header(remote.read, remote.size, label)
        return ModelMetadata(
            label, found.values, found.tensors, found.data_offset, found.file_size, found.version, found.byte_order,
            (), found.special_tokens, remote.transferred,
        )  # fmt: skip

    first = read(next(iter(names)))
    if first.values.get("split.count", 1) in (0, 1):
        return first
    return join_parts(first, list(names), read)


class _RemoteFile:
    """The front of a file on the Hub, fetched in growing pieces and kept while it is read."""

    def __init__(self, repo: str, file: str, revision: str | None, label: str, progress: Report | None) -> None:
        from huggingface_hub import hf_hub_url

        self.repo = repo
        self.file = file
        self.label = label
        self.size = 0
        self.transferred = 0
        self._progress = progress
        self._home = hf_hub_url(repo, file, revision=revision)
        self._place: str | None = None
        self._pieces: list[tuple[int, bytes]] = []

    def begin(self) -> None:
        """Fetch the first piece, which tells the size of the file."""
        self.read(0, 1)

    def read(self, offset: int, count: int) -> bytes:
        """Return at least `count` bytes from `offset`, fewer only at the end of the file."""
        for start, data in self._pieces:
            if start <= offset and offset + count <= start + len(data):
                return data[offset - start :]
        step = _PIECES[min(len(self._pieces), len(_PIECES) - 1)]
        want = max(count, step)
        if self.transferred + want > _MOST:
            raise InvalidModelError(f"{self.label}: its header is longer than {format_bytes(_MOST)}, as no model's is")
        if self._progress is not None:
            told = f"reading the header of {self.file}: {format_bytes(self.transferred)}"
            self._progress(Progress("inspect", None, told))
        data = self._fetch(offset, want)
        self._pieces.append((offset, data))
        return data

    def _fetch(self, offset: int, count: int) -> bytes:
        """Fetch one range, going on where a connection broke and trying again for a while."""
        data = b""
        for pause in (*_PAUSES, None):
            try:
                with _explained(self.repo, self.file):
                    data += self._request(offset + len(data), count - len(data))
            except _Again as again:
                data += again.data
                if pause is None:
                    raise DownloadError(
                        f"the Hub did not give {self.label}: {again.reason}. Try again later."
                    ) from None
                time.sleep(min(max(pause, again.wait), _LONGEST_PAUSE) if pause else 0)
            else:
                return data
            if len(data) >= count:
                return data
        raise AssertionError

    def _request(self, offset: int, count: int) -> bytes:
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        url = self._place or self._home
        for _ in range(_MOST_REDIRECTS + 1):
            headers = build_hf_headers(library_name="llama_magic")
            if _origin(url) != _origin(self._home):
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            headers |= {"Range": f"bytes={offset}-{offset + count - 1}", "Accept-Encoding": "identity"}
            with _get(url, headers) as response:
                status = response.status_code
                if status in _REDIRECTS:
                    url = urljoin(url, response.headers.get("Location", ""))
                    continue
                if status in (401, 403, 404, 410) and self._place is not None and url == self._place:
                    # Signed addresses of the storage expire: ask the Hub for another one.
                    self._place, url = None, self._home
                    continue
                if status in _AGAIN:
                    raise _Again(f"it answered {status}", _seconds(response.headers.get("Retry-After")))
                if status == 416:
                    return self._past_the_end(response.headers)
                if status >= 400:
                    _read_error(response)
                    hf_raise_for_status(response)
                self._place = None if url == self._home else url
                return self._body(response, offset, count)
        raise DownloadError(f"the Hub did not give {self.label}: it redirects in a circle")

    def _past_the_end(self, headers: Mapping[str, str]) -> bytes:
        match = _RANGE.fullmatch(headers.get("Content-Range", ""))
        self.size = int(match[3]) if match else 0
        return b""

    def _body(self, response: Any, offset: int, count: int) -> bytes:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        length = response.headers.get("Content-Length", "")
        if response.status_code == 206 and match and match[1] and int(match[1]) == offset:
            self.size = int(match[3])
            count = min(count, int(match[2]) - offset + 1)
        elif response.status_code == 200 and offset == 0 and length.isdecimal() and int(length) <= count:
            self.size = count = int(length)
        else:
            whole = f" all {format_bytes(int(length))}" if length.isdecimal() else " all of it"
            raise DownloadError(
                f"the server gives only whole files, so inspecting {self.label} would download{whole}. "
                f"Fetch it first: %llama download {self.label}"
            )
        return self._collect(response, count)

    def _collect(self, response: Any, count: int) -> bytes:
        parts: list[bytes] = []
        got = 0
        try:
            for part in _bytes_of(response):
                parts.append(part)
                got += len(part)
                if got >= count:
                    break
        except Exception as exc:
            if not _is_network(exc):
                raise
            raise _Again(_words(exc), data=self._count(parts, count)) from exc
        data = self._count(parts, count)
        if len(data) < count:
            raise _Again("the connection broke", data=data)
        return data

    def _count(self, parts: list[bytes], count: int) -> bytes:
        data = b"".join(parts)
        self.transferred += len(data)
        return data[:count]


class _Again(Exception):  # noqa: N818 - never leaves this module
    """A request that may work when it is made again; `data` came nevertheless."""

    def __init__(self, reason: str, wait: float = 0.0, data: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.data = data


@contextmanager
def _get(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """Open a request without following redirects and without reading its body."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        if hasattr(session, "stream"):  # httpx, since huggingface_hub 1.0
            with session.stream("GET", url, headers=headers, follow_redirects=False, timeout=timeout) as response:
                yield response
        else:
            with session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=timeout) as response:
                yield response
    except Exception as exc:
        if not _is_network(exc):
            raise
        raise _Again(_words(exc)) from exc


def _bytes_of(response: Any) -> Iterator[bytes]:
    yield from response.iter_raw() if hasattr(response, "iter_raw") else response.iter_content(64 << 10)


def _read_error(response: Any) -> None:
    """Let the message of a refusal be read, where it is short: errors are made from it."""
    length = response.headers.get("Content-Length", "")
    if hasattr(response, "read") and length.isdecimal() and int(length) < 1 << 20:
        response.read()


def _is_network(exc: BaseException) -> bool:
    """Tell whether an error is that of a connection, whichever library huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(exc, (_Again, LlamaMagicError, HfHubHTTPError, OfflineModeIsEnabled)):
        return False
    package = type(exc).__module__.partition(".")[0]
    return isinstance(exc, (ConnectionError, TimeoutError)) or package.startswith(
        ("httpx", "httpcore", "requests", "urllib3")
    )


def _words(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:200] or type(exc).__name__


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.strip().isdecimal() else 0.0


@contextmanager
def _explained(repo: str, file: str | None) -> Iterator[None]:
    """Raise our errors for those of huggingface_hub."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as exc:
        raise DownloadError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN"
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise ModelNotFoundError(f"{repo} has no such revision; leave out what follows the @") from exc
    except errors.RepositoryNotFoundError as exc:
        raise ModelNotFoundError(
            f"there is no repository {repo} on the Hub, or it is private: check the name, or set HF_TOKEN"
        ) from exc
    except errors.OfflineModeIsEnabled as exc:
        raise DownloadError(f"{repo} is not in the cache and HF_HUB_OFFLINE is set; unset it to inspect it") from exc
    except errors.EntryNotFoundError as exc:
        raise ModelNotFoundError(f"{repo} has no file {file}") from exc
    except errors.HfHubHTTPError as exc:
        raise DownloadError(f"the Hub did not give {repo}: {_words(exc)}") from exc
    except Exception as exc:
        if not _is_network(exc):
            raise
        raise DownloadError(f"the Hub can not be reached: {_words(exc)}. Check the network.") from exc
