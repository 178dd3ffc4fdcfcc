"""Locks between processes, where the file system has some."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["file_lock"]

#: Seconds between two calls of `waiting`.
_LOOK_S = 0.2


@contextlib.contextmanager
def file_lock(path: Path, waiting: Callable[[], None] | None) -> Iterator[bool]:
    """Hold the lock of a file; its folder is made. Yields False where another process holds it.

    On a file system without locks, or that can not be written to, the block runs all the same: what it makes must get
    its name with one rename.

    Parameters
    ----------
    waiting
        Called while another process holds the lock, some times a second; it may raise. None: do not wait, the block
        runs without the lock.
    """
    from filelock import FileLock, Timeout

    lock, alone = FileLock(str(path)), True
    while not lock.is_locked and alone:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0 if waiting is None else _LOOK_S)
        except Timeout:
            if waiting is None:
                alone = False
            else:
                waiting()
        except (NotImplementedError, OSError):
            break
    try:
        yield alone
    finally:
        lock.release()
