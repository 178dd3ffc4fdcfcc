"""The engine in this process: for scripts, debugging and tests (``isolate=False``).

A crash inside llama.cpp ends the whole process here; the worker process is what guards against that.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from llama_magic.engine.client import wait_for
from llama_magic.engine.protocol import Error, Event, GenerateRequest, Progress, Request, Result
from llama_magic.engine.stream import GenerationStream, PendingRequest
from llama_magic.errors import EngineCrashed, LlamaMagicError

__all__ = ["LocalClient"]


class LocalClient:
    """An `Engine` on a thread of this process, with the interface of `EngineClient`."""

    def __init__(self) -> None:
        # Here, and not above: importing the engine loads libllama into the process.
        from llama_magic.engine.engine import Engine

        self._engine = Engine(self._emit)
        self._numbers = itertools.count(1)
        self._requests: queue.SimpleQueue[tuple[PendingRequest, Request] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._current: PendingRequest | None = None
        self._cancelled: set[int] = set()
        self._thread = threading.Thread(target=self._serve, name="llama-magic-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True until `close`."""
        return self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        """Process id of this very process, None after `close`."""
        return os.getpid() if self.alive else None

    def _serve(self) -> None:
        while (item := self._requests.get()) is not None:
            pending, request = item
            with self._lock:
                self._current = pending
                self._engine.ready()
                if pending.number in self._cancelled:
                    self._engine.cancel()
            pending.events.put(self._answer(request))
            with self._lock:
                self._current = None
                self._cancelled.discard(pending.number)
        self._engine.close()

    def _answer(self, request: Request) -> Event:
        try:
            return Result(self._engine.answer(request))
        except (LlamaMagicError, Exception) as exc:  # noqa: BLE001 - it is raised again where it is waited for
            return Error(exc)

    def _emit(self, event: Event) -> None:
        current = self._current
        if current is not None:
            current.events.put(event)

    def _submit(self, request: Request) -> PendingRequest:
        pending = PendingRequest(self, next(self._numbers), self)
        self._requests.put((pending, request))
        return pending

    def open(self, request: GenerateRequest) -> GenerationStream:
        """Start a generation and return its stream."""
        return GenerationStream(self._submit(request))

    def request(self, request: Request, on_progress: Callable[[Progress], None] | None = None) -> Any:
        """Send a request and return its result; see `EngineClient.request`."""
        return wait_for(self._submit(request), on_progress)

    def close(self) -> None:
        """Unload everything and end the thread."""
        self._requests.put(None)
        self._thread.join(5)

    def send_cancel(self, pending: PendingRequest) -> None:
        """Stop one request."""
        with self._lock:
            if self._current is pending:
                self._engine.cancel()
            else:
                self._cancelled.add(pending.number)

    def forget(self, pending: PendingRequest) -> None:
        """Nothing to do: the queue goes with the request."""

    def kill(self, pending: PendingRequest) -> None:
        """Nothing to do: a thread can not be killed; it ends when llama.cpp returns."""

    def crashed(self, pending: PendingRequest) -> EngineCrashed:
        """Never called: a crash here ends the process."""
        raise NotImplementedError
