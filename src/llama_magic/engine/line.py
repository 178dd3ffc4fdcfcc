"""The line in front of a worker: requests from several threads take turns.

The worker answers one request at a time. Cells and the panel ask from different threads, so requests wait here, and not
in the worker: what waits can be taken back without killing what runs, and a worker that dies takes only one request
with it. A thread of the line alone changes it; the others post to it. So an interrupt, which raises KeyboardInterrupt
anywhere in the main thread, can not leave it half changed.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable

from llama_magic.engine.channel import Channel
from llama_magic.engine.protocol import Error, Progress, Request
from llama_magic.engine.stream import PendingRequest, WorkerDied
from llama_magic.errors import GenerationInterrupted

__all__ = ["Line"]

#: Seconds without work after which the line's thread ends; the next request starts another.
_IDLE_S = 10.0


class Line:
    """Requests in the order they came. It does not know the client: that ends when nobody holds it any more."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._posts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # Only the line's own thread changes these.
        self._waiting: deque[tuple[PendingRequest, Request, Callable[[], Channel]]] = deque()
        self._current: PendingRequest | None = None

    @property
    def busy(self) -> str:
        """What the worker is doing and for whom, in words; empty while it does nothing."""
        current = self._current
        return current.doing if current is not None and self._owner == os.getpid() else ""

    def join(self, pending: PendingRequest, request: Request, channel: Callable[[], Channel]) -> None:
        """Add a request at the end; `channel` gives the worker once it is its turn."""
        self._post(lambda: self._enqueue(pending, request, channel))

    def cancel(self, pending: PendingRequest) -> None:
        """Stop a request, or take it out of the line."""
        self._post(lambda: self._cancel(pending))

    def over(self, pending: PendingRequest) -> None:
        """Go on: the worker has answered a request, or died of it."""
        self._post(lambda: self._next(pending))

    def give_up(self) -> None:
        """Fail what waits: the client was closed."""
        if self._thread is not None and self._owner == os.getpid():
            self._post(self._give_up)

    def _post(self, work: Callable[[], None]) -> None:
        if self._owner != os.getpid():  # a forked child has neither the thread nor the worker
            self._lock, self._posts, self._owner = threading.Lock(), queue.SimpleQueue(), os.getpid()
            self._thread, self._current = None, None
            self._waiting.clear()
        with self._lock:
            self._posts.put(work)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="llama-magic-line", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                work = self._posts.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._posts.empty() and self._current is None:
                        self._thread = None
                        return
                continue
            work()
            del work  # it holds a request, which holds its client

    def _enqueue(self, pending: PendingRequest, request: Request, channel: Callable[[], Channel]) -> None:
        self._waiting.append((pending, request, channel))
        self._advance()
        self._tell(pending)

    def _advance(self) -> None:
        while self._current is None and self._waiting:
            pending, request, start = self._waiting.popleft()
            pending.starting = True
            try:
                channel = start()
            except Exception as exc:  # noqa: BLE001 - it is raised where the result is waited for
                pending.events.put(Error(exc))
                continue
            finally:
                pending.starting = False
            if pending.forgotten:  # it was stopped while its worker started
                continue
            self._current = pending
            pending.worker = channel
            channel.submit(pending, request)

    def _tell(self, *some: PendingRequest) -> None:
        """Say what they wait for to those who do."""
        waiting = {pending.number for pending, _, _ in self._waiting}
        for pending in some:
            if pending.number in waiting and self._current is not None:
                pending.events.put(Progress("wait", None, f"waiting: {self._current.doing}"))

    def _next(self, pending: PendingRequest) -> None:
        if self._current is pending:
            self._current = None
            self._advance()
            self._tell(*(waiting for waiting, _, _ in self._waiting))

    def _cancel(self, pending: PendingRequest) -> None:
        for place, (waiting, _, _) in enumerate(self._waiting):
            if waiting is pending:
                del self._waiting[place]
                pending.events.put(Error(GenerationInterrupted()))
                return
        if isinstance(pending.worker, Channel):
            pending.worker.cancel(pending)

    def _give_up(self) -> None:
        while self._waiting:
            self._waiting.popleft()[0].events.put(WorkerDied())
