"""An engine client without an engine: replies from a queue, and a record of what was asked.

`ThreadWorker` stands one level deeper: it takes the place of the worker process under a real `EngineClient`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from llama_magic.engine.protocol import (
    Cancel,
    Chunk,
    Error,
    GenerateRequest,
    LoadRequest,
    Progress,
    Request,
    Result,
    StatusRequest,
    UnloadRequest,
    pack_events,
)
from llama_magic.errors import GenerationInterrupted
from llama_magic.inference.results import Completion, Receipt, Sample, Timings
from llama_magic.models.options import ModelInfo, ModelSpec


def model_info(spec: ModelSpec) -> ModelInfo:
    return ModelInfo(
        ref=spec.ref, path=spec.path, name="fake", architecture="llama", description="fake 135M Q4_1", ftype="Q4_1",
        n_params=134_515_008, size=98_000_000, n_ctx=spec.options.n_ctx or 2048, n_ctx_train=2048, n_vocab=49152,
        n_layer=30, n_embd=576, has_chat_template=True, devices=("CPU",), n_threads=2, n_threads_batch=2,
        sha256="sha256:00", load_s=0.1, memory=120_000_000, llama_cpp_python="0.3.36", llama_cpp_commit="0c1e570",
    )  # fmt: skip


def receipt(request: GenerateRequest, timings: Timings) -> Receipt:
    return Receipt(
        model=request.spec.ref, path=request.spec.path, sha256="sha256:00", ftype="Q4_1",
        params=request.params.to_dict(), options=request.spec.options.to_dict(), devices=("CPU",), n_threads=2,
        n_ctx=request.spec.options.n_ctx or 2048, timings={"generation_s": timings.generation_s},
        llama_cpp_commit="0c1e570", llama_cpp_python="0.3.36", llama_magic="0", llama_cli="",
        template="completion" if request.prompt is not None else "chat",
    )  # fmt: skip


def story(tokens: int, pause_s: float = 0.0) -> Iterator[str]:
    """Give so many tokens of Markdown at a pace: paragraphs, headings, lists and code."""
    pause, places = threading.Event(), itertools.count()
    kinds = ["## Chapter\n\n", "", "- one\n- two\n\n", "", "```python\nprint(1)\n```\n\n", ""]
    for place in itertools.islice(places, tokens):
        if pause_s:
            pause.wait(pause_s)
        yield f"\n\n{kinds[place // 60 % len(kinds)]}" if place % 60 == 59 else f"word{place % 97} "


class FakeStream(Iterator[Chunk]):
    """Like `GenerationStream`: one chunk a piece; an exception among the pieces is raised there."""

    def __init__(self, request: GenerateRequest, pieces: Iterable[Any]) -> None:
        self.completion: Completion | None = None
        self.on_progress: Callable[[Progress], None] | None = None
        self.cancelled = 0
        self.running = True
        self._request = request
        self._pieces = iter(pieces)
        self._text = ""
        self._tokens: tuple[int, ...] = ()

    def __next__(self) -> Chunk:
        if self.completion is not None:
            raise StopIteration
        if not self._tokens and self.on_progress is not None:
            self.on_progress(Progress("load", 0.5, "loading fake"))
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                self.running = False
                raise piece
            token = len(self._tokens)
            self._text += piece
            self._tokens += (token,)
            return Chunk(piece, (token,))
        self._complete("stop")
        raise StopIteration

    def _complete(self, reason: str) -> None:
        self.running = False
        count = len(self._tokens)
        timings = Timings(prompt_tokens=7, generated_tokens=count, generation_s=0.01 * count)
        samples: tuple[Sample, ...] = ()
        if self._request.params.samples > 1:
            sample = Sample(self._text, self._tokens, reason)
            samples = (sample,) * self._request.params.samples
        self.completion = Completion(
            self._text, self._tokens, reason, timings, receipt(self._request, timings), samples=samples
        )

    def cancel(self, timeout: float = 0.4) -> Completion:
        self.cancelled += 1
        if self.completion is None:
            self._complete("interrupted")
        assert self.completion is not None
        return self.completion

    def close(self) -> None:
        self.cancel()


class FakeClient:
    """Replies in order: a string comes in small chunks, a list as its pieces, an exception is raised.

    Without a reply left, the answer is "ok". An exception inside a list is raised at its place.
    """

    def __init__(self, replies: Iterable[Any] = ()) -> None:
        self.replies: deque[Any] = deque(replies)
        self.requests: list[Request] = []
        self.streams: list[FakeStream] = []
        self.loaded: list[ModelSpec] = []
        self.alive = False
        self.pid: int | None = None

    @property
    def generated(self) -> list[GenerateRequest]:
        return [request for request in self.requests if isinstance(request, GenerateRequest)]

    def request(self, request: Request, on_progress: Callable[[Progress], None] | None = None) -> Any:
        self.requests.append(request)
        self.alive = True
        if isinstance(request, LoadRequest):
            if self.replies and isinstance(self.replies[0], BaseException):
                raise self.replies.popleft()
            if on_progress is not None:
                on_progress(Progress("load", 0.5, "loading fake"))
            self.loaded.append(request.spec)
            return model_info(request.spec)
        if isinstance(request, UnloadRequest):
            gone = [spec for spec in self.loaded if request.path in (None, spec.path)]
            self.loaded = [spec for spec in self.loaded if spec not in gone]
            return tuple(dict.fromkeys(spec.path for spec in gone))
        if isinstance(request, StatusRequest):
            return tuple(model_info(spec) for spec in self.loaded)
        return None

    def open(self, request: GenerateRequest) -> Any:
        self.requests.append(request)
        self.alive = True
        if request.spec not in self.loaded:
            self.loaded.append(request.spec)
        reply = self.replies.popleft() if self.replies else "ok"
        if isinstance(reply, BaseException):
            reply = [reply]
        elif isinstance(reply, str):
            reply = [reply[i : i + 3] for i in range(0, len(reply), 3)]
        stream = FakeStream(request, reply)
        self.streams.append(stream)
        return stream

    def close(self) -> None:
        self.alive = False

    def restart(self) -> None:
        self.alive = True


class ThreadWorker:
    """A worker on a thread of this process, for a real `EngineClient`: its `start_worker`.

    A generation sends "word " until `let_go` is set, its tokens are spent, or it is cancelled; any other request is
    answered by None. `started` counts the workers that were made.
    """

    started = 0

    def __init__(self) -> None:
        type(self).started += 1
        self.pid = 100_000 + self.started
        self.alive = True
        self.deaf = False
        self.let_go = threading.Event()
        self.answered: list[Request] = []
        self.connection: Connection
        self.connection, self._theirs = Pipe(duplex=True)
        self._cancelled: set[int] = set()
        self._todo: deque[tuple[int, Request]] = deque()
        self._wake = threading.Condition()
        for work in (self._read, self._answer):
            threading.Thread(target=work, daemon=True).start()

    def exit_code(self, timeout: float = 2.0) -> int | None:
        return None if self.alive else -9

    def output(self) -> list[str]:
        return []

    def cause(self) -> str:
        return "The worker process was killed."

    def kill(self) -> None:
        self.alive = False
        with self._wake:
            self._wake.notify_all()
        # Closing an end does not wake who reads from it; hanging up does.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._theirs.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError, TypeError):
            while True:
                message = self._theirs.recv()
                with self._wake:
                    if isinstance(message, Cancel):
                        self._cancelled.add(message.number)
                    else:
                        self._todo.append((message.number, message.body))
                    self._wake.notify_all()

    def _answer(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._todo or not self.alive)
                    if not self.alive:
                        return
                    number, request = self._todo.popleft()
                self.answered.append(request)
                self._theirs.send_bytes(pack_events([(number, self._end(number, request))]))

    def _end(self, number: int, request: Request) -> Result | Error:
        if not isinstance(request, GenerateRequest):
            return Result(() if isinstance(request, StatusRequest) else None)
        count = 0
        while count != request.params.max_tokens and not self.let_go.is_set():
            self._theirs.send_bytes(pack_events([(number, Chunk("word ", (count,)))]))
            count += 1
            with self._wake:
                if self._wake.wait_for(lambda: (number in self._cancelled and not self.deaf) or not self.alive, 0.01):
                    break
        if not self.alive:
            raise OSError("killed")
        stopped = number in self._cancelled
        if stopped and not count:
            return Error(GenerationInterrupted())
        timings = Timings(prompt_tokens=7, generated_tokens=count, generation_s=0.01 * count)
        return Result(
            Completion("word " * count, tuple(range(count)), "interrupted" if stopped else "length", timings,
                       receipt(request, timings))
        )  # fmt: skip
