"""How fast main memory is read: what bounds generation, which reads all weights for every token. Worker only."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from typing import Any

import numpy as np

__all__ = ["read_bandwidth"]

#: Bytes that each thread reads; together they should exceed the caches.
_SIZE = 64 << 20
_PASSES = 6


def read_bandwidth(threads: int, size: int = _SIZE, passes: int = _PASSES) -> float:
    """Return the bytes a second that so many threads read together: the best of some passes.

    Each thread searches a block of its own for a byte that is not in it: C's `memchr` does nothing
    but read, and Python runs the threads side by side meanwhile.
    """
    search = _memchr()
    blocks = [np.ones(size, dtype=np.uint8) for _ in range(threads)]
    best = float("inf")
    for _ in range(passes):
        gate = threading.Barrier(threads + 1)
        workers = [threading.Thread(target=_read, args=(search, block, gate)) for block in blocks]
        for worker in workers:
            worker.start()
        gate.wait()
        started = time.perf_counter()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - started)
    return threads * size / best


def _read(search: Any, block: Any, gate: threading.Barrier) -> None:
    address, size = block.ctypes.data, block.size
    gate.wait()
    search(address, 0, size)


def _memchr() -> Any:
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    function = library.memchr
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    return function
