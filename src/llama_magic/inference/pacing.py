"""When text is sent: often enough to look smooth, seldom enough to cost little."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from llama_magic.inference.results import Chunk

__all__ = ["LONGEST_S", "SHORTEST_S", "Pace", "Pacer", "Source", "Take"]

#: Seconds between two chunks: at least, aimed at, and at most. A person sees eight updates a second as smooth. Aimed at
#: is more: a model slows down as its context fills, and where the clock takes over from the number of tokens, the same
#: text costs more bytes. A slow model is followed word by word; from a fast one, whose tokens take less time than what
#: a chunk costs should, more tokens come at once.
SHORTEST_S: Final = 0.05
_AIM_S: Final = 0.06
_FAST_AIM_S: Final = 0.08
_FAST_TPS: Final = 60.0
LONGEST_S: Final = 0.12

#: Tokens after which the speed is known well enough to fix how many of them go into a chunk.
_SETTLED: Final = 24

#: Returns what has gathered (None where nothing has) and the seconds until it should be asked again.
Take = Callable[[], tuple[Chunk | None, float]]


class Pace:
    """How many tokens go into a chunk, and so how long to wait for them.

    The number follows the speed at the start of a generation and stays: a model slows down as its context fills, and
    chunks by the clock alone would then send more bytes for the same text. Only where waiting for that many tokens
    would exceed `LONGEST_S` does the clock decide.
    """

    def __init__(self, now: float) -> None:
        self._start = self._last = now
        self._sent = 0
        self._gather = 1

    def sent(self, tokens: int, now: float) -> float:
        """Note that a chunk of so many tokens was sent; return the seconds to wait for the next."""
        elapsed, self._last = now - self._last, now
        if not tokens:
            return SHORTEST_S
        if self._sent < _SETTLED:
            self._sent += tokens
            speed = self._sent / max(now - self._start, 1e-9)
            self._gather = max(1, round(speed * (_FAST_AIM_S if speed > _FAST_TPS else _AIM_S)))
        else:
            self._sent += tokens
        return min(max(self._gather * elapsed / tokens, SHORTEST_S), LONGEST_S)


class Pacer(Protocol):
    """Sends chunks on a thread of its own, so that generating does not stop for it."""

    def start(self, take: Take) -> None:
        """Begin to ask `take` for chunks."""

    def stop(self) -> None:
        """Ask no more; when this returns, no call is under way."""


class Source:
    """The part of a `Pacer` that threads share: what to ask, when, and nobody while it is being changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._take: Take | None = None
        self._due = 0.0

    def start(self, take: Take) -> None:
        """Ask `take` from now on; the thread that calls `chunk` must be woken by the caller."""
        with self._lock:
            self._take, self._due = take, time.perf_counter() + SHORTEST_S

    def stop(self) -> None:
        """Ask no more; when this returns, no call is under way."""
        with self._lock:
            self._take = None

    def wait(self) -> float | None:
        """Return the seconds until `chunk` should be called; None where nothing is to be asked."""
        return None if self._take is None else max(0.0, self._due - time.perf_counter())

    def chunk(self) -> Chunk | None:
        """Return what has gathered."""
        with self._lock:
            if self._take is None:
                return None
            chunk, seconds = self._take()
            self._due = time.perf_counter() + seconds
            return chunk
