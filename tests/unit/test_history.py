from __future__ import annotations

from llama_magic.inference.conversation import Conversation, Turn
from llama_magic.inference.results import Completion, Timings
from llama_magic.notebook.history import history_bundle


def test_nothing_in_it_is_markup() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    conversation = Conversation(evil.replace("/", ""), evil)
    conversation.record(Turn(evil, Completion(evil, (1,), "stop", Timings())))
    bundle = history_bundle(conversation, "markdown")
    assert "<script" not in bundle["text/html"]
    assert "<img" not in bundle["text/html"]
    assert bundle["text/html"].count("&lt;script") >= 4
    assert evil in bundle["text/plain"]


def test_a_branch() -> None:
    conversation = Conversation("c")
    conversation.record(Turn("a", Completion("A", (1,), "stop", Timings())))
    conversation.start_over()
    assert history_bundle(conversation, "text")["text/plain"] == "c, 0 turns; branches: branch-1"
    assert history_bundle(conversation, "text", "branch-1")["text/plain"].startswith("c/branch-1, 1 turn\n\n1. a\n\nA")
