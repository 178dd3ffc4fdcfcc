from __future__ import annotations

import json

import pytest

from llama_magic.errors import ConversationError, InvalidRequestError
from llama_magic.inference.conversation import CellRun, Conversation, Turn
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Completion, Message, Receipt, Timings


def turn(user: str, text: str = "answer", cell: tuple[str, str] | None = None, reason: str = "stop") -> Turn:
    completion = Completion(text, (1, 2), reason, Timings())
    return Turn(user, completion, SamplingParams(seed=7, stop=("x",)), CellRun(*cell) if cell else None)


def users(conversation: Conversation) -> list[str]:
    return [t.user for t in conversation.turns]


def test_messages_hold_system_and_turns_in_order() -> None:
    conversation = Conversation("c", "be brief")
    conversation.record(turn("a", "A"))
    assert conversation.messages_for("b") == (
        Message("system", "be brief"),
        Message("user", "a"),
        Message("assistant", "A"),
        Message("user", "b"),
    )


def test_cells_without_id_append() -> None:
    conversation = Conversation("c")
    for user in "aaa":
        assert conversation.record(turn(user)).note is None
    assert users(conversation) == ["a", "a", "a"]


def test_running_the_last_cell_again_replaces_its_turn_and_makes_no_branch() -> None:
    conversation = Conversation("c")
    conversation.record(turn("a", cell=("A", "1")))
    assert conversation.messages_for("a2", CellRun("A", "2")) == (Message("user", "a2"),)
    assert conversation.record(turn("a2", cell=("A", "2"))).note == "turn replaced"
    assert users(conversation) == ["a2"]
    assert conversation.branches == {}


def test_running_an_earlier_cell_again_keeps_what_came_after_as_a_branch() -> None:
    conversation = Conversation("c")
    for name in "ABC":
        conversation.record(turn(name.lower(), cell=(name, f"1{name}")))
    recorded = conversation.record(turn("a2", cell=("A", "2")))
    assert recorded.note == "turn replaced; 2 later turns kept as branch 'branch-1'"
    assert users(conversation) == ["a2"]
    assert [t.user for t in conversation.branches["branch-1"]] == ["a", "b", "c"]
    # The cells after it are new to this line, so they append again.
    conversation.record(turn("b2", cell=("B", "2")))
    assert users(conversation) == ["a2", "b2"]


def test_one_execution_may_make_several_turns_and_the_next_replaces_them_all() -> None:
    conversation = Conversation("c")
    for user in ("a", "b"):
        conversation.record(turn(user, cell=("A", "1")))
    assert users(conversation) == ["a", "b"]
    for user in ("a2", "b2"):
        conversation.record(turn(user, cell=("A", "2")))
    assert users(conversation) == ["a2", "b2"]
    assert conversation.branches == {}


def test_asking_changes_nothing_until_it_is_recorded() -> None:
    conversation = Conversation("c")
    conversation.record(turn("a", cell=("A", "1")))
    conversation.record(turn("b", cell=("B", "1")))
    conversation.messages_for("again", CellRun("A", "2"))
    assert users(conversation) == ["a", "b"]


def test_undo_returns_what_it_removed() -> None:
    conversation = Conversation("c")
    for user in "abc":
        conversation.record(turn(user))
    assert [t.user for t in conversation.undo(2)] == ["b", "c"]
    with pytest.raises(ConversationError, match="has only 1"):
        conversation.undo(2)
    conversation.undo()
    with pytest.raises(ConversationError, match="no turn to undo"):
        conversation.undo()
    with pytest.raises(InvalidRequestError):
        conversation.undo(0)


def test_retry_keeps_the_old_line() -> None:
    conversation = Conversation("c")
    conversation.record(turn("a", "old"))
    branch = conversation.retry(turn("a", "new"))
    assert conversation.last().text == "new"
    assert conversation.branches[branch][0].text == "old"
    with pytest.raises(ConversationError):
        Conversation("empty").retry(turn("a"))


def test_switching_branches_loses_nothing() -> None:
    conversation = Conversation("c")
    conversation.record(turn("a"))
    assert conversation.start_over() == "branch-1"
    conversation.record(turn("b"))
    kept = conversation.switch("branch-1")
    assert users(conversation) == ["a"]
    assert kept is not None
    assert [t.user for t in conversation.branches[kept]] == ["b"]
    with pytest.raises(ConversationError, match="Did you mean"):
        conversation.switch("brunch-1")


def test_keys_differ_even_for_the_same_name() -> None:
    assert Conversation("c").key != Conversation("c").key


@pytest.mark.parametrize("name", ["", "a/b", " a"])
def test_names(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        Conversation(name)


def test_saved_and_restored() -> None:
    conversation = Conversation("c", "sys")
    conversation.record(turn("a \u202e 😀 {x}\n", "A", cell=("A", "1")))
    receipt = Receipt(
        "m", "p", "h", "Q", {"seed": 7}, {}, ("CPU",), 2, 8, {"generated_tokens": 3}, "c", "l", "0", "cli", "chat"
    )
    conversation.record(Turn("b", Completion("B", (3,), "interrupted", Timings(), receipt)))
    conversation.start_over()
    conversation.record(turn("n"))
    data = json.loads(json.dumps(conversation.to_dict()))
    again = Conversation.from_dict(data)
    assert again.to_dict() == conversation.to_dict()
    first, second = again.branches["branch-1"]
    assert first.params == SamplingParams(seed=7, stop=("x",))
    assert first.origin == CellRun("A", "1")
    assert second.completion.receipt == receipt
    assert second.completion.timings.generated_tokens == 3


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"format": "llama_magic conversation", "version": 99},
        {"format": "llama_magic conversation", "version": 1},
        {"format": "llama_magic conversation", "version": 1, "name": "c", "turns": [{"user": 1, "assistant": "a"}]},
        {"format": "llama_magic conversation", "version": 1, "name": "c", "turns": [3]},
        {"format": "llama_magic conversation", "version": 1, "name": "c", "turns": [], "branches": 3},
    ],
)
def test_what_is_no_saved_conversation(data: object) -> None:
    with pytest.raises(InvalidRequestError):
        Conversation.from_dict(data)  # type: ignore[arg-type]


def test_markdown() -> None:
    conversation = Conversation("c", "sys")
    conversation.record(turn("a", "A", reason="interrupted"))
    assert conversation.to_markdown() == (
        "# c\n\n## System\n\nsys\n\n## User\n\na\n\n## Assistant\n\nA\n\n*(interrupted)*\n"
    )
