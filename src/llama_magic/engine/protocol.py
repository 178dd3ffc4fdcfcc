"""What kernel and worker say to each other.

One request is answered by a stream of events: any number of `Progress`, `Log` and
`Chunk`, then exactly one `Result` or `Error`. Everything here is a frozen dataclass of
plain values, and pickles. Nothing here imports numpy or llama_cpp.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Chunk, Message
from llama_magic.models.options import ModelSpec
from llama_magic.pickling import by_call
from llama_magic.progress import Progress

__all__ = [
    "Cancel",
    "Chunk",
    "DetokenizeRequest",
    "EmbedRequest",
    "Envelope",
    "Error",
    "Event",
    "ForgetRequest",
    "GenerateRequest",
    "LoadRequest",
    "Log",
    "NextTokenRequest",
    "Progress",
    "Request",
    "RestoreStateRequest",
    "Result",
    "SaveStateRequest",
    "StatusRequest",
    "TokenizeRequest",
    "UnloadRequest",
    "pack_events",
    "unpack_events",
]


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Load a model; the result is a `ModelInfo`. `force` skips the memory check."""

    spec: ModelSpec
    force: bool = False


@dataclass(frozen=True, slots=True)
class UnloadRequest:
    """Unload one model, or all when `path` is None; the result is the tuple of unloaded paths."""

    path: str | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Generate text; the result is a `Completion` (its receipt without the `llama_cli` line).

    Attributes
    ----------
    spec
        The model; loaded first when it is not.
    params
        How to sample.
    prompt
        Text to continue as it is, or None when `messages` are given.
    messages
        A chat, put through the model's template.
    conversation
        Key under which the cache stays warm; None for a request that stands alone, whose
        result then depends on nothing that ran before it.
    force
        Skip the memory check, should the model have to be loaded.
    """

    spec: ModelSpec
    params: SamplingParams
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    conversation: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class NextTokenRequest:
    """Ask how likely each token is to come next, before any sampler; the result is a `NextToken`.

    Attributes
    ----------
    spec, prompt, messages, conversation
        As of a `GenerateRequest`. The conversation's cache is read and stays as it is.
    tokens
        Tokens of the answer that are there already.
    count
        How many of the likeliest tokens come with their text.
    """

    spec: ModelSpec
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    conversation: str | None = None
    tokens: tuple[int, ...] = ()
    count: int = 200


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """Tokenize text; the result is a tuple of ids. `special` reads ``<|im_start|>`` and the like as one token."""

    spec: ModelSpec
    text: str
    add_special: bool = False
    special: bool = True


@dataclass(frozen=True, slots=True)
class DetokenizeRequest:
    """Turn token ids into text."""

    spec: ModelSpec
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Embed texts; the result is a tuple of tuples of floats, each of unit length."""

    spec: ModelSpec
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """Drop the warm cache of one conversation, or of all when None; the result is None."""

    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class SaveStateRequest:
    """Write a conversation with the state of its cache; the result is a `SavedHeader`.

    What the cache does not hold of it is processed first.

    Attributes
    ----------
    spec, force
        The model, and whether to skip the memory check, should it have to be loaded.
    conversation
        Key of the cache.
    messages
        The conversation so far.
    name, turns, text
        What goes into the file: its name, the number of turns, all of it as JSON.
    path
        An empty file that is there; the kernel gives it its final name.
    """

    spec: ModelSpec
    conversation: str
    messages: tuple[Message, ...]
    name: str
    turns: int
    text: bytes
    path: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class RestoreStateRequest:
    """Put the state that `SaveStateRequest` wrote into a conversation's cache; the result is its `SavedHeader`."""

    spec: ModelSpec
    conversation: str
    path: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Ask what is loaded; the result is a tuple of `ModelInfo`, the most recently used last."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the request of this number (the kernel's only message that is not a request)."""

    number: int


@dataclass(frozen=True, slots=True)
class Log:
    """A line of llama.cpp's log. `level` is "debug", "info", "warning" or "error"."""

    level: str
    text: str


@by_call
@dataclass(frozen=True, slots=True)
class Result:
    """The end of a request that worked."""

    value: Any


@dataclass(frozen=True, slots=True)
class Error:
    """The end of a request that failed: a `LlamaMagicError`, or a bug with its traceback as text."""

    error: Exception
    traceback: str = ""


Request: TypeAlias = (
    LoadRequest
    | UnloadRequest
    | GenerateRequest
    | NextTokenRequest
    | TokenizeRequest
    | DetokenizeRequest
    | EmbedRequest
    | ForgetRequest
    | SaveStateRequest
    | RestoreStateRequest
    | StatusRequest
)
Event: TypeAlias = Progress | Log | Chunk | Result | Error


@by_call
@dataclass(frozen=True, slots=True)
class Envelope:
    """A request or an event with the number of the request it belongs to."""

    number: int
    body: Request | Event


def pack_events(events: Sequence[tuple[int, Event]]) -> bytes:
    """Return events, each with the number of its request, as bytes.

    A chunk is a bare tuple in them. Looking up its classes takes longer than all the rest of reading it: the weights of
    a model pass through the processor's caches between two chunks, and leave nothing there.
    """
    return pickle.dumps([_bare(number, event) for number, event in events], pickle.HIGHEST_PROTOCOL)


def _bare(number: int, event: Event) -> object:
    if type(event) is Chunk and not event.logprobs:
        return number, event.text, event.tokens, event.index
    return Envelope(number, event)


def unpack_events(data: bytes) -> list[tuple[int, Any]]:
    """Return what `pack_events` packed: numbers and events."""
    messages: list[Any] = pickle.loads(data)  # noqa: S301 - from our own worker
    return [
        (message[0], Chunk(message[1], message[2], (), message[3]))
        if type(message) is tuple
        else (message.number, message.body)
        for message in messages
    ]
