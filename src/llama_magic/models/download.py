"""Bring a model from the Hub into the cache that all its tools share.

huggingface_hub finds, authorizes and asks; the bytes are taken here, because its own download starts over after an
interrupt. What came so far stays beside the blob as ``<hash>.incomplete``; it becomes the blob when its hash is right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from llama_magic.errors import DiskFullError, DownloadError, JobInterrupted, LlamaMagicError, ModelNotFoundError
from llama_magic.models.hub import (
    TIMEOUT_S,
    HubFile,
    Listing,
    Patience,
    endpoint,
    explained,
    is_network,
    list_repository,
)
from llama_magic.models.hub_cache import PARTIAL, add_to_cache, repo_folder
from llama_magic.models.places import hub_cache
from llama_magic.models.references import HubReference, choose_file, no_such_file, split_parts
from llama_magic.progress import Progress, Report
from llama_magic.units import format_bytes, format_rate, format_seconds

__all__ = ["Download", "DownloadRequest", "download", "run"]

#: Parts of a split model, or files of a repository, that are fetched at the same time.
PARALLEL = 4
#: Bytes that a download leaves free on the disk: a notebook must still be able to save itself.
RESERVE = 128 << 20
#: A connection that is cut ever again is given up after so many cuts, even if each time something came.
MOST_CUTS = 200

_LOOK = 32 << 20
_LOOK_S = 0.1
_REPORTS_S = 0.2
_RATE_S = 5.0
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What to bring here: a model, or with `patterns` all files of the repository that match one of them.

    `pause_s` is how long to wait before the first retry.
    """

    reference: HubReference
    patterns: tuple[str, ...] = ()
    pause_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Download:
    """What was brought here.

    Attributes
    ----------
    path
        The file; the first of a split model's; the folder where patterns were given.
    repo, commit, licence
        Where from, and under which terms by the repository's own word.
    size
        Bytes of all files.
    transferred
        Bytes that were fetched now; 0 where all was there.
    seconds
        How long it took.
    """

    path: Path
    repo: str
    commit: str
    licence: str
    size: int
    transferred: int
    seconds: float

    def __repr__(self) -> str:
        if not self.transferred:
            return f"{self.path.name}: was here already, {format_bytes(self.size)}\n{self.path}"
        rate = format_rate(self.transferred / max(self.seconds, 1e-3))
        kept = self.size - self.transferred
        resumed = f", {format_bytes(kept)} of it were here already" if kept > 0 else ""
        licence = f"\nlicence: {self.licence}" if self.licence else ""
        return (
            f"{self.path.name}: {format_bytes(self.size)} in {format_seconds(self.seconds)} ({rate}){resumed}, "
            f"checksum right{licence}\n{self.path}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "path": str(self.path),
            "repo": self.repo,
            "commit": self.commit,
            "licence": self.licence,
            "size": self.size,
            "transferred": self.transferred,
            "seconds": self.seconds,
        }


def run(request: DownloadRequest, tools: Any) -> Download:
    """Do it as a job of a worker."""
    return download(request, tools.report, tools.cancelled)


def download(
    request: DownloadRequest,
    report: Report = lambda _progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Download:
    """Bring a model here, going on where an earlier try stopped.

    Raises
    ------
    ModelNotFoundError, DownloadError
    DiskFullError
        There is too little room.
    JobInterrupted
        `cancelled` said so; what came is kept for the next time.
    """
    began, reference = time.monotonic(), request.reference
    patience = Patience(pause_s=request.pause_s, cancelled=cancelled)
    report(Progress("download", None, f"asking the Hub for {reference.repo}"))
    listing = list_repository(reference, patience)
    files = [listing.files[name] for name in _wanted(request, listing)]
    batch = _Batch(listing, report, cancelled, patience)
    with _disk_errors():
        batch.fetch(files)
        paths = [
            add_to_cache(reference.repo, reference.revision, listing.commit, file.name, batch.blobs / file.etag)
            for file in files
        ]
    folder = repo_folder(reference.repo) / "snapshots" / listing.commit
    return Download(
        folder if request.patterns else paths[0],
        reference.repo,
        listing.commit,
        listing.licence,
        sum(file.size for file in files),
        batch.transferred,
        time.monotonic() - began,
    )


def _wanted(request: DownloadRequest, listing: Listing) -> list[str]:
    """Return the names of the files to fetch."""
    reference, names = request.reference, list(listing.files)
    if request.patterns:
        found = [name for name in names if any(fnmatch(name, pattern) for pattern in request.patterns)]
        if not found:
            raise ModelNotFoundError(f"{reference.repo} has no files like {', '.join(request.patterns)}")
        return found
    first = reference.file or choose_file(names, reference.quant, reference.repo)
    if first not in listing.files:
        raise no_such_file(reference.repo, first, names)
    parts = split_parts(first)
    missing = [part for part in parts if part not in listing.files]
    if missing:
        raise ModelNotFoundError(f"{reference.repo} holds only some parts of {first}: {missing[0]} is not there")
    return parts


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Say in words what the disk refused."""
    try:
        yield
    except LlamaMagicError:
        raise
    except OSError as exc:
        if exc.errno in _FULL:
            raise DiskFullError(
                f"the disk with {hub_cache()} is full: free some space (%llama models shows what there is), "
                "or set HF_HUB_CACHE to a folder on a larger disk"
            ) from exc
        if exc.errno == errno.EFBIG:
            raise DownloadError(
                f"the disk with {hub_cache()} can not hold files this large: set HF_HUB_CACHE to another one"
            ) from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DownloadError(
                f"{exc.filename or hub_cache()} can not be written: set HF_HUB_CACHE to a folder that can"
            ) from exc
        raise DownloadError(f"the file can not be written: {exc}") from exc


@dataclass(slots=True)
class _Batch:
    """Files that are fetched together: several at a time, with one progress for all."""

    listing: Listing
    report: Report
    cancelled: Callable[[], bool]
    patience: Patience
    transferred: int = 0
    _total: int = 0
    _here: int = 0
    _label: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _steps: list[tuple[float, int]] = field(default_factory=list)
    _reported: float = 0.0

    @property
    def blobs(self) -> Path:
        """The folder of the repository's contents."""
        return repo_folder(self.listing.repo) / "blobs"

    def fetch(self, files: list[HubFile]) -> None:
        """Bring all files here; where one fails, the others stop too."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        missing = {file.etag: file for file in files if not (self.blobs / file.etag).is_file()}
        if not missing:
            return
        self._total = sum(file.size for file in files)
        here = {etag: _size(self._partial(file)) for etag, file in missing.items()}
        self._here = self._total - sum(file.size - min(here[etag], file.size) for etag, file in missing.items())
        self._label = Path(files[0].name).name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        self._check_space(self._total - self._here)
        pool = ThreadPoolExecutor(min(PARALLEL, len(missing)), "llama-magic-download")
        try:
            waiting = {pool.submit(self._guarded, file) for file in missing.values()}
            errors: list[BaseException] = []
            # A thread that waits for a silent server is not waited for.
            while waiting and not errors:
                self._check()
                done, waiting = wait(waiting, _LOOK_S, FIRST_EXCEPTION)
                errors = [error for error in (future.exception() for future in done) if error is not None]
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if errors:
            raise next((error for error in errors if not isinstance(error, JobInterrupted)), errors[0])

    def _guarded(self, file: HubFile) -> None:
        try:
            with explained(self.listing.repo, file.name), _locked(self.listing.repo, file.etag, self._check):
                if not (self.blobs / file.etag).is_file():
                    _Transfer(self, file, self._partial(file), self.blobs / file.etag).run()
        except BaseException:
            self._stop.set()
            raise

    def _partial(self, file: HubFile) -> Path:
        return self.blobs / f"{file.etag}{PARTIAL}"

    def _check(self) -> None:
        """Raise where the download was cancelled or another file failed."""
        if self._stop.is_set() or self.cancelled():
            raise JobInterrupted

    def _check_space(self, need: int) -> None:
        free = shutil.disk_usage(self.blobs).free
        if need + RESERVE > free:
            raise DiskFullError(
                f"{self._label} needs {format_bytes(need)} and {format_bytes(free)} are free at {hub_cache()} "
                f"({format_bytes(RESERVE)} are left alone): free {format_bytes(need + RESERVE - free)} "
                "(%llama models shows what there is), or set HF_HUB_CACHE to a folder on a larger disk"
            )

    # -- called by the transfers -----------------------------------------------------------

    def check(self, written: int) -> None:
        """Look whether to go on; every now and then, whether the disk still has room."""
        self._check()
        if written % _LOOK < _LOOK // 32 and (free := shutil.disk_usage(self.blobs).free) < RESERVE // 2:
            raise DiskFullError(
                f"the disk with {hub_cache()} is almost full ({format_bytes(free)} left), so the download stopped. "
                "What came is kept: free some space (%llama models shows what there is) and run it again"
            )

    def count(self, come: int) -> None:
        """Note bytes that came (or, below 0, were thrown away) and report how far it is."""
        with self._lock:
            self._here += come
            self.transferred += max(come, 0)
            now = time.monotonic()
            if now - self._reported < _REPORTS_S and self._here < self._total:
                return
            self._reported = now
            self._steps.append((now, self.transferred))
            while len(self._steps) > 2 and now - self._steps[1][0] > _RATE_S:
                self._steps.pop(0)
            told = self._words(now)
            self.report(Progress("download", min(1.0, self._here / max(self._total, 1)), told))

    def say(self, what: str) -> None:
        """Report what is being done instead of fetching."""
        with self._lock:
            self.report(Progress("download", min(1.0, self._here / max(self._total, 1)), f"{self._label}: {what}"))

    def _words(self, now: float) -> str:
        told = f"{self._label}: {format_bytes(self._here)} of {format_bytes(self._total)}"
        (since, before) = self._steps[0]
        rate = (self.transferred - before) / (now - since) if now > since else 0.0
        left = self._total - self._here
        if rate > 0 and left > 0:
            told += f", {format_rate(rate)}, {format_seconds(max(1, left / rate))} left"
        return told


class _Transfer:
    """One file on its way: asks for what is missing until all is here, then looks at its hash."""

    def __init__(self, batch: _Batch, file: HubFile, partial: Path, blob: Path) -> None:
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
            if exc.errno in (*_FULL, errno.EFBIG):
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
        size = _size(self._partial)
        if size > self._file.size:
            self._batch.count(-self._file.size)
            self._discard()
            return False
        if not size:
            return False
        if size > _LOOK:
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def _locked(repo: str, etag: str, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that huggingface_hub's own downloads take too; the second waits for the first."""
    from filelock import FileLock, Timeout

    folder = hub_cache() / ".locks" / repo_folder(repo).name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / f"{etag}.lock"))
    while True:
        check()
        try:
            lock.acquire(timeout=0.2)
            break
        except Timeout:
            continue
        except (NotImplementedError, OSError):  # a file system without locks: two at a time only waste bandwidth
            yield
            return
    try:
        yield
    finally:
        lock.release()
