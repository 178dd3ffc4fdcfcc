"""What an evaluation gives: perplexity, and the distance from a base, with llama-perplexity's statistics and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from llama_magic.evaluation import views
from llama_magic.evaluation.requests import Estimate
from llama_magic.several import Several, Views

__all__ = ["Evaluation", "KLDivergence", "KLDivergences", "Perplexities", "Perplexity"]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What every result says of itself.

    Attributes
    ----------
    model
        What the model is called.
    path
        Its file.
    text
        Name of the text.
    n_ctx
        Tokens in a chunk.
    chunks, chunks_total
        Chunks that were read, and those that there were to read: less where it was stopped.
    tokens
        Tokens that were scored: of the second half of each chunk, all but the last place.
    seconds
        Time that the whole call took, for all its models.
    running
        The figures after each chunk.
    notes
        What is worth knowing, in sentences.
    """

    model: str
    path: str
    text: str
    n_ctx: int
    chunks: int
    chunks_total: int
    tokens: int
    seconds: float = 0.0
    running: tuple[Estimate, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """False where it was stopped before the end of the text."""
        return self.chunks >= self.chunks_total

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self)

    def __repr__(self) -> str:
        return views.text_of((self,))

    def _repr_html_(self) -> str:
        return views.html_of((self,))


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Perplexity(_Outcome):
    """Perplexity of a text: exp of the mean negative log-likelihood of its tokens.

    Attributes
    ----------
    ppl, ppl_error
        Perplexity and its standard error, as llama-perplexity computes them.
    stride
        Tokens that the window moved by; 0 for chunks that follow each other.
    """

    ppl: float
    ppl_error: float
    stride: int = 0


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class KLDivergence(_Outcome):
    """How far a model's predictions are from its base's: every statistic of ``llama-perplexity --kl-divergence``.

    Errors are standard errors, one sigma. KL divergences are in nats; Δp is the change of the probability of the
    token that follows in the text, from -1 to 1; percentiles are by llama-perplexity's names of them, from "Maximum"
    to "Minimum".

    Attributes
    ----------
    base
        What the base is called.
    ppl, ppl_error, ppl_base, ppl_base_error
        Mean PPL(Q), Mean PPL(base).
    correlation
        Cor(ln(PPL(Q)), ln(PPL(base))), from -1 to 1.
    ln_ratio, ln_ratio_error, ratio, ratio_error, difference, difference_error
        Mean ln(PPL(Q)/PPL(base)), Mean PPL(Q)/PPL(base), Mean PPL(Q)-PPL(base).
    kld, kld_error, kld_percentiles
        Mean KLD, and its percentiles.
    dp, dp_error, dp_percentiles, rms_dp, rms_dp_error
        Mean Δp, its percentiles, RMS Δp.
    same_top, same_top_error
        Same top p: part of the tokens where both find the same token likeliest.
    """

    base: str
    ppl: float
    ppl_error: float
    ppl_base: float
    ppl_base_error: float
    correlation: float
    ln_ratio: float
    ln_ratio_error: float
    ratio: float
    ratio_error: float
    difference: float
    difference_error: float
    kld: float
    kld_error: float
    kld_percentiles: Mapping[str, float]
    dp: float
    dp_error: float
    dp_percentiles: Mapping[str, float]
    rms_dp: float
    rms_dp_error: float
    same_top: float
    same_top_error: float

    @property
    def kld_max(self) -> float:
        """Maximum KLD."""
        return self.kld_percentiles["Maximum"]

    @property
    def kld_median(self) -> float:
        """Median KLD."""
        return self.kld_percentiles["Median"]


class _Several(Several):
    __slots__ = ()
    _views: ClassVar[Views] = views

    @staticmethod
    def _names(item: Any) -> tuple[str, ...]:
        return item.model, item.path


@dataclass(frozen=True, slots=True, repr=False)
class Perplexities(_Several):
    """Perplexities of several models on one text."""

    items: tuple[Perplexity, ...]


@dataclass(frozen=True, slots=True, repr=False)
class KLDivergences(_Several):
    """Distances of several models from one base, over one reading of the text."""

    items: tuple[KLDivergence, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that one `EvaluateRequest` gave.

    Attributes
    ----------
    results
        For each model of the request its results, one for each text; empty where it failed or was stopped too early.
    base
        The base's own perplexity on each text; empty without a base.
    failures
        Place in the request (-1: the base) and reason of each model that failed.
    chunks, chunks_total
        Chunks that were read, and those that there were.
    seconds
        Wall time in the worker, loading included.
    """

    results: tuple[tuple[Perplexity | KLDivergence, ...], ...]
    base: tuple[Perplexity, ...]
    failures: tuple[tuple[int, str], ...]
    chunks: int
    chunks_total: int
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """False where it was stopped before the end."""
        return self.chunks >= self.chunks_total
