"""What every measurement needs: the settings of the run, turns, and one timed generation."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_magic.engine.client import Client, EngineClient
from llama_magic.engine.protocol import Chunk, GenerateRequest, LoadRequest
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Completion, Message
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.models.resolve import resolve

__all__ = ["BUILD", "ROOT", "Setup", "Timed", "generate", "prompt", "turns", "worker"]

ROOT = Path(__file__).resolve().parents[1]
#: What is built or made for the measurements; not under version control.
BUILD = Path(os.environ.get("LLAMA_MAGIC_BUILD") or ROOT / "benchmarks" / ".build")


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings of a run.

    Attributes
    ----------
    threads
        Threads that everything computes with.
    quick
        Fewer rounds.
    tools
        Folder with llama.cpp's own tools, or None to look for them and build them where there are none.
    """

    threads: int
    quick: bool = False
    tools: Path | None = None

    def rounds(self, full: int, quick: int = 2) -> int:
        """Return how many rounds to make."""
        return quick if self.quick else full

    def spec(self, path: str | None = None, n_ctx: int | None = None) -> ModelSpec:
        """Return a model to load: SmolLM2 (Q4_1) unless another file is given."""
        options = LoadOptions(n_threads=self.threads, n_ctx=n_ctx)
        return ModelSpec(path or str(resolve("smollm2")), path or "smollm2", options)


@dataclass(frozen=True, slots=True)
class Timed:
    """One generation as the kernel saw it.

    Attributes
    ----------
    completion
        What came.
    first_s
        Seconds from the request to the first chunk.
    rest_s
        Seconds from the first chunk to the end.
    rest_tokens
        Tokens of all samples that came after the first of each.
    kernel_s
        Processor time of this process, all its threads, from the first chunk to the end.
    end
        `time.perf_counter` at the end.
    """

    completion: Completion
    first_s: float
    rest_s: float
    rest_tokens: int
    kernel_s: float
    end: float

    @property
    def tps(self) -> float:
        """Tokens per second after the first."""
        return self.rest_tokens / self.rest_s


def turns(first: Callable[[int], float], second: Callable[[int], float], rounds: int) -> list[tuple[float, float]]:
    """Measure two things in turns, AB BA AB …; both are called with the number of the round."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            b = second(number)
            a = first(number)
        else:
            a = first(number)
            b = second(number)
        pairs.append((a, b))
    return pairs


@contextlib.contextmanager
def worker(*specs: ModelSpec) -> Iterator[EngineClient]:
    """Start a worker, let it load models, and end it afterwards."""
    client = EngineClient()
    try:
        for spec in specs:
            client.request(LoadRequest(spec))
        yield client
    finally:
        client.close()


def prompt(number: int) -> str:
    """Return a short text to continue, another one for every number: the worker keeps what it has seen."""
    return f"In the year {1000 + number}, a traveller came to the town by the sea and began to tell a story."


def generate(
    client: Client,
    spec: ModelSpec,
    text: str | tuple[Message, ...],
    params: SamplingParams,
    *,
    conversation: str | None = None,
    each: Callable[[Chunk], None] | None = None,
) -> Timed:
    """Generate once. Text is continued as it is; messages make a chat; `each` gets the chunks."""
    plain, messages = (text, ()) if isinstance(text, str) else (None, text)
    request = GenerateRequest(spec, params, plain, messages, conversation)
    start = time.perf_counter()
    stream = client.open(request)
    first = cpu = 0.0
    for chunk in stream:
        if not first:
            first, cpu = time.perf_counter(), time.process_time()
        if each is not None:
            each(chunk)
    end, kernel_s = time.perf_counter(), time.process_time() - cpu
    completion = stream.completion
    assert completion is not None
    tokens = sum(len(sample.tokens) - 1 for sample in completion.samples)
    return Timed(completion, first - start, end - first, tokens, kernel_s, end)
