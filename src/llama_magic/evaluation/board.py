"""Gathers what workers tell of the levels, until it is a `Comparison`. The kernel's side."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from llama_magic.evaluation.comparison import Answer, Comparison, LevelResult
from llama_magic.evaluation.differences import parting, words_of
from llama_magic.evaluation.levels import LevelUpdate, QuantizationLevel
from llama_magic.evaluation.recommend import MAX_KLD, recommend

__all__ = ["Board"]


class Board:
    """The state of a comparison while it runs.

    What is on it stays, whatever becomes of the workers: an interrupt or a killed worker loses nothing that was told.

    Attributes
    ----------
    notes
        What is worth knowing of all of it.
    facts
        Attributes of the `Comparison` that became known.
    pace
        Tokens of the answers so far, and tokens a second.
    running
        Name of the level that was worked on last; empty between levels.
    """

    def __init__(self, levels: Iterable[QuantizationLevel], base: str | None, **facts: Any) -> None:
        self.base = base
        self.facts: dict[str, Any] = facts
        self.notes: list[str] = []
        self.running = ""
        self._rows: dict[str, LevelResult] = {level.name: _row(level, base) for level in levels}
        self.pace: dict[str, tuple[int, float]] = {}
        self._written: dict[str, list[str]] = {name: [] for name in self._rows}
        self._started = time.monotonic()

    @property
    def rows(self) -> tuple[LevelResult, ...]:
        """The levels as they are now."""
        return tuple(self._rows.values())

    def text(self, name: str) -> str:
        """Return what a level has written so far."""
        return "".join(self._written[name])

    def apply(self, update: LevelUpdate) -> None:
        """Take what became known."""
        self.running = update.level
        if update.level not in self._rows:
            return
        if update.count:
            self.pace[update.level] = update.count, update.tps
        if update.text:
            self._written[update.level].append(update.text)
        if update.values:
            values = dict(update.values)
            if "notes" in values:
                values["notes"] = tuple(dict.fromkeys((*self._rows[update.level].notes, *values["notes"])))
            self._rows[update.level] = replace(self._rows[update.level], **values)

    def set(self, name: str, **values: Any) -> None:
        """Change a level."""
        self._rows[name] = replace(self._rows[name], **values)

    def take(self, row: LevelResult) -> None:
        """Put a whole row in, from another board."""
        self._rows[row.name] = row
        self._written.setdefault(row.name, [])

    def add(self, level: QuantizationLevel) -> None:
        """Add a level."""
        self._rows[level.name] = _row(level, self.base)
        self._written[level.name] = []

    def forget_answer(self, name: str) -> None:
        """Drop what a level wrote: it begins again."""
        self._written[name].clear()
        self.pace.pop(name, None)

    def note(self, sentence: str) -> None:
        """Add what is worth knowing of all of it, once."""
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)

    def learn(self, facts: Mapping[str, Any]) -> None:
        """Take what a worker found out about all of it."""
        for name, value in facts.items():
            if name == "machine":
                self.facts["machine"] = {**self.facts.get("machine", {}), **value}
            elif name == "chunks":
                self.facts["chunks"] = max(value, self.facts.get("chunks", 0))
            else:
                self.facts[name] = value

    def comparison(self, *, interrupted: bool = False, max_kld: float = MAX_KLD) -> Comparison:
        """Return what there is as a result."""
        rows = tuple(map(self._whole, self._rows.values()))
        base = next((row for row in rows if row.base and row.answer), None)
        if base is not None and base.answer is not None:
            reference = words_of(base.answer.text)
            rows = tuple(
                row if row.answer is None else replace(row, parting=parting(reference, words_of(row.answer.text)))
                for row in rows
            )
        return Comparison(
            levels=rows,
            recommendation=recommend(rows, max_kld),
            notes=tuple(self.notes),
            seconds=time.monotonic() - self._started,
            interrupted=interrupted,
            **self.facts,
        )

    def _whole(self, row: LevelResult) -> LevelResult:
        """Return a row with the answer that was cut off, where it was."""
        text = self.text(row.name)
        if row.answer is not None or not text:
            return row
        return replace(row, answer=Answer(text, finish_reason="interrupted"))


def _row(level: QuantizationLevel, base: str | None) -> LevelResult:
    return LevelResult(
        name=level.name,
        path=level.path,
        ftype=level.ftype,
        size=level.size,
        bits_per_weight=level.bits_per_weight,
        imatrix=level.imatrix,
        made=level.made,
        base=level.name == base,
        notes=level.notes,
        error=level.error,
    )
