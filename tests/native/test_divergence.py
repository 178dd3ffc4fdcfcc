"""A text forced through models: every token against the whole model in double precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_magic as lm
from llama_magic.errors import GenerationInterrupted, InvalidRequestError
from llama_magic.evaluation import diverging
from llama_magic.evaluation.divergence import Divergence, DivergeRequest
from llama_magic.native import LogCapture, WorkerTools
from tests.native.test_evaluation import log_probabilities, pair, spec
from tests.tiny import Weights, vocabulary

__all__ = ["pair"]  # a fixture

Pair = dict[str, tuple[Path, Weights]]


def diverge(
    log: LogCapture, both: Pair, *, cancelled: Callable[[], bool] = lambda: False, **changes: Any
) -> Divergence:
    request = DivergeRequest(spec(both["base"][0]), (spec(both["other"][0]),), "the fox", max_tokens=20, top=4)
    tools = WorkerTools(lambda _progress: None, cancelled, log)
    return diverging.run(replace(request, **changes), tools)


def test_every_token_by_hand(pair: Pair, log: LogCapture) -> None:
    found = diverge(log, pair, text="a lazy dog sleeps")
    prompt = "the fox"
    letters = [vocabulary().index("▁" if letter == " " else letter) for letter in f" {prompt}"]
    tokens = [vocabulary().index("<s>"), *letters, *found.tokens]
    rows = {name: log_probabilities(pair[name][1], np.array([tokens]))[0] for name in pair}
    first = len(tokens) - len(found.tokens) - 1
    base, other = (rows[name][first:-1] for name in ("base", "other"))
    assert found.given
    assert found.text.strip() == "a lazy dog sleeps"
    for at, token in enumerate(found.tokens):
        for seen, row in ((found.base.tokens[at], base[at]), (found.models[0].tokens[at], other[at])):
            order = np.argsort(-row)
            assert seen.logprob == pytest.approx(row[token], abs=2e-4)
            assert seen.rank == int((row > row[token]).sum()) + 1
            assert [one.id for one in seen.top] == list(order[:4])
            assert [one.logprob for one in seen.top] == pytest.approx(list(row[order[:4]]), abs=2e-4)
        kept = base[at] > -16
        kld = (np.exp(base[at]) * (base[at] - other[at]))[kept].sum()
        assert found.models[0].tokens[at].kld == pytest.approx(kld, rel=1e-3)
        assert found.base.tokens[at].kld == 0
    apart = [at for at in range(len(found.tokens)) if base[at].argmax() != other[at].argmax()]
    assert list(found.disagreements()) == apart


def test_the_reference_writes_its_likeliest_text(pair: Pair, log: LogCapture) -> None:
    found = diverge(log, pair, chat=False)
    assert not found.given
    assert 1 <= len(found.tokens) <= 20
    assert [token.rank for token in found.base.tokens] == [1] * len(found.tokens)
    again = diverge(log, pair, chat=False, text=None)
    assert again.tokens == found.tokens
    assert diverge(log, pair, chat=False, max_tokens=3).tokens == found.tokens[:3]


def test_what_can_not_work_says_why(pair: Pair, smollm2_path: Path, log: LogCapture) -> None:
    with pytest.raises(InvalidRequestError, match=r"different vocabularies \(49,152 and 286 tokens\)"):
        diverge(log, pair, models=(spec(smollm2_path),))
    with pytest.raises(GenerationInterrupted):
        diverge(log, pair, cancelled=lambda: True)


def test_types_are_made_of_the_reference(smollm2_path: Path, fresh_home: Path) -> None:
    found = lm.diverge(str(smollm2_path), "Q8_0", "Name a colour.", max_tokens=6, n_threads=2)
    assert [found.base.model, found.models[0].model] == ["F16", "Q8_0"]
    assert Path(found.models[0].path).is_relative_to(fresh_home)
    assert 0 < found.models[0].mean_kld < 0.05
    assert found.chat
