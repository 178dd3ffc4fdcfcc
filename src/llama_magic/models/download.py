"""Bring a model from the Hub into the cache that all its tools share.

huggingface_hub finds, authorizes and asks; the bytes are taken here, because its own download starts over after an
interrupt. What came so far stays beside the blob as ``<hash>.incomplete``; it becomes the blob when its hash is right.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llama_magic.errors import DiskFullError, DownloadError, JobInterrupted, LlamaMagicError, ModelNotFoundError
from llama_magic.models.hub import (
    HubFile,
    Listing,
    Patience,
    explained,
    list_repository,
)
from llama_magic.models.hub_cache import PARTIAL, add_to_cache, repo_folder
from llama_magic.models.places import hub_cache
from llama_magic.models.references import HubReference, choose_file, no_such_file, split_parts
from llama_magic.models.transfer import FULL, Transfer, locked, size_of
from llama_magic.progress import Progress, Report
from llama_magic.units import format_bytes, format_rate, format_seconds

__all__ = ["Batch", "Download", "DownloadRequest", "download", "run"]

#: Parts of a split model, or files of a repository, that are fetched at the same time.
PARALLEL = 4
#: Bytes that a download leaves free on the disk: a notebook must still be able to save itself.
RESERVE = 128 << 20

_LOOK = 32 << 20
_LOOK_S = 0.1
_REPORTS_S = 0.2
_RATE_S = 5.0


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What to bring here: a model, or with `patterns` all files of the repository that match them.

    A pattern that begins with ``!`` leaves out again; the last that matches a name holds. `pause_s` is how long to
    wait before the first retry.
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
    batch = Batch(listing, report, cancelled, patience)
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
        found = [name for name in names if _matches(name, request.patterns)]
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


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    matched = False
    for pattern in patterns:
        if fnmatch(name, pattern.removeprefix("!")):
            matched = not pattern.startswith("!")
    return matched


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Say in words what the disk refused."""
    try:
        yield
    except LlamaMagicError:
        raise
    except OSError as exc:
        if exc.errno in FULL:
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
class Batch:
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
        here = {etag: size_of(self._partial(file)) for etag, file in missing.items()}
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
            with explained(self.listing.repo, file.name), locked(self.listing.repo, file.etag, self._check):
                if not (self.blobs / file.etag).is_file():
                    Transfer(self, file, self._partial(file), self.blobs / file.etag).run()
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
