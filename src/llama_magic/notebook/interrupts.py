"""Kernel interrupts around one piece of work: the first is raised, the rest can not break the cleanup."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["OneInterrupt"]


class OneInterrupt:
    """Context manager that lets one SIGINT through as `KeyboardInterrupt`.

    The second and later ones are noted and dropped, and so is the first one after `hold`: from
    there on a short piece of cleanup runs to its end, and `pending` says that one came meanwhile.
    Outside the main thread, where no signal arrives, it does nothing.

    Parameters
    ----------
    linger
        Seconds after an interrupt during which further ones are dropped, even after the end of the
        block. For kernels: an impatient second interrupt would otherwise hit ipykernel between a
        cell's end and its reply, and the reply would be lost.
    """

    def __init__(self, linger: float = 0.0) -> None:
        self.pending = False
        self._linger = linger
        self._until = 0.0
        self._open = True
        self._ended = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            while isinstance(owner := getattr(previous, "__self__", None), OneInterrupt) and owner._ended:  # noqa: SLF001
                previous = owner._previous  # noqa: SLF001
            self._previous = signal.default_int_handler if previous is None else previous
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._until = time.monotonic() + self._linger
        if self._installed and not (self.pending and self._linger):
            self._restore()

    def hold(self) -> None:
        """From now on only note interrupts."""
        self._open = False

    def _restore(self) -> None:
        signal.signal(signal.SIGINT, self._previous)
        self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ended:
            if time.monotonic() > self._until:
                self._restore()
                if callable(self._previous):
                    self._previous(number, frame)
            return
        self.pending = True
        if self._open:
            self._open = False
            raise KeyboardInterrupt
