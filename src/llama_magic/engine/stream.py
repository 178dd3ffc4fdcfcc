"""What the kernel holds while a worker answers: the events of one request."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from llama_magic.engine.protocol import Chunk, Error, Event, Log, Progress, Result
from llama_magic.engine.stopping import current_stopper
from llama_magic.errors import EngineCrashed, EngineProtocolError, GenerationInterrupted, LlamaMagicError
from llama_magic.inference.results import Completion, Sample, Timings

__all__ = ["GenerationStream", "PendingRequest", "Transport", "WorkerDied", "end_of"]

#: Seconds that a cancelled request may take to end by itself before the worker is killed.
CANCEL_S: Final = 0.4

#: Waiting in slices lets a KeyboardInterrupt through on systems where a lock can not be interrupted.
_SLICE_S: Final = 0.25


class WorkerDied:
    """Put in place of an event when the worker is gone."""


class _Wake:
    """Put among the events when the work is stopped from another thread."""


class Transport(Protocol):
    """What a pending request asks of the client that sent it."""

    def send_cancel(self, pending: PendingRequest) -> None:
        """Tell the engine to stop the request."""

    def forget(self, pending: PendingRequest) -> None:
        """Deliver no more of its events."""

    def kill(self, pending: PendingRequest) -> None:
        """End the engine that does not answer."""

    def crashed(self, pending: PendingRequest) -> EngineCrashed:
        """Return the error that says why the engine died."""


class PendingRequest:
    """One request on its way: its events arrive in a queue.

    Attributes
    ----------
    number, doing
        Its number, and what it does for whom, in words.
    worker
        What answers it; None while it waits for its turn.
    forgotten, starting
        Nobody reads its events any more; its worker is being started.
    """

    def __init__(self, client: Transport, number: int, worker: object = None, doing: str = "") -> None:
        self.number = number
        self.doing = doing
        self.worker = worker
        self.forgotten = False
        self.starting = False
        self.events: queue.SimpleQueue[Event | WorkerDied | _Wake] = queue.SimpleQueue()
        self._client = client
        self._stopper = current_stopper()
        if self._stopper is not None:
            self._stopper.attach(self._wake)
            try:
                self._stopper.check()
            except KeyboardInterrupt:
                self._stopper.detach(self._wake)
                raise

    def _wake(self) -> None:
        self.events.put(_Wake())

    def next_event(self, deadline: float | None = None) -> Event | None:
        """Return the next event, None when `deadline` (of `time.monotonic`) passes before.

        Raises
        ------
        EngineCrashed
            The worker died.
        KeyboardInterrupt
            The work was stopped, see `Stopper`.
        """
        wait = _SLICE_S
        while True:
            if deadline is not None:
                wait = max(0.0, min(_SLICE_S, deadline - time.monotonic()))
            try:
                event = self.events.get(True, wait)
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                continue
            if isinstance(event, WorkerDied):
                raise self._client.crashed(self)
            if isinstance(event, _Wake):
                if self._stopper is not None:
                    self._stopper.check()
                continue
            return event

    def cancel(self) -> None:
        """Ask the worker to stop this request."""
        self._client.send_cancel(self)

    def done(self) -> None:
        """Forget the request: its events are over."""
        if self._stopper is not None:
            self._stopper.detach(self._wake)
        self._client.forget(self)

    def abandon(self) -> None:
        """Kill the worker: it does not answer."""
        self._client.kill(self)


def end_of(event: Event) -> Any:
    """Return the value of a `Result`; raise what an `Error` holds."""
    if isinstance(event, Result):
        return event.value
    if isinstance(event, Error):
        if event.traceback and not isinstance(event.error, LlamaMagicError):
            event.error.add_note(event.traceback) if hasattr(event.error, "add_note") else None
        raise event.error
    raise EngineProtocolError(f"unexpected event {event!r}")


class GenerationStream(Iterator[Chunk]):
    """The chunks of one generation, as they arrive.

    Attributes
    ----------
    completion
        Set after the last chunk, or by `cancel`.
    on_progress
        Called with every `Progress`; may be set before iterating.

    Parameters
    ----------
    pending
        The request.
    finish
        Applied to the completion before it is set.
    """

    def __init__(
        self, pending: PendingRequest, finish: Callable[[Completion], Completion] = lambda completion: completion
    ) -> None:
        self.completion: Completion | None = None
        self.on_progress: Callable[[Progress], None] | None = None
        self._pending: PendingRequest | None = pending
        self._finish = finish
        self._chunks: list[Chunk] = []

    def __iter__(self) -> GenerationStream:
        return self

    @property
    def running(self) -> bool:
        """True until the last chunk was read, an error was raised, or it was cancelled."""
        return self._pending is not None

    def __next__(self) -> Chunk:
        while self._pending is not None:
            try:
                event = self._pending.next_event()
            except LlamaMagicError:
                self._end()
                raise
            if isinstance(event, Chunk):
                self._chunks.append(event)
                return event
            if isinstance(event, Progress):
                if self.on_progress is not None:
                    self.on_progress(event)
            elif isinstance(event, (Result, Error)):
                self._end()
                self.completion = self._finish(end_of(event))
        raise StopIteration

    def _end(self) -> None:
        if self._pending is not None:
            self._pending.done()
            self._pending = None

    def cancel(self, timeout: float = CANCEL_S) -> Completion:
        """Stop now and return what there is; never raises. A worker that does not stop in time is killed."""
        pending = self._pending
        if pending is not None:
            pending.cancel()
            deadline = time.monotonic() + timeout
            try:
                self._drain(pending, deadline)
            except LlamaMagicError:
                self._end()
            if self._pending is not None:
                pending.abandon()
                self._end()
        if self.completion is None:
            self.completion = self._partial()
        return self.completion

    def _drain(self, pending: PendingRequest, deadline: float) -> None:
        while True:
            event = pending.next_event(deadline)
            if event is None:
                return
            if isinstance(event, Chunk):
                self._chunks.append(event)
            elif not isinstance(event, (Progress, Log)):
                self._end()
                try:
                    self.completion = self._finish(end_of(event))
                except (GenerationInterrupted, LlamaMagicError):
                    return
                return

    def _partial(self) -> Completion:
        """Build a completion from the chunks that arrived."""
        count = max((chunk.index for chunk in self._chunks), default=0) + 1
        samples = []
        for index in range(count):
            mine = [chunk for chunk in self._chunks if chunk.index == index]
            samples.append(
                Sample(
                    "".join(chunk.text for chunk in mine),
                    tuple(token for chunk in mine for token in chunk.tokens),
                    "interrupted",
                    tuple(row for chunk in mine for row in chunk.logprobs),
                )
            )
        first = samples[0]
        generated = sum(len(sample.tokens) for sample in samples)
        return Completion(
            text=first.text,
            tokens=first.tokens,
            finish_reason="interrupted",
            timings=Timings(generated_tokens=generated),
            logprobs=first.logprobs,
            samples=tuple(samples),
        )

    def close(self) -> None:
        """Stop if still running."""
        if self._pending is not None:
            self.cancel()

    def map(self, finish: Callable[[Completion], Completion]) -> GenerationStream:
        """Apply `finish` to the completion once it is there; returns this stream."""
        before = self._finish
        self._finish = lambda completion: finish(before(completion))
        return self

    def collect(self) -> Completion:
        """Read to the end and return the completion.

        Raises
        ------
        GenerationInterrupted
            The user interrupted; the partial completion is in it.
        """
        try:
            for _ in self:
                pass
        except KeyboardInterrupt:
            raise GenerationInterrupted(self.cancel()) from None
        if self.completion is None:
            raise EngineProtocolError("the stream ended without a completion")
        return self.completion
