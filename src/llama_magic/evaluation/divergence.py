"""Where quantized models leave the reference's text, token by token: what to ask a worker for, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.evaluation import divergence_view as views
from llama_magic.inference.results import Candidate
from llama_magic.models.options import ModelSpec

__all__ = ["DivergeRequest", "Divergence", "ForcedToken", "ForcedTokens"]


@dataclass(frozen=True, slots=True)
class DivergeRequest:
    """Force the reference's text through other models; the result is a `Divergence`.

    Attributes
    ----------
    base
        The reference.
    models
        The others.
    prompt
        What comes before the text.
    text
        The text; None lets the reference write it, always with its likeliest token.
    max_tokens
        Most tokens that it writes, or that are taken of a given text.
    chat
        Put the prompt into the reference's chat template, where it has one.
    top
        How many of the likeliest tokens are told at each place.
    force
        Load models that seem not to fit into memory.
    """

    base: ModelSpec
    models: tuple[ModelSpec, ...]
    prompt: str
    text: str | None = None
    max_tokens: int = 128
    chat: bool = True
    top: int = 5
    force: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise InvalidRequestError("name a quantized model to compare with the reference")
        if not self.prompt and not self.text:
            raise InvalidRequestError("diverge needs a prompt: --prompt 'Tell me about llamas.'")
        if self.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens must be at least 1; got {self.max_tokens}")
        if not 1 <= self.top <= 20:
            raise InvalidRequestError(f"top must be from 1 to 20; got {self.top}")


@dataclass(frozen=True, slots=True)
class ForcedToken:
    """One token of the text, as one model sees it.

    Attributes
    ----------
    logprob
        Natural-log probability of the text's token.
    rank
        Its place among all tokens, 1 for the likeliest.
    top
        The likeliest tokens.
    kld
        KL divergence of the model's prediction from the reference's, in nats; 0.0 for the reference.
    """

    logprob: float
    rank: int
    top: tuple[Candidate, ...]
    kld: float = 0.0


@dataclass(frozen=True, slots=True)
class ForcedTokens:
    """The text as one model sees it.

    Attributes
    ----------
    model, path
        What the model is called, and its file.
    tokens
        One entry for each token of the text.
    """

    model: str
    path: str
    tokens: tuple[ForcedToken, ...]

    @property
    def mean_kld(self) -> float:
        """Mean KL divergence over the text, in nats."""
        return math.fsum(token.kld for token in self.tokens) / len(self.tokens) if self.tokens else 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Divergence:
    """The reference's text forced through other models.

    Attributes
    ----------
    base
        The text as the reference sees it.
    models
        The same for each other model.
    prompt
        What came before the text.
    tokens
        Token ids of the text.
    texts
        What each token stands for.
    given
        The text was given; otherwise the reference wrote it.
    chat
        The prompt was put into a chat template.
    seconds
        Time it took.
    key
        Tells pictures of several divergences on one page apart.
    notes
        What is worth knowing, in sentences.
    """

    base: ForcedTokens
    models: tuple[ForcedTokens, ...]
    prompt: str
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    given: bool = False
    chat: bool = True
    seconds: float = 0.0
    key: str = "0"
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text that was forced."""
        return "".join(self.texts)

    def disagreements(self, model: int | str = 0) -> tuple[int, ...]:
        """Return the places, counted from 0, where a model finds another token likeliest than the reference.

        Parameters
        ----------
        model
            Place or name of the model.
        """
        found = self._find(model)
        pairs = enumerate(zip(self.base.tokens, found.tokens, strict=True))
        return tuple(place for place, (base, other) in pairs if base.top[0].id != other.top[0].id)

    def _find(self, model: int | str) -> ForcedTokens:
        if isinstance(model, int):
            return self.models[model]
        found = next((one for one in self.models if model in (one.model, one.path)), None)
        if found is None:
            raise KeyError(model)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict, with the disagreements of each model."""
        values = asdict(self)
        values["disagreements"] = {one.model: self.disagreements(place) for place, one in enumerate(self.models)}
        return values

    def to_pandas(self) -> Any:
        """Return a row for each token and model as a `pandas.DataFrame`."""
        import pandas as pd

        return pd.DataFrame(list(_rows(self)))

    def __repr__(self) -> str:
        return views.text_of(self)

    def _repr_html_(self) -> str:
        return views.html_of(self)


def _rows(found: Divergence) -> Sequence[dict[str, Any]]:
    return [
        {
            "model": one.model,
            "place": place,
            "token": found.tokens[place],
            "text": found.texts[place],
            "kld": token.kld,
            "rank": token.rank,
            "logprob": token.logprob,
            "logprob_base": found.base.tokens[place].logprob,
            "top": token.top[0].text,
            "top_base": found.base.tokens[place].top[0].text,
        }
        for one in found.models
        for place, token in enumerate(one.tokens)
    ]
