"""Sampling parameters and load options: names, ranges, nearest names."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from llama_magic import errors
from llama_magic.errors import InvalidRequestError
from llama_magic.inference.params import DEFAULT_SAMPLERS, SamplingParams, parse_samplers
from llama_magic.models.options import LoadOptions


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "finite"),
        ({"top_p": 1.5}, "between 0 and 1"),
        ({"max_tokens": -5}, "1 or more, or -1"),
        ({"max_tokens": 0}, "1 or more, or -1"),
        ({"repeat_penalty": 0}, "above 0"),
        ({"samples": 0}, "between 1 and 64"),
        ({"mirostat": 3}, "0, 1 or 2"),
        ({"grammar": "root ::= []", "schema": "{}"}, "not both"),
        ({"samplers": "top_k;mim_p"}, "Did you mean min_p"),
        ({"stop": ""}, "must not be empty"),
        ({"seed": -1}, "between 0 and"),
    ],
)
def test_values_that_can_not_be(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        SamplingParams.from_keywords(**keywords)


def test_unknown_keywords_name_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"'temprature'\. Did you mean temperature\?"):
        SamplingParams.from_keywords(temprature=1)
    with pytest.raises(TypeError, match="Did you mean n_ctx"):
        LoadOptions.from_keywords(nctx=1)


def test_keywords_over_a_base() -> None:
    base = SamplingParams(top_k=7)
    params = SamplingParams.from_keywords(base, stop="x", logit_bias={5: 1, "a": -2}, samplers="kt")
    assert params.top_k == 7
    assert params.stop == ("x",)
    assert params.logit_bias == ((5, 1.0), ("a", -2.0))
    assert params.samplers == ("top_k", "temperature")
    assert params.changed().keys() == {"top_k", "stop", "logit_bias", "samplers"}


@pytest.mark.parametrize(
    "text", ["edskypmxt", ";".join(DEFAULT_SAMPLERS), "penalties,dry,top-n-sigma,top_k,typical,top_p,min_p,xtc,temp"]
)
def test_sampler_orders(text: str) -> None:
    assert parse_samplers(text) == DEFAULT_SAMPLERS


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"n_ctx": 0}, "at least 1"),
        ({"cache_type_k": "q9"}, "is not one of"),
        ({"flash_attn": "yes"}, "is not one of"),
        ({"n_gpu_layers": "some"}, '"auto" or "all"'),
        ({"cache_type_v": "q8_0", "flash_attn": "off"}, "needs flash attention"),
    ],
)
def test_load_options_that_can_not_be(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        LoadOptions.from_keywords(**keywords)


def test_every_error_crosses_the_process_boundary() -> None:
    examples: dict[str, tuple[Any, ...]] = {
        "ContextFullError": (5000, 4096, 8192),
        "EngineCrashed": ("why", -9, ("a",)),
    }
    for name in errors.__all__:
        kind = getattr(errors, name)
        error = kind(*examples.get(name, ("what happened",) if name != "GenerationInterrupted" else ()))
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == str(error)
        assert str(error)


def test_context_full_tells_numbers_and_remedies() -> None:
    text = str(errors.ContextFullError(5000, 4096, 8192))
    assert "5,000 tokens" in text
    assert "-c 8192" in text
    assert "%llama new" in text
    assert "-c" not in str(errors.ContextFullError(9000, 8192, 8192))
