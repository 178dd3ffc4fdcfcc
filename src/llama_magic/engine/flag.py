"""A flag between threads that costs next to nothing to ask."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

__all__ = ["Flag"]


class Flag:
    """What `threading.Event` is without waiting.

    The decode loop asks for every token, with nothing in the processor's caches: `is_set` runs no Python code.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: True from `set` to `clear`.
        self.is_set: Callable[[], bool] = self._lock.locked

    def set(self) -> None:
        """Set it, whether it is set already or not."""
        self._lock.acquire(blocking=False)

    def clear(self) -> None:
        """Clear it, whether it is set or not."""
        with contextlib.suppress(RuntimeError):
            self._lock.release()
