"""A sampler chain with an optional grammar, used as llama.cpp's own tools use theirs (`common/sampling.cpp`)."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_magic.errors import GrammarError, NativeError
from llama_magic.native.context import NativeContext
from llama_magic.native.library import lib
from llama_magic.native.log import LogCapture, captured_stderr
from llama_magic.native.model import NativeModel

__all__ = ["Sampler"]

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """Chooses tokens.

    Parameters
    ----------
    model
        Whose vocabulary is sampled.
    stages
        Handles made by the functions of `llama_magic.native.stages`, in order; they are owned from here on.
    grammar
        GBNF text, or None.
    log
        Where llama.cpp reports a grammar's syntax errors.
    greedy
        The stages do nothing but take the likeliest token: then no list of candidates is made.

    Raises
    ------
    GrammarError
        The grammar has a syntax error.
    """

    def __init__(
        self,
        model: NativeModel,
        stages: Sequence[Any],
        grammar: str | None,
        log: LogCapture,
        *,
        greedy: bool = False,
    ) -> None:
        self._model = model
        self._greedy = greedy and grammar is None
        self._sample = lib.llama_sampler_sample
        self._grammar: Any = _grammar(model, grammar, log) if grammar is not None else None
        settings = lib.llama_sampler_chain_default_params()
        self._chain: Any = lib.llama_sampler_chain_init(settings)
        self._finalizer = weakref.finalize(self, _free, self._chain, self._grammar, model)
        for stage in stages:
            lib.llama_sampler_chain_add(self._chain, stage)
        if self._grammar:
            self._candidates = np.zeros(model.n_vocab, dtype=_CANDIDATE)

    def close(self) -> None:
        """Free the chain."""
        self._finalizer()

    def sample(self, context: NativeContext, index: int) -> int:
        """Choose a token from the logits at an output index, and remember it for penalties and grammar."""
        if self._greedy:
            return int(context.logits(index).argmax())
        if self._grammar is None:
            token: int = self._sample(self._chain, context.handle, index)
            return token
        logits = context.logits(index)
        token = self._apply(logits, with_grammar=False)
        if not self._allowed(token):
            token = self._apply(logits, with_grammar=True)
        lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def sample_from(self, logits: Any) -> int:
        """Choose a token from an array of logits, shape (n_vocab,), as `sample` does from a context's."""
        if self._grammar is None:
            self._candidates = np.zeros(self._model.n_vocab, dtype=_CANDIDATE)
        token = self._apply(logits, with_grammar=False)
        if self._grammar is not None:
            if not self._allowed(token):
                token = self._apply(logits, with_grammar=True)
            lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Let penalties see the prompt, as llama.cpp's tools do."""
        for token in tokens:
            lib.llama_sampler_accept(self._chain, token)

    def _apply(self, logits: Any, *, with_grammar: bool) -> int:
        data = self._candidates
        data["id"] = np.arange(len(data), dtype=np.int32)
        data["logit"] = logits
        data["p"] = 0.0
        array = lib.llama_token_data_array(
            data=data.ctypes.data_as(ctypes.POINTER(lib.llama_token_data)), size=len(data), selected=-1, sorted=False
        )
        if with_grammar:
            lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
            if not np.isfinite(data["logit"]).any():
                raise NativeError("the grammar leaves no token to go on with; check that its rules can end")
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allowed(self, token: int) -> bool:
        single = lib.llama_token_data(id=token, logit=1.0, p=0.0)
        array = lib.llama_token_data_array(data=ctypes.pointer(single), size=1, selected=-1, sorted=False)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return math.isfinite(array.data[0].logit)


def _free(chain: Any, grammar: Any, _model: NativeModel) -> None:
    lib.llama_sampler_free(chain)
    if grammar:
        lib.llama_sampler_free(grammar)


def _grammar(model: NativeModel, text: str, log: LogCapture) -> Any:
    if not text.strip():
        raise GrammarError("the grammar is empty; its start is the rule named root")
    handle = lib.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    if handle:
        return handle
    log.clear()
    # The parser writes its reason to stderr, past the log.
    with captured_stderr() as said:
        lib.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    lines = [line.strip() for line in [*said, *(line for _, line in log.lines)] if line.strip()]
    reason = next((line for line in lines if "failed to parse" not in line), "it can not be parsed")
    near = next((line for line in lines[lines.index(reason) + 1 :] if "failed" not in line), "") if lines else ""
    where = f" (at {near[:60]!r})" if near else ""
    raise GrammarError(
        f"the grammar has an error: {reason.split(': ', 1)[-1]}{where}. Its start is the rule named root."
    )
