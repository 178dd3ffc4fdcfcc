"""The worker's main loop: reads requests from the kernel, answers them one at a time."""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import signal
import threading
import traceback
from typing import TYPE_CHECKING, Any

from llama_magic.engine.framing import Wire
from llama_magic.engine.job_engine import JobEngine
from llama_magic.engine.protocol import Cancel, Error, Event, Log, Request, Result, pack_events
from llama_magic.engine.runners import RUNNERS
from llama_magic.errors import GenerationInterrupted, LlamaMagicError, OutOfMemoryError
from llama_magic.inference.pacing import Source, Take

if TYPE_CHECKING:
    from llama_magic.engine.engine import Engine

__all__ = ["serve"]

#: Seconds without a request after which the next turn's beginning is processed: cells that run in a row ask sooner.
_PAUSE_S = 0.05

#: What a worker that waits imports, the shortest job's part first; between two of them it looks whether it is asked.
_EARLY = (
    "llama_magic.native.log", "llama_magic.quantization.quantizing", "numpy", "jinja2", "llama_magic.native",
    "llama_magic.engine.residency", "llama_magic.inference.loop", "llama_magic.engine.engine",
)  # fmt: skip

#: Seconds between two looks at whether the kernel still lives.
_WATCH_S = 0.5


class _Host:
    def __init__(self, wire: Wire, parent: int) -> None:
        self._wire = wire
        self._parent = parent
        self._requests: queue.SimpleQueue[tuple[int, Request]] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple[int, Event] | None] = queue.SimpleQueue()
        self._source = Source()
        self._state_lock = threading.Lock()
        self._current = self._ended = -1
        self._cancelled: set[int] = set()
        self._engine: Engine | JobEngine | None = None
        self._looking_ahead = False

    def run(self, *, early: bool = False) -> None:
        threading.Thread(target=self._read, name="llama-magic-reader", daemon=True).start()
        threading.Thread(target=self._write, name="llama-magic-writer", daemon=True).start()
        for name in _EARLY if early else ():
            if self._requests.empty():
                importlib.import_module(name)
        while True:
            number, request = self._next()
            with self._state_lock:
                self._current = number
            end = self._answer(number, request)
            with self._state_lock:
                self._current, self._ended = -1, number
                self._cancelled.discard(number)
            self._outbox.put((number, end))

    def _next(self) -> tuple[int, Request]:
        """Wait for the next request, and process meanwhile what it may begin with."""
        if self._engine is not None and not isinstance(self._engine, JobEngine):
            try:
                return self._requests.get(timeout=_PAUSE_S)
            except queue.Empty:
                self._look_ahead(self._engine)
        return self._requests.get()

    def _look_ahead(self, engine: Engine) -> None:
        """Let the engine work ahead until a request comes."""
        with self._state_lock:
            if not self._requests.empty():
                return
            engine.ready()
            self._looking_ahead = True
        try:
            engine.look_ahead()
        except Exception:  # noqa: BLE001 - a bug, and nobody waits for it: the log keeps it
            self._emit(Log("error", traceback.format_exc()))
        with self._state_lock:
            self._looking_ahead = False

    def _engine_for(self, request: Request) -> Engine | JobEngine:
        """Return what answers a request. A job that is all a worker does needs none of what models need."""
        if isinstance(self._engine, JobEngine) and type(request).__name__ in RUNNERS:
            return self._engine
        if self._engine is None and type(request).__name__ in RUNNERS:
            return JobEngine(self._emit)
        from llama_magic.engine.engine import Engine

        return self._engine if isinstance(self._engine, Engine) else Engine(self._emit, self)

    def _answer(self, number: int, request: Request) -> Event:
        try:
            engine = self._engine_for(request)
            with self._state_lock:
                self._engine = engine
                engine.ready()
                if number in self._cancelled:
                    engine.cancel()
            return Result(engine.answer(request))
        except (LlamaMagicError, GenerationInterrupted) as exc:
            return Error(exc)
        except MemoryError:
            return Error(OutOfMemoryError("the worker ran out of memory; a smaller model or context helps"))
        except Exception as exc:  # noqa: BLE001 - a bug: it goes to the kernel with its traceback
            return Error(_portable(exc), traceback.format_exc())

    def _emit(self, event: Event) -> None:
        self._outbox.put((self._current, event))

    def start(self, take: Take) -> None:
        """Let the writer fetch chunks: waking it for each of them would cost more than a token does."""
        self._source.start(take)
        self._outbox.put(None)

    def stop(self) -> None:
        """Fetch no more."""
        self._source.stop()

    def _write(self) -> None:
        """Send events, beside llama.cpp and not between two of its calls; those that wait go together."""
        outbox, source = self._outbox, self._source
        while True:
            try:
                items = [outbox.get(timeout=source.wait())]
                while not outbox.empty():
                    items.append(outbox.get_nowait())
            except queue.Empty:
                chunk = source.chunk()
                items = [None if chunk is None else (self._current, chunk)]
            events = [item for item in items if item is not None]
            if events:
                self._send(events)

    def _send(self, events: list[tuple[int, Event]]) -> None:
        try:
            self._wire.send(pack_events(events))
        except OSError:
            os._exit(0)  # the kernel is gone

    def _read(self) -> None:
        """Take messages from the kernel; end the process when the kernel ends, however it does."""
        try:
            while True:
                while not self._wire.ready(_WATCH_S):
                    if os.getppid() != self._parent:
                        os._exit(0)
                message: Any = pickle.loads(self._wire.receive())  # noqa: S301 - from our own kernel
                if isinstance(message, Cancel):
                    self._cancel(message.number)
                else:
                    self._requests.put((message.number, message.body))
                    self._hurry()
        except (EOFError, OSError):
            os._exit(0)

    def _hurry(self) -> None:
        """End what is done ahead: a request has come."""
        with self._state_lock:
            if self._looking_ahead and self._engine is not None:
                self._engine.cancel()

    def _cancel(self, number: int) -> None:
        with self._state_lock:
            if number <= self._ended:
                return  # too late: requests come in the order of their numbers
            self._cancelled.add(number)
            if number == self._current and self._engine is not None:
                self._engine.cancel()


def _portable(exc: Exception) -> Exception:
    """Return the exception if it can cross to the kernel, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(exc))  # noqa: S301 - our own bytes
    except Exception:  # noqa: BLE001 - anything can go wrong in a foreign __reduce__
        return RuntimeError(f"{type(exc).__name__}: {exc}")
    return exc


def serve(wire: Wire, *, early: bool = False) -> None:
    """Answer requests until the kernel goes away. Never returns.

    Parameters
    ----------
    early
        Import what may be needed before it is asked for.
    """
    # Jupyter interrupts the whole process group; what to stop is told by `Cancel`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Host(wire, os.getppid()).run(early=early)
