"""Samplers against numpy in float64."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llama_magic.inference.chain import bias_of, build_sampler, prompt_window
from llama_magic.inference.logprobs import token_logprob
from llama_magic.inference.params import SAMPLERS, SamplingParams
from llama_magic.native import LogCapture, NativeModel, Sampler

DRAWS = 3000
#: Tokens 100 to 105 with these probabilities; all others are far below.
PROBABILITIES = np.array([0.40, 0.25, 0.15, 0.10, 0.06, 0.04])


@pytest.fixture
def make(model: NativeModel, log: LogCapture) -> Callable[..., Sampler]:
    def build(seed: int = 1, **keywords: Any) -> Sampler:
        params = SamplingParams.from_keywords(
            **{"top_k": 8, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, **keywords}
        )
        return build_sampler(
            model, params, seed=seed, n_ctx=512, bias=bias_of(model, params), grammar=params.grammar, log=log
        )

    return build


def logits_of(model: NativeModel, probabilities: np.ndarray = PROBABILITIES) -> np.ndarray:
    logits = np.full(model.n_vocab, -40.0, dtype=np.float32)
    logits[100 : 100 + len(probabilities)] = np.log(probabilities)
    return logits


def draw(model: NativeModel, sampler: Sampler, draws: int = DRAWS) -> np.ndarray:
    logits = logits_of(model)
    counts = Counter(sampler.sample_from(logits) for _ in range(draws))
    return np.array([counts[100 + i] for i in range(6)]) / draws


def close(observed: np.ndarray, expected: np.ndarray) -> bool:
    """Within five standard errors of a binomial count."""
    return bool(np.all(np.abs(observed - expected) <= 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-12))


def normal(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def keep(mask: list[int]) -> np.ndarray:
    return normal(PROBABILITIES * np.array(mask))


def sharpened(temperature: float) -> np.ndarray:
    return normal(PROBABILITIES ** (1 / temperature))


# Each expectation follows from the definition of the sampler, on the probabilities above.
CASES: list[tuple[dict[str, Any], np.ndarray]] = [
    ({}, PROBABILITIES),
    ({"temperature": 0.5}, sharpened(0.5)),
    ({"temperature": 2.0}, sharpened(2.0)),
    ({"top_k": 2}, keep([1, 1, 0, 0, 0, 0])),
    # the likeliest that together reach 0.7: 0.40 + 0.25 + 0.15
    ({"top_p": 0.7}, keep([1, 1, 1, 0, 0, 0])),
    # at least 0.3 * 0.40 = 0.12
    ({"min_p": 0.3}, keep([1, 1, 1, 0, 0, 0])),
    # xtc with probability 1 drops all tokens above 0.2 but the least likely of them
    ({"xtc_probability": 1.0, "xtc_threshold": 0.2}, keep([0, 1, 1, 1, 1, 1])),
    ({"temperature": 0.0}, keep([1, 0, 0, 0, 0, 0])),
    ({"logit_bias": {100: -100.0}}, keep([0, 1, 1, 1, 1, 1])),
    ({"logit_bias": {103: math.log(4)}}, normal(PROBABILITIES * np.array([1, 1, 1, 4, 1, 1]))),
    ({"samplers": "top_k", "top_k": 3}, keep([1, 1, 1, 0, 0, 0])),
    # order matters: temperature first makes top-p keep fewer
    (
        {"samplers": "top_k;temperature;top_p", "temperature": 0.5, "top_p": 0.8},
        normal(sharpened(0.5) * [1, 1, 0, 0, 0, 0]),
    ),
]


@pytest.mark.parametrize(("keywords", "expected"), CASES, ids=[str(case[0]) for case in CASES])
def test_distribution(
    model: NativeModel, make: Callable[..., Sampler], keywords: dict[str, Any], expected: np.ndarray
) -> None:
    observed = draw(model, make(**keywords))
    assert close(observed, expected), f"{observed} is not {expected}"


def test_typical_keeps_the_tokens_nearest_to_the_entropy(model: NativeModel, make: Callable[..., Sampler]) -> None:
    entropy = -np.sum(PROBABILITIES * np.log(PROBABILITIES))
    order = np.argsort(np.abs(-np.log(PROBABILITIES) - entropy))
    kept, total = [], 0.0
    for index in order:
        kept.append(int(index))
        total += PROBABILITIES[index]
        if total > 0.5:
            break
    mask = [int(i in kept) for i in range(6)]
    assert close(draw(model, make(typical_p=0.5)), keep(mask))


def test_top_n_sigma_keeps_what_is_near_the_peak(model: NativeModel, make: Callable[..., Sampler]) -> None:
    logits = np.zeros(model.n_vocab, dtype=np.float32)
    logits[100], logits[101], logits[102] = 10.0, 9.9, 5.0
    threshold = 10.0 - 2.0 * np.std(logits.astype(np.float64))
    sampler = make(top_n_sigma=2.0)
    seen = {sampler.sample_from(logits) for _ in range(300)}
    assert seen == {int(i) for i in np.flatnonzero(logits >= threshold)}


def test_penalties_follow_their_formula(model: NativeModel, make: Callable[..., Sampler]) -> None:
    # llama.cpp: logit /= repeat (above zero) or *= repeat (below), then minus count * frequency and presence
    logits = logits_of(model)
    sampler = make(repeat_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.2)
    sampler.accept_prompt([100, 100, 101])
    expected = np.log(PROBABILITIES)
    expected[:2] *= 1.5
    expected[0] -= 2 * 0.2 + 0.3
    expected[1] -= 0.2 + 0.3
    first = np.array([_first(make, logits, seed) for seed in range(800)])
    observed = np.array([np.mean(first == 100 + i) for i in range(6)])
    wanted = normal(np.exp(expected))
    assert np.all(np.abs(observed - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 800))


def _first(make: Callable[..., Sampler], logits: np.ndarray, seed: int) -> int:
    sampler = make(seed=seed, repeat_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.2)
    sampler.accept_prompt([100, 100, 101])
    return sampler.sample_from(logits)


def test_dry_avoids_extending_a_repetition(model: NativeModel, make: Callable[..., Sampler]) -> None:
    logits = logits_of(model, np.array([0.5, 0.5]))
    run = [300, 301, 302, 303]
    sampler = make(dry_multiplier=10.0, dry_allowed_length=2, temperature=0.0)
    sampler.accept_prompt([*run, 100, *run])
    assert sampler.sample_from(logits) == 101


@pytest.mark.parametrize(
    "keywords",
    [
        {"mirostat": 1},
        {"mirostat": 2, "mirostat_tau": 3.0},
        {"dynatemp_range": 0.5},
        {"samplers": "min_p;adaptive_p", "adaptive_target": 0.2, "min_p": 0.01},
        {"samplers": "top_k;infill", "top_k": 40},
    ],
    ids=str,
)
def test_the_others_draw_likely_tokens_and_repeat_with_the_seed(
    model: NativeModel, make: Callable[..., Sampler], keywords: dict[str, Any]
) -> None:
    logits = logits_of(model)
    first = [make(seed=7, **keywords).sample_from(logits) for _ in range(3)]
    assert len(set(first)) == 1
    assert 100 <= first[0] <= 105


def test_mirostat_2_cuts_by_surprise(model: NativeModel, make: Callable[..., Sampler]) -> None:
    # With mu = 2 tau, tokens of more than mu bits of surprise are dropped (llama.cpp, after the paper).
    sampler = make(mirostat=2, mirostat_tau=0.75, mirostat_eta=0.0)
    kept = [i for i in range(6) if -math.log2(PROBABILITIES[i]) <= 1.5]
    seen = {sampler.sample_from(logits_of(model)) - 100 for _ in range(300)}
    assert seen == set(kept)


def test_every_sampler_can_be_named() -> None:
    assert set(SAMPLERS) >= {
        "penalties",
        "dry",
        "top_n_sigma",
        "top_k",
        "typ_p",
        "top_p",
        "min_p",
        "xtc",
        "temperature",
    }


def test_bias_by_text_and_ignore_eos(model: NativeModel) -> None:
    params = SamplingParams.from_keywords(logit_bias={" Paris": 2.0}, ignore_eos=True)
    bias = dict(bias_of(model, params))
    (paris,) = model.tokenize(" Paris", add_special=False, parse_special=False)
    assert bias[paris] == 2.0
    assert all(bias[token] == -math.inf for token in model.eog)


def test_prompt_window() -> None:
    assert prompt_window(SamplingParams(), 512) == 0
    assert prompt_window(SamplingParams(repeat_penalty=1.1), 512) == 64
    assert prompt_window(SamplingParams(repeat_penalty=1.1, repeat_last_n=-1), 512) == 512


def test_logprobs_against_float64(model: NativeModel) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, model.n_vocab).astype(np.float32)
    exact = logits.astype(np.float64)
    exact = exact - (exact.max() + np.log(np.sum(np.exp(exact - exact.max()))))
    got = token_logprob(model, logits, 1234, 5)
    assert got.logprob == pytest.approx(exact[1234], abs=1e-4)
    best = np.argsort(-exact)[:5]
    assert [candidate.id for candidate in got.top] == list(best)
    assert [candidate.logprob for candidate in got.top] == pytest.approx(list(exact[best]), abs=1e-4)
