"""A worker with the two threads that read from it and write to it.

An interrupt raises KeyboardInterrupt anywhere in the main thread, and half a message written or read would leave both
sides unable to understand each other.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from llama_magic.engine.framing import receiving
from llama_magic.engine.protocol import Cancel, Envelope, Error, Log, Request, Result, unpack_events
from llama_magic.engine.stream import PendingRequest, WorkerDied

__all__ = ["Channel", "Worker"]


class Worker(Protocol):
    """What a channel needs of a worker process; tests put a thread in its place."""

    connection: Connection

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def alive(self) -> bool:
        """True while it runs."""

    def exit_code(self, timeout: float = 2.0) -> int | None:
        """Return the exit code, None while it runs."""

    def output(self) -> list[str]:
        """Return the last lines it wrote."""

    def cause(self) -> str:
        """Return in words why it ended."""

    def kill(self) -> None:
        """End it at once."""


class Channel:
    """One worker, and the one request that it answers.

    Parameters
    ----------
    process
        The worker, started.
    log
        Takes the lines of llama.cpp's log.
    ended
        Called with a request when it is over, also when the worker died. On a thread of the channel.
    """

    def __init__(self, process: Worker, log: deque[str], ended: Callable[[PendingRequest], None]) -> None:
        self.process = process
        self.owner = os.getpid()
        self.dead = False
        self.closed = False
        self._log = log
        self._ended = ended
        self._current: PendingRequest | None = None
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for work, name in ((self._read, "reader"), (self._write, "writer")):
            threading.Thread(target=work, name=f"llama-magic-{name}", daemon=True).start()

    @property
    def alive(self) -> bool:
        """True while requests can be sent, from the process that started it."""
        return not self.dead and self.owner == os.getpid() and self.process.alive

    def submit(self, pending: PendingRequest, request: Request) -> None:
        """Send a request; the one before must be over."""
        with self._lock:
            if not self.dead:
                self._current = pending
                self._outbox.put(Envelope(pending.number, request))
                return
        pending.events.put(WorkerDied())
        self._ended(pending)

    def cancel(self, pending: PendingRequest) -> None:
        """Tell the worker to stop a request."""
        self._outbox.put(Cancel(pending.number))

    def close(self) -> None:
        """End the worker because it is not wanted any more: its request is told so, and of no crash."""
        self.closed = not self.dead
        self.kill()

    def kill(self) -> None:
        """End the worker at once."""
        self.process.kill()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self.process.connection.send(message)
            except (OSError, ValueError):
                return  # the reader notices too, and tells those who wait

    def _read(self) -> None:
        # A worker that is killed can leave half a message, which unpickles to anything or nothing.
        with contextlib.suppress(Exception), receiving(self.process.connection) as receive:
            while True:
                for number, event in unpack_events(receive()):
                    if isinstance(event, Log):
                        self._log.append(event.text)
                    else:
                        self._deliver(number, event)
        with self._lock:
            self.dead = True
            current, self._current = self._current, None
        self._outbox.put(None)
        if current is not None:
            current.events.put(WorkerDied())
            self._ended(current)

    def _deliver(self, number: int, event: Any) -> None:
        current = self._current
        if current is None or current.number != number:
            return
        over = isinstance(event, (Result, Error))
        if over:
            with self._lock:
                self._current = None
        if not current.forgotten:
            current.events.put(event)
        if over:
            self._ended(current)
