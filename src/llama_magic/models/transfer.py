"""One file on its way from the Hub: what is missing is asked for until all is here, then its hash is looked at."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llama_magic.errors import DownloadError
from llama_magic.locks import file_lock
from llama_magic.models.hub import TIMEOUT_S, HubFile, endpoint, is_network
from llama_magic.models.hub_cache import repo_folder
from llama_magic.models.places import hub_cache

if TYPE_CHECKING:
    from llama_magic.models.download import Batch

__all__ = ["FULL", "Transfer", "locked", "size_of"]

#: What a disk without room says.
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
#: A connection that is cut ever again is given up after so many cuts, even if each time something came.
MOST_CUTS = 200

_LARGE = 32 << 20
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Transfer:
    """One file on its way: asks for what is missing until all is here, then looks at its hash."""

    def __init__(self, batch: Batch, file: HubFile, partial: Path, blob: Path) -> None:
        self._batch = batch
        self._file = file
        self._partial = partial
        self._blob = blob
        self._hash = _hash_for(file)
        self._have = 0

    def run(self) -> None:
        """Fetch the file; it appears under its final name only with the right content."""
        resumed = self._take_up()
        try:
            self._fetch()
            if self._hash.hexdigest() != self._file.etag and resumed:
                # What an earlier try left may have been wrong: once from the start.
                self._batch.say("what was here before is wrong, fetching it anew")
                self._drop()
                self._fetch()
        except OSError as exc:
            if exc.errno in (*FULL, errno.EFBIG):
                self._discard()
            raise
        if self._hash.hexdigest() != self._file.etag:
            self._discard()
            raise DownloadError(
                f"{self._file.name} did not arrive as the Hub has it (checksum {self._hash.hexdigest()[:12]}…, "
                f"expected {self._file.etag[:12]}…) and was thrown away. Try again; if it stays so, something between "
                "here and the Hub changes files."
            )
        self._partial.replace(self._blob)

    def _take_up(self) -> bool:
        """Hash what an earlier try left; returns whether there was something."""
        size = size_of(self._partial)
        if size > self._file.size:
            self._batch.count(-self._file.size)
            self._discard()
            return False
        if not size:
            return False
        if size > _LARGE:
            self._batch.say("looking at what is here already")
        with self._partial.open("rb") as file:
            while block := file.read(1 << 20):
                self._batch.check(1)
                self._hash.update(block)
                self._have += len(block)
        return True

    def _fetch(self) -> None:
        failed, cuts = 0, 0
        while self._have < self._file.size:
            before = self._have
            try:
                self._request()
                if self._have == before:
                    raise ConnectionError("the connection was closed before anything came")  # noqa: TRY301
            except Exception as exc:
                cuts += 1
                failed = 1 if self._have > before else failed + 1
                if cuts >= MOST_CUTS or not self._batch.patience.worth_another(exc, failed):
                    raise
                self._batch.say("the connection broke, trying again" if is_network(exc) else "the Hub asks to wait")
                self._batch.patience.wait(exc, failed)

    def _request(self) -> None:
        """Ask for the rest of the file and write what comes."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        listing = self._batch.listing
        url = hf_hub_url(listing.repo, self._file.name, revision=listing.commit, endpoint=endpoint())
        headers = {**build_hf_headers(library_name="llama_magic"), "Accept-Encoding": "identity"}
        if self._have:
            headers["Range"] = f"bytes={self._have}-"
        session: Any = get_session()
        # It follows redirects, and takes the token along only to where it was meant for.
        with session.stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:
                self._drop()
                return self._request()
            if response.status_code >= 400 and 0 < int(response.headers.get("Content-Length", 0)) < 1 << 20:
                response.read()
            hf_raise_for_status(response)
            self._place(response)
            with self._partial.open("ab") as out:
                try:
                    for block in response.iter_raw():
                        self._write(out, block)
                finally:
                    out.flush()
        return None

    def _place(self, response: Any) -> None:
        """Make sure that what comes goes on where we are; a server that sends all is taken from the start."""
        match = _RANGE.match(response.headers.get("Content-Range", ""))
        start = int(match[1]) if response.status_code == 206 and match else 0
        if start != self._have:
            if start:
                raise ConnectionError(f"asked for byte {self._have}, the server sends from {start}")
            self._drop()

    def _write(self, out: BinaryIO, block: bytes) -> None:
        self._batch.check(self._have)
        if self._have + len(block) > self._file.size:
            self._discard()
            raise DownloadError(
                f"the server sends more of {self._file.name} than the Hub says it has; nothing was kept. Try again."
            )
        out.write(block)
        self._hash.update(block)
        self._have += len(block)
        self._batch.count(len(block))

    def _drop(self) -> None:
        """Begin from the start."""
        self._batch.count(-self._have)
        self._have = 0
        self._hash = _hash_for(self._file)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._partial, 0)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._partial.unlink()


def _hash_for(file: HubFile) -> Any:
    """Return the hash that a file's ETag is made with: SHA-256, or git's for small files."""
    if len(file.etag) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def locked(repo: str, etag: str, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that huggingface_hub's own downloads take too; the second waits for the first."""
    check()
    with file_lock(hub_cache() / ".locks" / repo_folder(repo).name / f"{etag}.lock", check):
        yield
