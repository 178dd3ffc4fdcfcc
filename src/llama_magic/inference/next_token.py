"""The distribution of the next token, read from a context without changing what it holds for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_magic.errors import ContextFullError, GenerationInterrupted, InvalidRequestError
from llama_magic.inference.cache import Plan
from llama_magic.inference.distribution import NextToken
from llama_magic.inference.prefill import prefill
from llama_magic.inference.results import Candidate
from llama_magic.inference.runtime import ModelRuntime
from llama_magic.native import NativeModel

__all__ = ["distribution", "next_token"]

#: Key of the sequence that looks: it shares what a conversation holds, and is dropped at once.
_LOOKING = "llama-magic-next-token"


def next_token(
    runtime: ModelRuntime, tokens: Sequence[int], conversation: str | None, count: int, cancelled: Callable[[], bool]
) -> NextToken:
    """Return the distribution after `tokens`.

    Raises
    ------
    InvalidRequestError, ContextFullError
        There are no tokens, or too many.
    GenerationInterrupted
        It was cancelled.
    """
    if not tokens:
        raise InvalidRequestError("the prompt is empty; write something for the model to continue")
    if len(tokens) >= runtime.n_ctx:
        raise ContextFullError(len(tokens), runtime.n_ctx, runtime.model.n_ctx_train)
    if conversation is None:
        solo = runtime.solo(1)
        plan = solo.plan(tokens)
        if plan.logits is None:
            if not prefill(runtime, solo.context, plan, cancelled):
                raise GenerationInterrupted
            solo.remember(plan.tokens)
            plan = Plan(plan.slot, plan.tokens, plan.keep, solo.context.logits(-1).copy())
        return distribution(runtime.model, plan.logits, count, len(tokens))
    cache = runtime.chat()
    try:
        plan = cache.plan(_LOOKING, tokens)
        if not prefill(runtime, cache.context, plan, cancelled, make_room=lambda: cache.evict(_LOOKING)):
            raise GenerationInterrupted
        return distribution(runtime.model, cache.context.logits(-1), count, len(tokens))
    finally:
        cache.forget(_LOOKING)


def distribution(model: NativeModel, logits: npt.NDArray[np.float32], count: int, n_prompt: int) -> NextToken:
    """Return the sorted distribution of one row of logits, shape (n_vocab,)."""
    order = np.argsort(-logits, kind="stable")
    ranked: Any = np.ascontiguousarray(logits[order], dtype=np.float32)
    peak = float(ranked[0])
    log_sum = peak + float(np.log(np.exp(ranked.astype(np.float64) - peak).sum()))
    candidates = tuple(
        Candidate(int(token), model.piece_with_special(int(token)).decode("utf-8", "replace"), float(logit) - log_sum)
        for token, logit in zip(order[:count], ranked[:count], strict=True)
    )
    return NextToken(candidates, ranked.tobytes(), len(ranked), n_prompt)
