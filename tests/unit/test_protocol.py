"""What goes over the channel comes out as it went in."""

from __future__ import annotations

from typing import Any

import pytest

from llama_magic.engine.protocol import Chunk, Error, Log, Progress, Result, pack_events, unpack_events
from llama_magic.errors import InvalidRequestError
from llama_magic.inference.results import TokenLogprob

ROW = TokenLogprob(7, "a", -0.5, ())


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


def test_a_chunk_names_no_class() -> None:
    assert b"llama_magic" not in pack_events([(1, Chunk("text", (1, 2)))])
    assert b"llama_magic" in pack_events([(1, Chunk("text", (1,), (ROW,)))])
