"""The distribution of the next token: against what generating reports, and without a trace in the cache."""

from __future__ import annotations

import array
import math

import pytest

from llama_magic.engine.client import EngineClient
from llama_magic.engine.protocol import GenerateRequest, NextTokenRequest
from llama_magic.errors import InvalidRequestError
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Message
from llama_magic.models.options import ModelSpec

ASK = (Message("user", "Name a colour."),)


def test_it_is_what_generating_reports(client: EngineClient, spec: ModelSpec) -> None:
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=5, seed=1)
    made = client.open(GenerateRequest(spec, params, messages=ASK, conversation="talk")).collect()
    same = 0
    for place, entry in enumerate(made.logprobs):
        found = client.request(NextTokenRequest(spec, None, ASK, "talk", made.tokens[:place], 50))
        assert found.candidates[0].id == entry.id, place
        mine = {candidate.id: candidate.logprob for candidate in found.candidates}
        off = max(abs(mine[candidate.id] - candidate.logprob) for candidate in entry.top)
        # Its keys may lie elsewhere in the cache; 4-bit weights turn last bits into hundredths.
        assert off < 0.25
        same += off < 1e-3
    assert same >= 4


def test_the_logits_are_the_whole_vocabulary_and_add_up(client: EngineClient, spec: ModelSpec) -> None:
    found = client.request(NextTokenRequest(spec, "The capital of France is", count=10))
    logits = array.array("f", found.logits)
    assert len(logits) == found.n_vocab == 49152
    assert list(logits) == sorted(logits, reverse=True)
    total = math.fsum(math.exp(value - logits[0]) for value in logits)
    for candidate, logit in zip(found.candidates, logits, strict=False):
        assert candidate.logprob == pytest.approx(logit - logits[0] - math.log(total), abs=1e-6)
    assert found.candidates[0].text == " Paris"


def test_a_conversation_keeps_its_cache(client: EngineClient, spec: ModelSpec) -> None:
    short = SamplingParams(max_tokens=8, seed=1)
    made = client.open(GenerateRequest(spec, short, messages=ASK, conversation="kept")).collect()
    client.request(NextTokenRequest(spec, None, ASK, "kept", made.tokens[:2]))
    client.request(NextTokenRequest(spec, None, (Message("user", "Something else."),), "kept"))
    more = (*ASK, Message("assistant", made.text), Message("user", "Another one."))
    again = client.open(GenerateRequest(spec, short, messages=more, conversation="kept")).collect()
    assert again.timings.cached_tokens >= made.timings.prompt_tokens + len(made.tokens) - 2


def test_nothing_to_look_at(client: EngineClient, spec: ModelSpec) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        client.request(NextTokenRequest(spec, ""))
