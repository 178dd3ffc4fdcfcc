"""What kernel and worker say to each other.

One request is answered by a stream of events: any number of `Progress`, `Log` and
`Chunk`, then exactly one `Result` or `Error`. Nothing here can be changed, all is made of
plain values, and pickles. Nothing here imports numpy or llama_cpp.
"""

from __future__ import annotations

import contextlib
import marshal
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from llama_magic.inference.params import PARAM_NAMES, SamplingParams
from llama_magic.inference.results import TIMING_NAMES, Chunk, Completion, Message, Receipt, Sample, Timings
from llama_magic.models.options import OPTION_NAMES, ModelSpec
from llama_magic.pickling import by_call, values_of
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


#: Marshal's layout without references, how pickled data begins, and the length of a chunk with its request's number.
_MARSHAL, _PICKLE, _CHUNK = 2, b"\x80", 2
_new: Any = tuple.__new__

#: The dicts of a receipt, by the place of their field, and the keys that they usually have: then these stay here.
_NAMED = tuple(
    ([each.name for each in fields(Receipt)].index(name), names)
    for name, names in (("params", PARAM_NAMES), ("options", OPTION_NAMES), ("timings", TIMING_NAMES))
)


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

    What a generation yields is bare tuples in them, for marshal. Pickle looks up classes, which takes longer than all
    the rest: the weights of a model pass through the processor's caches between two chunks, and leave nothing there.
    """
    bare = [(number, *values) for number, event in events if (values := _bare(event)) is not None]
    if len(bare) == len(events):
        with contextlib.suppress(ValueError):  # a value that marshal does not take
            return marshal.dumps(bare, _MARSHAL)
    return pickle.dumps([Envelope(number, event) for number, event in events], pickle.HIGHEST_PROTOCOL)


def _bare(event: Event) -> tuple[Any, ...] | None:
    """Return the plain values of a chunk, or of a completion of one sample; None for anything else."""
    if type(event) is Chunk:
        return None if event.logprobs else (tuple(event),)
    if type(event) is not Result or type(event.value) is not Completion:
        return None
    made = event.value
    if made.logprobs or made.parsed is not None or made.receipt is None or len(made.samples) != 1:
        return None
    receipt = list(values_of(made.receipt))
    for at, names in _NAMED:
        if tuple(receipt[at]) == names:
            receipt[at] = tuple(receipt[at].values())
    return made.text, made.tokens, made.finish_reason, values_of(made.timings), receipt, made.notes


def unpack_events(data: bytes) -> list[tuple[int, Any]]:
    """Return what `pack_events` packed: numbers and events."""
    if data[:1] == _PICKLE:
        return [(message.number, message.body) for message in pickle.loads(data)]  # noqa: S301 - from our own worker
    events: list[tuple[int, Any]] = []
    for values in marshal.loads(data):  # noqa: S302 - from our own worker
        number = values[0]
        # A function of its own, a comprehension, `Chunk(…)`: each would cost some microseconds here.
        events.append((number, _new(Chunk, values[1])) if len(values) == _CHUNK else (number, _completed(*values[1:])))
    return events


def _completed(
    text: str,
    tokens: tuple[int, ...],
    finish: str,
    timings: tuple[Any, ...],
    receipt: list[Any],
    notes: tuple[str, ...],
) -> Result:
    for at, names in _NAMED:
        if type(receipt[at]) is tuple:
            receipt[at] = dict(zip(names, receipt[at], strict=True))
    samples = (Sample(text, tokens, finish),)
    return Result(Completion(text, tokens, finish, Timings(*timings), Receipt(*receipt), None, (), samples, notes))
