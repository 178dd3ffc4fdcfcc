"""One measured figure, and how it is judged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

__all__ = ["Row", "at_least", "at_most", "between", "failed", "info"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    what
        What was measured.
    rounds
        What every round gave; their median counts. Empty where nothing could be measured.
    unit
        "" for a ratio, otherwise "s", "µs" and so on.
    least, most
        What the median should be at least and at most; a line without either only informs.
    note
        What the figure is made of.
    """

    what: str
    rounds: tuple[float, ...]
    unit: str = ""
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def measured(self) -> float:
        """The median of the rounds; nan where there are none."""
        return statistics.median(self.rounds) if self.rounds else math.nan

    @property
    def target(self) -> str:
        """What is to be reached, in words; empty for a line that only informs."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {_bound(self.most, self.unit)}"
        if self.least is not None:
            return f"≥ {_bound(self.least, self.unit)}"
        return "" if self.most is None else f"≤ {_bound(self.most, self.unit)}"

    @property
    def reached(self) -> bool | None:
        """None for a line that only informs."""
        if not self.rounds:
            return False
        if self.least is None and self.most is None:
            return None
        least = -math.inf if self.least is None else self.least
        return least <= self.measured <= (math.inf if self.most is None else self.most)

    @property
    def value(self) -> str:
        """The measured value in words."""
        return _number(self.measured, self.unit) if self.rounds else "not measured"

    @property
    def verdict(self) -> str:
        """Whether the target was reached: yes, no, or nothing where there is none."""
        return {True: "yes", False: "**no**", None: ""}[self.reached]

    @property
    def spread(self) -> str:
        """The range of the rounds and their number."""
        if not self.rounds:
            return ""
        low, high = _number(min(self.rounds), self.unit), _number(max(self.rounds), self.unit)
        return f"{low} to {high}, {len(self.rounds)} rounds" if len(self.rounds) > 1 else "1 round"

    def behind(self, before: Row) -> Row:
        """Return this row with the rounds of the same thing, measured before, in front of its own."""
        return replace(self, rounds=(*before.rounds, *self.rounds))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """Return the row that `to_dict` gave."""
        kept = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**kept, "rounds": tuple(kept["rounds"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain dict, with the median and whether that is enough."""
        measured = self.measured if self.rounds else None
        return {**asdict(self), "measured": measured, "target": self.target, "reached": self.reached}


def _number(value: float, unit: str) -> str:
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif unit == "µs":
        text = f"{value:.1f}"
    else:
        text = f"{value:.3f}"
    return f"{text} {unit}" if unit else text


def _bound(limit: float, unit: str) -> str:
    return f"{limit:g} {unit}" if unit else f"{limit:g}"


def at_least(what: str, limit: float, rounds: Sequence[float], unit: str = "", note: str = "") -> Row:
    """Return a row whose median should be `limit` or more."""
    return Row(what, tuple(rounds), unit, least=limit, note=note)


def at_most(what: str, limit: float, rounds: Sequence[float], unit: str = "", note: str = "") -> Row:
    """Return a row whose median should be `limit` or less."""
    return Row(what, tuple(rounds), unit, most=limit, note=note)


def between(what: str, low: float, high: float, rounds: Sequence[float], unit: str = "", note: str = "") -> Row:
    """Return a row whose median should lie within these limits."""
    return Row(what, tuple(rounds), unit, low, high, note)


def info(what: str, rounds: Sequence[float], unit: str = "", note: str = "") -> Row:
    """Return a row without a target."""
    return Row(what, tuple(rounds), unit, note=note)


def failed(what: str, reason: str) -> Row:
    """Return a row for what could not be measured."""
    return Row(what, (), note=reason)
