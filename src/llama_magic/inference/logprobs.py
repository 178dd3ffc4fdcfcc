"""Probabilities of the chosen token and of its rivals, from one row of logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llama_magic.inference.results import Candidate, TokenLogprob
from llama_magic.native import NativeModel

__all__ = ["token_logprob"]


def token_logprob(model: NativeModel, logits: npt.NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """Return natural-log probabilities under the raw distribution (before any sampler).

    Parameters
    ----------
    logits
        Shape (n_vocab,); not kept.
    token
        The chosen token.
    count
        How many of the likeliest tokens to report.
    """
    peak = float(logits.max())
    log_sum = peak + float(np.log(np.exp(logits - peak, dtype=np.float32).sum(dtype=np.float64)))
    count = min(count, len(logits))
    best = np.argpartition(logits, -count)[-count:]
    best = best[np.argsort(-logits[best], kind="stable")]
    top = tuple(Candidate(int(i), _text(model, int(i)), float(logits[i]) - log_sum) for i in best)
    return TokenLogprob(token, _text(model, token), float(logits[token]) - log_sum, top)


def _text(model: NativeModel, token: int) -> str:
    return model.piece_with_special(token).decode("utf-8", "replace")
