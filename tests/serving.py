"""A server over a model that is none: it says what its prompt holds, or what it was given to say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama_magic.engine.stopping import current_stopper
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Candidate, Chunk, Completion, Sample, Timings, TokenLogprob
from llama_magic.serving.app import Application
from llama_magic.serving.listening import Listener, open_socket
from llama_magic.serving.policy import Policy, make_policy
from llama_magic.serving.records import RequestLog
from llama_magic.serving.served import Prompt, ServedModel


class FakeGeneration:
    """One chunk a word; waits before the word "wait" until `release` is set or it is stopped."""

    def __init__(self, words: Sequence[str], params: SamplingParams, release: threading.Event) -> None:
        self.completion: Completion | None = None
        self.cancelled = False
        self._words = words
        self._params = params
        self._release = release

    def __iter__(self) -> Iterator[Chunk]:
        rows: list[TokenLogprob] = []
        for number, word in enumerate(self._words):
            if word == "wait ":
                self._wait()
            row = TokenLogprob(number, word, -0.5, (Candidate(number, word, -0.5), Candidate(9, "é\ufffd", -1.5)))
            rows.append(row)
            for index in range(self._params.samples):
                yield Chunk(word, (number,), (row,) if self._params.logprobs else (), index)
        text, tokens = "".join(self._words), tuple(range(len(self._words)))
        logprobs = tuple(rows) if self._params.logprobs else ()
        samples = tuple(Sample(text, tokens, "stop", logprobs) for _ in range(self._params.samples))
        count = len(tokens) * len(samples)
        timings = Timings(
            prompt_tokens=7, cached_tokens=2, prompt_s=0.1, generated_tokens=count, generation_s=0.01 * count
        )
        self.completion = Completion(text, tokens, "stop", timings, logprobs=logprobs, samples=samples)

    def _wait(self) -> None:
        stopper = current_stopper()
        assert stopper is not None
        stopper.attach(self._release.set)
        if stopper.asked:  # before it was attached
            self._release.set()
        assert self._release.wait(20)
        stopper.check()

    def cancel(self, timeout: float = 0.4) -> Completion:
        self.cancelled = True
        return Completion("", (), "interrupted", Timings())


class FakeServed:
    """What it was asked is in `asked`; `replies` are said in order, an exception is raised."""

    def __init__(self, replies: Sequence[Any] = ()) -> None:
        self.model = ServedModel("fake", ("other",), 1, 2048, 4096, 100, 3, 1000, 2000, "llama.cpp-0")
        self.replies = list(replies)
        self.asked: list[tuple[Prompt, SamplingParams]] = []
        self.streams: list[FakeGeneration] = []
        self.release = threading.Event()

    def open(self, prompt: Prompt, params: SamplingParams) -> FakeGeneration:
        self.asked.append((prompt, params))
        reply = self.replies.pop(0) if self.replies else "one two three"
        if isinstance(reply, BaseException):
            raise reply
        self.streams.append(FakeGeneration([word + " " for word in reply.split()], params, self.release))
        return self.streams[-1]

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text)), 0.5, -1.0] for text in texts]

    def tokenize(self, text: str, *, add_special: bool, special: bool) -> list[int]:
        return [1] * add_special + list(text.encode())

    def detokenize(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode()


class Running:
    """A server with a fake model on a free port of this machine."""

    def __init__(self, served: FakeServed, waiting: int = 4, **policy: Any) -> None:
        told: dict[str, Any] = {
            "host": "127.0.0.1", "api_key": None, "cors": (), "allowed_hosts": (), "max_body": 4 << 20, **policy
        }  # fmt: skip
        self.served = served
        self.policy: Policy = make_policy(**told)
        self.log = RequestLog()
        self.app = Application(served, self.policy, self.log, waiting)
        sock = open_socket("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self._listener = Listener(self.app.asgi, sock)

    def stop(self) -> None:
        self.served.release.set()
        self.app.close()
        self._listener.stop()


Start = Callable[..., Running]
