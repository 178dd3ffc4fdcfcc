"""From rows of logits to scores of tokens: the arithmetic over the vocabulary, in blocks that stay in the cache.

For a base p and a model q over one place of the text, with w = logits - max(logits) and s = sum(exp(w)):

    negative log-likelihood of token t   ln s - w[t]
    KL divergence (nats)                 sum p (ln p - ln q) = sum(e (w_p - w_q)) / s_p + (ln s_q - ln s_p) sum(e) / s_p

where e = exp(w_p). As in llama-perplexity, the sum is over tokens with ln p > -16 only. The difference of the two
w is taken before it is summed: in single precision, their sums alone would cancel to noise for good quantizations.
Of the base only w_p is kept. e costs less to compute again for each model than to keep: the memory that it would take
lets the models read more windows side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_magic.evaluation.statistics import TokenScores

__all__ = ["BaseRows", "NotANumber", "Scorer"]

_Floats = npt.NDArray[np.float32]
_Tokens = npt.NDArray[np.int32]

#: Base probabilities below exp(-16) are left out of the sum (perplexity.cpp: `p_log_base > -16.f`).
_LEAST_LOG_P = -16.0
#: What a base's logit that is left out is lowered by: its exponential is exactly 0, and differences from it are finite.
_FAR = np.float32(1e30)
#: Bytes of a block of logits: four of them fit into a thread's share of the processor's cache.
_BLOCK = 600_000


class NotANumber(Exception):  # noqa: N818 - the caller knows which model and chunk it was
    """Logits hold NaN, or infinity where none may be."""


@dataclass(slots=True)
class BaseRows:
    """What is kept of the base's logits, for the models that are compared with it.

    Attributes
    ----------
    shifted
        Logits less their maximum, shape (rows, n_vocab); lower by `_FAR` where the sum leaves a token out.
    log_sum
        ln of the sum of exp(logits less their maximum), shape (rows,).
    mass
        Sum of exp(shifted).
    top
        The likeliest token.
    nll
        Negative log-likelihood of the token that follows.
    """

    shifted: _Floats
    log_sum: npt.NDArray[np.float64]
    mass: npt.NDArray[np.float64]
    top: npt.NDArray[np.intp]
    nll: npt.NDArray[np.float64]


class Scorer:
    """Scores rows of logits on some threads.

    Parameters
    ----------
    n_vocab
        Length of a row.
    threads
        Threads; numpy lets go of the interpreter while it computes.
    round_base
        Round the base's log-probabilities to 16 bits, as llama-perplexity does to store them.
    """

    def __init__(self, n_vocab: int, threads: int, *, round_base: bool = False) -> None:
        self._threads = max(1, threads)
        self._round = round_base
        self._block = max(1, _BLOCK // (4 * n_vocab))
        shape = (self._threads, 3, self._block, n_vocab)
        self._scratch = np.empty(shape, dtype=np.float32)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="scores") if self._threads > 1 else None

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _in_blocks(self, rows: int, work: Callable[[int, slice], None]) -> None:
        """Call `work` with the number of a thread and rows, for all rows."""

        def share(thread: int) -> None:
            # logits of minus infinity are allowed, and their differences are seen to
            with np.errstate(invalid="ignore", divide="ignore"):
                for start in range(thread * self._block, rows, self._threads * self._block):
                    work(thread, slice(start, min(start + self._block, rows)))

        if self._pool is None:
            share(0)
            return
        others: list[Future[None]] = [self._pool.submit(share, thread) for thread in range(1, self._threads)]
        share(0)
        for other in others:
            other.result()

    def base(self, logits: _Floats, following: _Tokens, shifted: _Floats) -> BaseRows:
        """Take the base's rows in; `shifted` is the memory to keep them in.

        Raises
        ------
        NotANumber
        """
        rows = len(following)
        found = BaseRows(shifted, np.empty(rows), np.empty(rows), np.empty(rows, np.intp), np.empty(rows))
        softmax = _rounded if self._round else _softmax

        def work(thread: int, part: slice) -> None:
            shifted, (weights, spare, _) = found.shifted[part], self._room(thread, len(logits[part]))
            top, log_sum = softmax(logits[part], shifted, weights)
            found.log_sum[part], found.top[part] = log_sum, top
            found.nll[part] = log_sum - shifted[np.arange(len(shifted)), following[part]]
            # by arithmetic: a mask that is true here and false there makes a processor guess, for each of the tokens
            least = (log_sum + _LEAST_LOG_P).astype(np.float32)[:, None]
            left_out = np.less_equal(shifted, least, out=spare, casting="unsafe")  # 1.0 where it is, else 0.0
            found.mass[part] = weights.sum(axis=1) - np.einsum("ij,ij->i", weights, left_out)
            np.multiply(left_out, _FAR, out=left_out)
            np.subtract(shifted, left_out, out=shifted)

        self._in_blocks(rows, work)
        if not np.isfinite(found.log_sum).all():
            raise NotANumber
        return found

    def alone(self, logits: _Floats, following: _Tokens) -> TokenScores:
        """Score rows without a base; raises `NotANumber`."""
        nll = np.empty(len(following))

        def work(thread: int, part: slice) -> None:
            shifted, exps, _ = self._room(thread, len(logits[part]))
            _, log_sum = _softmax(logits[part], shifted, exps)
            nll[part] = log_sum - shifted[np.arange(len(shifted)), following[part]]

        self._in_blocks(len(following), work)
        if np.isnan(nll).any():
            raise NotANumber
        return TokenScores(nll)

    def against(self, base: BaseRows, logits: _Floats, following: _Tokens) -> TokenScores:
        """Score rows against those of the base; raises `NotANumber`."""
        rows = len(following)
        nll, kld, same = np.empty(rows), np.empty(rows), np.empty(rows, np.bool_)

        def work(thread: int, part: slice) -> None:
            shifted, spare, weights = self._room(thread, len(logits[part]))
            top, log_sum = _softmax(logits[part], shifted, spare)
            nll[part] = log_sum - shifted[np.arange(len(shifted)), following[part]]
            same[part] = top == base.top[part]
            np.exp(base.shifted[part], out=weights)
            np.subtract(base.shifted[part], shifted, out=spare)
            apart = np.einsum("ij,ij->i", weights, spare).astype(np.float64)
            if not np.isfinite(apart).all():
                apart = _where_it_counts(weights, spare)
            scale = np.exp(-base.log_sum[part])
            kld[part] = scale * (apart + (log_sum - base.log_sum[part]) * base.mass[part])

        self._in_blocks(rows, work)
        if np.isnan(nll).any() or np.isnan(kld).any():
            raise NotANumber
        return TokenScores(nll, base.nll, kld, np.exp(-nll) - np.exp(-base.nll), same)

    def _room(self, thread: int, rows: int) -> tuple[_Floats, _Floats, _Floats]:
        first, second, third = self._scratch[thread, :, :rows]
        return first, second, third


def _softmax(logits: _Floats, shifted: _Floats, exps: _Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Fill `shifted` and `exps`; returns the likeliest token and ln of the sum of `exps`."""
    top = logits.argmax(axis=1)
    np.subtract(logits, logits[np.arange(len(logits)), top][:, None], out=shifted)
    np.exp(shifted, out=exps)
    return top, np.log(exps.sum(axis=1).astype(np.float64))


def _where_it_counts(weights: _Floats, apart: _Floats) -> npt.NDArray[np.float64]:
    """Return the sums over tokens that have a weight: logits of minus infinity leave NaN at others."""
    product = np.zeros(weights.shape, dtype=np.float64)
    np.multiply(weights, apart, out=product, where=weights > 0)
    total: npt.NDArray[np.float64] = product.sum(axis=1)
    return total


def _rounded(logits: _Floats, shifted: _Floats, exps: _Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Turn logits into log-probabilities as llama-perplexity stores them (`log_softmax` with a `uint16_t`).

    They are taken as they come afterwards, so the sum of their exponentials counts as one.
    """
    highest = logits.max(axis=1, keepdims=True)
    lowest = np.maximum(logits.min(axis=1, keepdims=True), highest - 16)
    log_sum = np.log(np.exp(logits - highest).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    scale = (highest - lowest) / np.float32(65535)
    steps = np.rint((logits - lowest) / np.where(scale > 0, scale, 1)).clip(0, 65535)
    np.add(scale * steps, lowest - highest - log_sum, out=shifted)
    np.exp(shifted, out=exps)
    return shifted.argmax(axis=1), np.where(np.isfinite(log_sum[:, 0]), 0.0, np.nan)
