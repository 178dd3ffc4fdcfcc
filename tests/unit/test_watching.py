"""Who is told when the session changes."""

from __future__ import annotations

from llama_magic.api.watching import Watchers
from llama_magic.inference.results import Completion, Timings


def test_an_answer_for_which_a_model_was_loaded_tells_it() -> None:
    told: list[str] = []
    watchers = Watchers()
    remove = watchers.add(told.append)
    record = watchers.after(lambda completion: (completion.text,))
    for load_s in (0.0, 0.3):
        assert record(Completion("kept", (), "stop", Timings(load_s=load_s))) == ("kept",)
    assert told == ["model"]
    remove()
    record(Completion("", (), "stop", Timings(load_s=0.3)))
    assert told == ["model"]
