"""What this process holds in memory, and giving back what its allocator keeps."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

__all__ = ["process_memory", "trim"]

_ROLLUP = Path("/proc/self/smaps_rollup")


def process_memory() -> int:
    """Return the bytes that this process holds: its own pages, mapped files included, shared ones by their share."""
    try:
        for line in _ROLLUP.read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import psutil

    return int(psutil.Process().memory_info().rss)


def trim() -> None:
    """Give the system back what was freed. glibc keeps it otherwise; other allocators look after themselves."""
    gc.collect()
    if sys.platform.startswith("linux"):
        give = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if give is not None:
            give(0)
