"""One measured figure, and how it is judged."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["Row", "at_least", "at_most", "between", "failed", "info"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    what
        What was measured.
    target
        What is to be reached; empty for a line that only informs.
    measured
        The median of the rounds; nan where nothing could be measured.
    unit
        "" for a ratio, otherwise "s", "µs" and so on.
    rounds
        What every round gave.
    reached
        None for a line that only informs.
    note
        What the figure is made of.
    """

    what: str
    target: str
    measured: float
    unit: str
    rounds: tuple[float, ...]
    reached: bool | None
    note: str = ""

    @property
    def value(self) -> str:
        """The measured value in words."""
        return "not measured" if math.isnan(self.measured) else _number(self.measured, self.unit)

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

    def joined(self, other: Row) -> Row:
        """Return `other`, measured of the same thing later, with the rounds of both: all of them count."""
        rounds = (*self.rounds, *other.rounds)
        if not self.rounds or not other.rounds or self.target != other.target:
            return other
        median = statistics.median(rounds)
        limits = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,.]*", self.target)]
        reached = None
        if self.target.startswith("≥"):
            reached = median >= limits[0]
        elif self.target.startswith("≤"):
            reached = median <= limits[0]
        elif self.target:
            reached = limits[0] <= median <= limits[1]
        return replace(other, rounds=rounds, measured=median, reached=reached)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """Return the row that `to_dict` gave."""
        measured = math.nan if values["measured"] is None else values["measured"]
        return cls(**{**values, "measured": measured, "rounds": tuple(values["rounds"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a plain dict."""
        values = asdict(self)
        values["measured"] = None if math.isnan(self.measured) else self.measured
        return values


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
    median = statistics.median(rounds)
    return Row(what, f"≥ {_bound(limit, unit)}", median, unit, tuple(rounds), median >= limit, note)


def at_most(what: str, limit: float, rounds: Sequence[float], unit: str = "", note: str = "") -> Row:
    """Return a row whose median should be `limit` or less."""
    median = statistics.median(rounds)
    return Row(what, f"≤ {_bound(limit, unit)}", median, unit, tuple(rounds), median <= limit, note)


def between(what: str, low: float, high: float, rounds: Sequence[float], unit: str = "", note: str = "") -> Row:
    """Return a row whose median should lie within these limits."""
    median = statistics.median(rounds)
    target = f"{low:g} to {_bound(high, unit)}"
    return Row(what, target, median, unit, tuple(rounds), low <= median <= high, note)


def info(what: str, rounds: Sequence[float], unit: str = "", note: str = "") -> Row:
    """Return a row without a target."""
    return Row(what, "", statistics.median(rounds), unit, tuple(rounds), None, note)


def failed(what: str, reason: str) -> Row:
    """Return a row for what could not be measured."""
    return Row(what, "", math.nan, "", (), reached=False, note=reason)
