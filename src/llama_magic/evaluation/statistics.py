"""From the scores of single tokens to the statistics that llama-perplexity prints: the worker's side.

The formulas are those of llama.cpp's ``tools/perplexity/perplexity.cpp``: `mean_and_uncertainty`, `covariance`,
`percentile`, and what `kl_divergence` makes of them. Everything is summed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_magic.evaluation.requests import Estimate

__all__ = ["TokenScores", "divergence_statistics", "mean_and_error", "percentiles", "running_estimates"]

_Array = npt.NDArray[np.float64]

#: The names under which llama-perplexity prints percentiles of the KL divergence and of Δp.
_KLD_PERCENTILES = ("99.9%", "99.0%", "95.0%", "90.0%", "Median", "10.0%", "5.0%", "1.0%", "0.1%")
_DP_PERCENTILES = ("99.9%", "99.0%", "95.0%", "90.0%", "75.0%", "Median", "25.0%", "10.0%", "5.0%", "1.0%", "0.1%")

#: Fewer values than this have no standard error, and no covariance (the tool's own limits).
_FEW, _FEW_PAIRS = 10, 10


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of tokens in the order of the text, each of shape (tokens,).

    Attributes
    ----------
    nll
        Negative log-likelihood of the token that follows, in nats.
    nll_base, kld, dp, same
        Of the base; KL divergence from it; change of the token's probability; whether both find the same token
        likeliest. None without a base.
    """

    nll: _Array
    nll_base: _Array | None = None
    kld: _Array | None = None
    dp: _Array | None = None
    same: npt.NDArray[np.bool_] | None = None

    @classmethod
    def joined(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """Put scores behind each other."""

        def together(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        return cls(*(together(name) for name in ("nll", "nll_base", "kld", "dp", "same")))


def mean_and_error(values: _Array) -> tuple[float, float]:
    """Return the mean and its standard error, 0.0 for ten values or fewer."""
    return _of_sums(float(values.sum()), float(np.square(values).sum()), len(values))


def _of_sums(total: float, squares: float, count: int) -> tuple[float, float]:
    if count < 1:
        return 0.0, 0.0
    mean = total / count
    variance = squares / count - mean * mean
    return mean, math.sqrt(variance / (count - 1)) if variance > 0 and count > _FEW else 0.0


def _of_pairs(total_a: float, total_b: float, products: float, count: int) -> float:
    """Return the covariance of two means."""
    if count < _FEW_PAIRS:
        return 0.0
    return (products / count - (total_a / count) * (total_b / count)) / (count - 1)


def _root(value: float) -> float:
    """Return a square root; rounding may leave a little less than nothing."""
    return math.sqrt(max(value, 0.0))


def percentiles(values: _Array, names: Sequence[str]) -> dict[str, float]:
    """Return percentiles by llama-perplexity's names, from "Maximum" to "Minimum"."""
    ordered = np.sort(values)
    last = len(ordered) - 1
    found = {"Maximum": float(ordered[-1])}
    for name in names:
        if name == "Median":
            found[name] = 0.5 * float(ordered[last // 2] + ordered[(last + 1) // 2])
            continue
        place = float(name.rstrip("%")) / 100 * last
        low = int(place)
        share = place - low
        found[name] = float((1 - share) * ordered[low] + share * ordered[min(low + 1, last)])
    found["Minimum"] = float(ordered[0])
    return found


def divergence_statistics(scores: TokenScores) -> dict[str, Any]:
    """Return the fields of `KLDivergence` that are statistics."""
    nll, base, kld, dp, same = scores.nll, scores.nll_base, scores.kld, scores.dp, scores.same
    assert base is not None
    assert kld is not None
    assert dp is not None
    assert same is not None
    count = len(nll)
    log_ppl, log_ppl_error = mean_and_error(nll)
    log_base, log_base_error = mean_and_error(base)
    covariance = _of_pairs(float(nll.sum()), float(base.sum()), float((nll * base).sum()), count)
    ppl, ppl_base = math.exp(log_ppl), math.exp(log_base)
    ppl_error, ppl_base_error = ppl * log_ppl_error, ppl_base * log_base_error
    spread = log_ppl_error * log_base_error
    ln_ratio = log_ppl - log_base
    ln_ratio_error = _root(log_ppl_error**2 + log_base_error**2 - 2 * covariance)
    mean_kld, kld_error = mean_and_error(kld)
    mean_dp, dp_error = mean_and_error(dp)
    rms_dp, rms_dp_error = _rms(float(np.square(dp).sum()), float((dp**4).sum()), count)
    top = float(same.mean())
    return {
        "ppl": ppl,
        "ppl_error": ppl_error,
        "ppl_base": ppl_base,
        "ppl_base_error": ppl_base_error,
        "correlation": covariance / spread if spread else math.nan,
        "ln_ratio": ln_ratio,
        "ln_ratio_error": ln_ratio_error,
        "ratio": math.exp(ln_ratio),
        "ratio_error": math.exp(ln_ratio) * ln_ratio_error,
        "difference": ppl - ppl_base,
        "difference_error": _root(ppl_error**2 + ppl_base_error**2 - 2 * ppl * ppl_base * covariance),
        "kld": mean_kld,
        "kld_error": kld_error,
        "kld_percentiles": percentiles(kld, _KLD_PERCENTILES),
        "dp": mean_dp,
        "dp_error": dp_error,
        "dp_percentiles": percentiles(dp, _DP_PERCENTILES),
        "rms_dp": rms_dp,
        "rms_dp_error": rms_dp_error,
        "same_top": top,
        "same_top_error": _top_error(top, count),
    }


def _rms(squares: float, fourth: float, count: int) -> tuple[float, float]:
    mean, error = _of_sums(squares, fourth, count)
    root = math.sqrt(mean)
    return root, 0.5 / root * error if root else 0.0


def _top_error(top: float, count: int) -> float:
    return math.sqrt(top * (1 - top) / (count - 1)) if count > 1 else 0.0


def running_estimates(scores: TokenScores, ends: Sequence[int]) -> tuple[Estimate, ...]:
    """Return the figures after the first `ends[i]` tokens, for each of them: llama-perplexity's running table."""
    nll, base, kld, dp, same = scores.nll, scores.nll_base, scores.kld, scores.dp, scores.same
    sums: list[_Array] = [nll, nll * nll]
    if base is not None and kld is not None and dp is not None and same is not None:
        sums += [base, base * base, nll * base, kld, kld * kld, dp**2, dp**4, same.astype(np.float64)]
    places = np.asarray(ends, dtype=np.intp) - 1
    table = np.stack([np.cumsum(values)[places] for values in sums], axis=1)
    return tuple(_estimate([float(value) for value in row], int(end)) for row, end in zip(table, ends, strict=True))


def _estimate(sums: Sequence[float], count: int) -> Estimate:
    log_ppl, error = _of_sums(sums[0], sums[1], count)
    ppl = math.exp(log_ppl)
    if len(sums) == 2:
        return Estimate(count, ppl, ppl * error)
    base, base_error = _of_sums(sums[2], sums[3], count)
    covariance = _of_pairs(sums[0], sums[2], sums[4], count)
    kld, kld_error = _of_sums(sums[5], sums[6], count)
    rms, rms_error = _rms(sums[7], sums[8], count)
    top = sums[9] / count
    return Estimate(
        count, ppl, ppl * error, log_ppl - base, _root(error**2 + base_error**2 - 2 * covariance), kld, kld_error,
        rms, rms_error, top, _top_error(top, count),
    )  # fmt: skip
