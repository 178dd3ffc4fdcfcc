"""What a generation yields: chunks while it runs, one completion at its end."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from llama_magic.pickling import by_call

__all__ = ["Candidate", "Chunk", "Completion", "Message", "Receipt", "Sample", "Timings", "TokenLogprob"]


class Message(NamedTuple):
    """One message of a chat: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


class Candidate(NamedTuple):
    """A token that could have been chosen, with its natural-log probability."""

    id: int
    text: str
    logprob: float


class TokenLogprob(NamedTuple):
    """A chosen token, its natural-log probability under the raw distribution, and the likeliest tokens there."""

    id: int
    text: str
    logprob: float
    top: tuple[Candidate, ...]


class Chunk(NamedTuple):
    """What has gathered since the last chunk: one token or more.

    Attributes
    ----------
    text
        New text; never half a character, and never the beginning of a stop string.
    tokens
        New token ids. Their text may come with a later chunk.
    logprobs
        One entry per token when asked for, else empty.
    index
        Which sample the chunk belongs to, from 0.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0  # type: ignore[assignment] # a tuple has a method of that name, which nobody misses here


@by_call
@dataclass(frozen=True, slots=True)
class Timings:
    """Counts of tokens, and seconds.

    Attributes
    ----------
    prompt_tokens
        Tokens in the whole prompt.
    cached_tokens
        Those of them that the cache already held.
    prompt_s
        Seconds spent on the others.
    generated_tokens
        Tokens generated, of all samples.
    generation_s
        Seconds from the end of the prompt to the last token.
    time_to_first_token_s
        Seconds from the request's arrival in the worker to the first token.
    load_s
        Seconds spent loading the model for this request; 0.0 if it was loaded.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_s: float = 0.0
    generated_tokens: int = 0
    generation_s: float = 0.0
    time_to_first_token_s: float = 0.0
    load_s: float = 0.0

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens processed per second (those that the cache did not hold)."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def generation_tps(self) -> float:
        """Generated tokens per second."""
        return self.generated_tokens / self.generation_s if self.generation_s > 0 else 0.0

    def to_dict(self) -> dict[str, float]:
        """Return counts, seconds and the two rates as a plain dict."""
        return {name: getattr(self, name) for name in TIMING_NAMES}


#: The keys of `Timings.to_dict`, in its order.
TIMING_NAMES = (
    "prompt_tokens", "cached_tokens", "prompt_s", "prompt_tps", "generated_tokens", "generation_s", "generation_tps",
    "time_to_first_token_s", "load_s",
)  # fmt: skip


@by_call
@dataclass(frozen=True, slots=True)
class Receipt:
    """Everything needed to know, and to repeat, how an answer came about.

    Attributes
    ----------
    model, path, sha256, ftype
        What was asked for, the file, its hash, its quantization.
    params, options
        Sampling parameters and load options in force; `params["seed"]` is the seed used.
    devices, n_threads, n_ctx
        Where and with how many threads it ran, and the context size.
    timings
        Counts and seconds, with the two rates.
    llama_cpp_commit, llama_cpp_python, llama_magic
        Versions.
    llama_cli
        The equivalent `llama-cli` line.
    template
        "chat" where the model's chat template was used, "completion" where not.
    place
        Where it was computed, in words: "CPU", "CPU with BLAS", "CUDA0 20 of 31 layers, CPU 11 of 31 layers".
    """

    model: str
    path: str
    sha256: str
    ftype: str
    params: dict[str, Any]
    options: dict[str, Any]
    devices: tuple[str, ...]
    n_threads: int
    n_ctx: int
    timings: dict[str, float]
    llama_cpp_commit: str
    llama_cpp_python: str
    llama_magic: str
    llama_cli: str
    template: str
    place: str = ""

    @property
    def seed(self) -> int:
        """The seed that was used."""
        return int(self.params["seed"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain, JSON-ready dict."""
        return asdict(self)


@by_call
@dataclass(frozen=True, slots=True)
class Sample:
    """One of several continuations decoded side by side."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] = ()
    parsed: Any = None


@by_call
@dataclass(frozen=True, slots=True)
class Completion:
    """A finished (or interrupted) generation.

    Attributes
    ----------
    text
        The text, of the first sample where there are several.
    tokens
        Its token ids.
    finish_reason
        "stop" (the model ended, or a stop string came), "length" (`max_tokens`), "context" (the context is
        full) or "interrupted".
    timings, receipt
        How long it took and how it came about.
    parsed
        The parsed object when a schema was given and the text is complete.
    logprobs
        One entry per token when asked for.
    samples
        All samples, the first included.
    notes
        Sentences a person should see, such as "this model has no chat template …".
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    timings: Timings
    receipt: Receipt | None = None
    parsed: Any = None
    logprobs: tuple[TokenLogprob, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 200 else self.text[:200] + "…"
        more = f", samples={len(self.samples)}" if len(self.samples) > 1 else ""
        return f"Completion({text!r}, tokens={len(self.tokens)}, finish_reason={self.finish_reason!r}{more})"

    def _repr_html_(self) -> str:
        return f'<pre style="white-space:pre-wrap">{html.escape(self.text)}</pre>'

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self)
