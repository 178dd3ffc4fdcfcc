"""Conversations: turns, branches, and what to send for the next turn.

Plain data and logic: nothing here knows of IPython or of a model. The warm cache of a
conversation lives in the worker, under `Conversation.key`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from llama_magic.errors import ConversationError, InvalidRequestError
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Completion, Message, Receipt, Timings
from llama_magic.suggest import did_you_mean

__all__ = ["CellRun", "Conversation", "Recorded", "Turn"]

#: What a saved conversation calls itself, and the version of its layout.
FORMAT = "llama_magic conversation"
VERSION = 1


class CellRun(NamedTuple):
    """One execution of one notebook cell.

    `cell` stays the same when the cell runs again, `run` does not. A loop that asks three
    times within one execution makes three turns; running the cell again replaces them.
    """

    cell: str
    run: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer.

    Attributes
    ----------
    user
        What was asked.
    completion
        The answer.
    params
        How it was sampled, for `retry`; None where that is not known.
    origin
        The cell it came from, or None.
    """

    user: str
    completion: Completion
    params: SamplingParams | None = None
    origin: CellRun | None = None

    @property
    def text(self) -> str:
        """The text of the answer."""
        return self.completion.text

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict: the texts, and how the answer came about."""
        receipt = self.completion.receipt
        return {
            "user": self.user,
            "assistant": self.completion.text,
            "tokens": list(self.completion.tokens),
            "finish_reason": self.completion.finish_reason,
            "params": None if self.params is None else self.params.changed(),
            "receipt": None if receipt is None else receipt.to_dict(),
            "cell": None if self.origin is None else list(self.origin),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Turn:
        """Rebuild a turn; what is missing or unknown is left out, the two texts are needed."""
        receipt = _receipt(data.get("receipt"))
        known = {f.name for f in fields(Timings)}
        completion = Completion(
            text=_text(data, "assistant"),
            tokens=tuple(int(token) for token in data.get("tokens") or ()),
            finish_reason=str(data.get("finish_reason") or "stop"),
            timings=Timings(**{n: v for n, v in receipt.timings.items() if n in known}) if receipt else Timings(),  # type: ignore[arg-type]
            receipt=receipt,
        )
        params, cell = data.get("params"), data.get("cell")
        return cls(
            user=_text(data, "user"),
            completion=completion,
            params=SamplingParams.from_keywords(**params) if params else None,
            origin=CellRun(str(cell[0]), str(cell[1])) if cell else None,
        )


class Recorded(NamedTuple):
    """What recording a turn did: the turns dropped, and the branch that keeps them (or None)."""

    dropped: int
    branch: str | None

    @property
    def note(self) -> str | None:
        """A sentence for the footer, or None when the turn was simply added."""
        if not self.dropped:
            return None
        if self.branch is None:
            return "turn replaced"
        later = self.dropped - 1
        return f"turn replaced; {later} later turn{'' if later == 1 else 's'} kept as branch '{self.branch}'"


class Conversation:
    """Turns in order, an optional system prompt, and the branches that were left.

    Parameters
    ----------
    name
        What the user calls it. A slash is not allowed: ``name/branch`` names a branch.
    system
        The system prompt, or None.
    """

    def __init__(self, name: str, system: str | None = None) -> None:
        if not name or "/" in name or name != name.strip():
            raise InvalidRequestError(f"a conversation's name must not be empty or hold a slash; got {name!r}")
        self.name = name
        self.system = system
        self.key = f"{name}-{secrets.token_hex(6)}"
        self.branches: dict[str, tuple[Turn, ...]] = {}
        self._turns: list[Turn] = []

    def __repr__(self) -> str:
        branches = f", branches={list(self.branches)}" if self.branches else ""
        return f"Conversation({self.name!r}, turns={len(self._turns)}{branches})"

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of the current line, oldest first."""
        return tuple(self._turns)

    def position(self, origin: CellRun | None) -> int:
        """Return where a turn from `origin` goes: its cell's earlier place, or the end."""
        if origin is not None:
            for index, turn in enumerate(self._turns):
                if turn.origin and turn.origin.cell == origin.cell and turn.origin.run != origin.run:
                    return index
        return len(self._turns)

    def messages(self, upto: int | None = None) -> tuple[Message, ...]:
        """Return the system prompt and the first `upto` turns (all when None) as messages."""
        messages = [Message("system", self.system)] if self.system else []
        for turn in self._turns[:upto]:
            messages += [Message("user", turn.user), Message("assistant", turn.text)]
        return tuple(messages)

    def messages_for(self, user_text: str, origin: CellRun | None = None) -> tuple[Message, ...]:
        """Return what to send so that the model answers `user_text`, asked from the cell `origin`."""
        return (*self.messages(self.position(origin)), Message("user", user_text))

    def record(self, turn: Turn) -> Recorded:
        """Add a finished turn; one from the same cell is replaced, with all that came after it."""
        index = self.position(turn.origin)
        dropped = self._turns[index:]
        own = sum(1 for old in dropped if old.origin and turn.origin and old.origin.cell == turn.origin.cell)
        branch = self._keep() if len(dropped) > own else None
        self._turns[index:] = [turn]
        return Recorded(len(dropped), branch)

    def undo(self, count: int = 1) -> tuple[Turn, ...]:
        """Remove the last `count` turns and return them."""
        if count < 1:
            raise InvalidRequestError(f"undo takes the number of turns to remove, 1 or more; got {count}")
        if count > len(self._turns):
            has = f"has only {len(self._turns)}" if self._turns else "has no turn"
            raise ConversationError(f"conversation '{self.name}' {has} to undo.")
        removed = tuple(self._turns[-count:])
        del self._turns[-count:]
        return removed

    def rewind(self, turns: int) -> str | None:
        """Go back to the first `turns` turns; return the branch that keeps the line as it was, None where none goes."""
        if not 0 <= turns <= len(self._turns):
            raise ConversationError(f"conversation '{self.name}' has {len(self._turns)} turns; there is no {turns}.")
        if turns == len(self._turns):
            return None
        branch = self._keep()
        del self._turns[turns:]
        return branch

    def last(self) -> Turn:
        """Return the last turn; `ConversationError` when there is none."""
        if not self._turns:
            raise ConversationError(f"conversation '{self.name}' has no turn yet.")
        return self._turns[-1]

    def retry(self, turn: Turn) -> str:
        """Put `turn` in place of the last one, keep the old line as a branch, and return its name."""
        self.last()
        branch = self._keep()
        self._turns[-1] = turn
        return branch

    def start_over(self) -> str | None:
        """Go back to no turns; return the branch that keeps the old ones, or None when there were none."""
        branch = self._keep() if self._turns else None
        self._turns.clear()
        return branch

    def branch(self, name: str) -> tuple[Turn, ...]:
        """Return the turns of a branch; `ConversationError` when there is none of that name."""
        if name not in self.branches:
            known = ", ".join(self.branches) or "none"
            hint = did_you_mean(name, self.branches)
            raise ConversationError(f"conversation '{self.name}' has no branch '{name}'.{hint} Branches: {known}.")
        return self.branches[name]

    def switch(self, branch: str) -> str | None:
        """Make a branch the current line; return the branch that now keeps the old line, if it had turns."""
        turns = self.branch(branch)
        del self.branches[branch]
        kept = self._keep() if self._turns else None
        self._turns[:] = turns
        return kept

    def _keep(self) -> str:
        number = 1
        while f"branch-{number}" in self.branches:
            number += 1
        self.branches[f"branch-{number}"] = self.turns
        return f"branch-{number}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything that is text, JSON-ready."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "system": self.system,
            "turns": [turn.to_dict() for turn in self._turns],
            "branches": {name: [turn.to_dict() for turn in turns] for name, turns in self.branches.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conversation:
        """Rebuild a conversation from `to_dict`'s result."""
        found: Any = data
        if not isinstance(found, Mapping) or found.get("format") != FORMAT:
            raise InvalidRequestError(f'this is no saved conversation (no "format": "{FORMAT}" in it)')
        if data.get("version") != VERSION:
            raise InvalidRequestError(
                f"the conversation was saved in layout {data.get('version')}, this llama_magic reads layout {VERSION}"
            )
        try:
            conversation = cls(str(data["name"]), data.get("system"))
            conversation._turns = [Turn.from_dict(turn) for turn in data["turns"]]
            branches = data.get("branches") or {}
            conversation.branches = {str(n): tuple(Turn.from_dict(t) for t in turns) for n, turns in branches.items()}
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise InvalidRequestError(f"the saved conversation is damaged: {error!r}") from error
        return conversation

    def to_markdown(self) -> str:
        """Return the current line as Markdown, for people to read."""
        parts = [f"# {self.name}"]
        if self.system:
            parts.append(f"## System\n\n{self.system}")
        for turn in self._turns:
            mark = "\n\n*(interrupted)*" if turn.completion.finish_reason == "interrupted" else ""
            parts += [f"## User\n\n{turn.user}", f"## Assistant\n\n{turn.text}{mark}"]
        return "\n\n".join(parts) + "\n"


def _receipt(data: Any) -> Receipt | None:
    """Rebuild a receipt; one of another version, with other fields, is left out."""
    try:
        return Receipt(**{**data, "devices": tuple(data["devices"])})
    except (KeyError, TypeError):
        return None


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not text")
    return value
