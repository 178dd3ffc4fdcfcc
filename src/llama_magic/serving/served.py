"""What the server needs of a model. It knows no more of it: `api` and tests put theirs in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Chunk, Completion, Message

__all__ = ["Prompt", "Served", "ServedModel", "Stream"]

#: Text to continue, or messages to answer.
Prompt = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What clients may know of a model; no path is among it.

    Attributes
    ----------
    name
        What it is called in requests and replies.
    other_names
        What else a request may call it.
    created
        When it was loaded, in seconds since 1970.
    n_ctx, n_ctx_train
        Tokens that the context holds, and that the model was trained for.
    n_vocab, n_embd, n_params, size
        Tokens in the vocabulary, length of an embedding, parameters, bytes of weights.
    fingerprint
        Version of llama.cpp, for ``system_fingerprint``.
    """

    name: str
    other_names: tuple[str, ...] = ()
    created: int = 0
    n_ctx: int = 0
    n_ctx_train: int = 0
    n_vocab: int = 0
    n_embd: int = 0
    n_params: int = 0
    size: int = 0
    fingerprint: str = ""


class Stream(Protocol):
    """A generation under way."""

    completion: Completion | None

    def __iter__(self) -> Iterator[Chunk]:
        """Return the chunks as they come."""

    def cancel(self, timeout: float = ...) -> Completion:
        """Stop it, and return what there is."""


class Served(Protocol):
    """A model to serve. Every method may block: the server calls it on a thread of its own."""

    @property
    def model(self) -> ServedModel:
        """What clients may know of it."""

    def open(self, prompt: Prompt, params: SamplingParams) -> Stream:
        """Start a generation; it waits for its turn."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one embedding for each text."""

    def tokenize(self, text: str, *, add_special: bool, special: bool) -> list[int]:
        """Return the token ids of a text."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids."""
