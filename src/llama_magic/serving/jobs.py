"""Work of a request: on a thread of its own, told to the server's loop, and stopped from there."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_magic.engine.stopping import Stopper, asking_as, stopping
from llama_magic.errors import GenerationInterrupted
from llama_magic.inference.results import Chunk, Completion
from llama_magic.serving.orders import Order
from llama_magic.serving.problems import Refusal
from llama_magic.serving.served import Served

__all__ = ["Done", "Failed", "Gate", "Job", "embed", "generate"]

#: Seconds that the worker may take to end what nobody waits for any more, before it is killed.
_CANCEL_S = 5.0
#: Texts that are embedded at once: then others have their turn.
_EMBED_STEP = 8


@dataclass(frozen=True, slots=True)
class Done:
    """The end of work that worked."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of work that did not."""

    error: BaseException


class Gate:
    """Lets a bounded number of requests in: one that is answered and those that wait.

    Parameters
    ----------
    waiting
        How many may wait.
    """

    def __init__(self, waiting: int) -> None:
        self._lock = threading.Lock()
        self._places = waiting + 1
        self._inside = 0
        self._mean_s = 2.0  # of what was done so far, the last ones counting most

    @property
    def inside(self) -> int:
        """Requests that are answered or wait."""
        return self._inside

    def enter(self) -> None:
        """Take a place.

        Raises
        ------
        Refusal
            There is none.
        """
        with self._lock:
            if self._inside >= self._places:
                wait = str(min(60, max(1, round(self._mean_s * self._inside))))
                raise Refusal(
                    503,
                    f"{self._inside} requests are answered or wait already: try again in {wait} s",
                    code="queue_full",
                    kind="server_error",
                    headers={"Retry-After": wait},
                )
            self._inside += 1

    def leave(self, seconds: float) -> None:
        """Give the place back after so many seconds."""
        with self._lock:
            self._inside -= 1
            self._mean_s += 0.3 * (seconds - self._mean_s)


class Job:
    """One piece of work; `events` are what it tells, the last one `Done` or `Failed`.

    Parameters
    ----------
    work
        Does it; gets a function that tells something.
    gate
        Where it has a place, which it gives back at its end.
    """

    def __init__(self, work: Callable[[Callable[[Any], None]], Any], gate: Gate) -> None:
        self._loop = asyncio.get_running_loop()
        self._gate = gate
        self._stopper = Stopper()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        gate.enter()
        # A daemon: a kernel that ends waits for no client.
        self._thread = threading.Thread(target=self._run, args=(work,), name="llama-magic-serving", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop it: its end comes soon."""
        self._stopper.stop()

    def _run(self, work: Callable[[Callable[[Any], None]], Any]) -> None:
        started = time.monotonic()
        end: Done | Failed
        try:
            with stopping(self._stopper), asking_as("the server"):
                end = Done(work(self._tell))
        except KeyboardInterrupt:
            end = Failed(GenerationInterrupted())
        except Exception as exc:  # noqa: BLE001 - it is told to the client
            end = Failed(exc)
        finally:
            self._gate.leave(time.monotonic() - started)
        self._tell(end)

    def _tell(self, event: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the server has ended meanwhile
            self._stopper.stop()

    async def result(self) -> Any:
        """Return what the work gives; raises what it raised."""
        while True:
            event = await self.events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                return event.value


def generate(served: Served, order: Order, tell: Callable[[tuple[int, Chunk]], None]) -> list[Completion]:
    """Answer the prompts of an order one after the other, telling the prompt's number with each chunk."""
    completions = []
    for number, prompt in enumerate(order.prompts):
        stream = served.open(prompt, order.params)
        try:
            for chunk in stream:
                tell((number, chunk))
        except BaseException:
            stream.cancel(_CANCEL_S)
            raise
        done = stream.completion
        if done is None or done.finish_reason == "interrupted":
            raise GenerationInterrupted(done)
        completions.append(done)
    return completions


def embed(served: Served, texts: Sequence[str]) -> tuple[list[list[float]], int]:
    """Return the embeddings of texts, and the tokens in all of them."""
    vectors: list[list[float]] = []
    tokens = 0
    for at in range(0, len(texts), _EMBED_STEP):
        part = texts[at : at + _EMBED_STEP]
        vectors += served.embed(part)
        tokens += sum(len(served.tokenize(text, add_special=True, special=False)) for text in part)
    return vectors, tokens
