"""What goes over the channel comes out as it went in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llama_magic.engine.protocol import Chunk, Error, Log, Progress, Result, pack_events, unpack_events
from llama_magic.errors import InvalidRequestError
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Completion, Receipt, Sample, Timings, TokenLogprob
from llama_magic.models.options import LoadOptions

ROW = TokenLogprob(7, "a", -0.5, ())
RECEIPT = Receipt(
    "smollm2", "/m.gguf", "sha256:0", "Q4_1", SamplingParams(seed=1).to_dict(), LoadOptions().to_dict(), ("CPU",), 2,
    512, {"prompt_tokens": 7, "prompt_s": 0.5}, "abc", "0.3", "0.1", "", "chat", "CPU",
)  # fmt: skip


@pytest.mark.parametrize(
    "event",
    [
        Chunk("llama 🦙", (1, 2, 3)),
        Chunk("", (), (), 2),
        Chunk("a", (7,), (ROW,)),
        Progress("load", 0.5, "half"),
        Log("info", "a line"),
        Result((1, "two", ("three", 4))),
        Result(None),
    ],
    ids=lambda event: type(event).__name__,
)
def test_there_and_back(event: Any) -> None:
    ((number, found),) = unpack_events(pack_events([(12, event)]))
    assert number == 12
    assert type(found) is type(event)
    assert found == event


def test_errors() -> None:
    ((_, found),) = unpack_events(pack_events([(1, Error(InvalidRequestError("no"), "lines"))]))
    assert isinstance(found.error, InvalidRequestError)
    assert (str(found.error), found.traceback) == ("no", "lines")


MADE = Completion(
    "llama 🦙", (1, 2), "length", Timings(prompt_tokens=7), RECEIPT, samples=(Sample("llama 🦙", (1, 2), "length"),)
)


@pytest.mark.parametrize(
    "made",
    [
        MADE,
        replace(MADE, notes=("one", "two")),
        replace(MADE, receipt=None),
        replace(MADE, samples=(*MADE.samples, Sample("b", (3,), "stop"))),
        replace(MADE, logprobs=(ROW, ROW), samples=(replace(MADE.samples[0], logprobs=(ROW, ROW)),)),
        replace(MADE, receipt=replace(RECEIPT, options={"override_kv": (ROW,)})),
    ],
)
def test_completions(made: Completion) -> None:
    events: list[tuple[int, Any]] = [(3, Chunk("🦙", (2,))), (3, Result(made))]
    assert unpack_events(pack_events(events)) == events


def test_a_chunk_names_no_class() -> None:
    assert b"llama_magic" not in pack_events([(1, Chunk("text", (1, 2)))])
    assert b"llama_magic" in pack_events([(1, Chunk("text", (1,), (ROW,)))])
