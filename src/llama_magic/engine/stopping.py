"""Stop what another thread waits for: what a kernel interrupt does to the main thread, for threads that get none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["ASKER", "Stopper", "asking_as", "check_stop", "current_stopper", "stopping"]

#: Who asks, as others read it who have to wait.
ASKER: ContextVar[str] = ContextVar("llama_magic_asker", default="a cell")


class Stopper:
    """Stops one piece of work.

    `stop` may be called from any thread. Once, the thread that works under it (`stopping`) raises `KeyboardInterrupt`
    from the wait for the engine that it is in, or from the next one: the way of an interrupted cell. What it does
    afterwards to tidy up is not disturbed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []
        self._asked = False
        self._raised = False

    @property
    def asked(self) -> bool:
        """True from `stop` on."""
        return self._asked

    def stop(self) -> None:
        """Stop the work."""
        with self._lock:
            self._asked = True
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def check(self) -> None:
        """Raise `KeyboardInterrupt` where the work was stopped, once."""
        with self._lock:
            due = self._asked and not self._raised
            self._raised = self._raised or due
        if due:
            raise KeyboardInterrupt

    def attach(self, wake: Callable[[], None]) -> None:
        """Call `wake` when the work is stopped."""
        with self._lock:
            self._wakers.append(wake)

    def detach(self, wake: Callable[[], None]) -> None:
        """Call `wake` no more."""
        with self._lock:
            if wake in self._wakers:
                self._wakers.remove(wake)


_CURRENT: ContextVar[Stopper | None] = ContextVar("llama_magic_stopper", default=None)


def current_stopper() -> Stopper | None:
    """Return what stops the work of this thread, None where only an interrupt does."""
    return _CURRENT.get()


def check_stop() -> None:
    """Raise `KeyboardInterrupt` where the work of this thread was stopped."""
    stopper = _CURRENT.get()
    if stopper is not None:
        stopper.check()


@contextmanager
def stopping(stopper: Stopper) -> Iterator[Stopper]:
    """Let `stopper` stop what this thread does inside the block."""
    token = _CURRENT.set(stopper)
    try:
        yield stopper
    finally:
        _CURRENT.reset(token)


@contextmanager
def asking_as(who: str) -> Iterator[None]:
    """Ask as `who` inside the block: what those read who have to wait for it."""
    token = ASKER.set(who)
    try:
        yield
    finally:
        ASKER.reset(token)
