"""Choosing a level by what it may take and lose: the search, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama_magic.evaluation.recommend import short
from llama_magic.markup import badge, bar, heading, note, page, table, text_table
from llama_magic.models.card import clean
from llama_magic.units import format_bytes

__all__ = ["Choice", "Search", "Trial"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One level that was looked at.

    Attributes
    ----------
    name, size
        The level, and bytes of its file.
    memory
        Bytes that it takes when it is loaded, computed beforehand.
    kld, kld_error, tps
        What was measured; None where it was not.
    verdict
        What speaks for or against it.
    chosen
        It is the one.
    """

    name: str
    size: int
    memory: int
    kld: float | None = None
    kld_error: float | None = None
    tps: float | None = None
    verdict: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Choice:
    """The level to load, and why.

    Attributes
    ----------
    ref
        What `load` takes: the file of the level.
    level
        Its name.
    reason
        Why this one.
    tried
        Every level that there was to choose from, the smallest first.
    notes
        What is worth knowing, in sentences.
    """

    ref: str
    level: str
    reason: str
    tried: tuple[Trial, ...]
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return self.ref

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for trial in self.tried:
            error = f" ± {short(trial.kld_error)}" if trial.kld_error else ""
            rows.append((
                ("★ " if trial.chosen else "") + clean(trial.name),
                format_bytes(trial.size),
                format_bytes(trial.memory),
                "" if trial.kld is None else f"{short(trial.kld)}{error}",
                "" if trial.tps is None else f"{trial.tps:.1f}",
                trial.verdict,
            ))  # fmt: skip
        return rows

    def __repr__(self) -> str:
        lines = [f"{self.level}: {self.reason}", text_table(_HEAD, self._rows(), "lrrrrl"), *self.notes]
        return "\n".join([*lines, f"load it: {self.ref}"])

    def _repr_html_(self) -> str:
        largest = max((trial.size for trial in self.tried), default=1)
        rows = [
            (row[0], bar(trial.size / largest, row[1]), *row[2:5], badge(row[5], "good") if trial.chosen else row[5])
            for trial, row in zip(self.tried, self._rows(), strict=True)
        ]
        measured = sum(trial.kld is not None for trial in self.tried)
        more = f"{measured} of {len(self.tried)} levels were measured"
        notes = [note(clean(sentence, 2000)) for sentence in self.notes]
        title = heading(f"{clean(self.level)}: {clean(self.reason, 2000)}", more)
        return page(title, table(_HEAD, rows, "lrrrrl"), *notes, note(f"load it: {clean(self.ref, 2000)}"))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self)


_HEAD = ("level", "size", "memory", "KLD", "tok/s", "")


class Search:
    """Finds the smallest level that is good enough, with few measurements: bisection.

    Larger levels are taken to lose less. That is checked on everything that was measured: where a smaller one lost less
    than a larger one by more than the errors explain, all smaller levels are measured before one is chosen.

    Parameters
    ----------
    count
        Levels, the smallest first.
    measure
        Measures the level of a number; returns its divergence and the error, or None where it could not be measured.
    max_kld
        Divergence that is good enough.

    Attributes
    ----------
    found
        What was measured, by number.
    monotonic
        Larger levels did lose less.
    """

    def __init__(self, count: int, measure: Callable[[int], tuple[float, float] | None], max_kld: float) -> None:
        self.found: dict[int, tuple[float, float] | None] = {}
        self.monotonic = True
        self._count = count
        self._measure = measure
        self._max = max_kld

    def good(self, number: int) -> bool:
        """Tell whether a level is good enough, measured where it was not yet."""
        if number not in self.found:
            self.found[number] = self._measure(number)
        value = self.found[number]
        return value is not None and value[0] <= self._max

    def smallest(self) -> int | None:
        """Return the number of the smallest level that is good enough, None where none is."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self.good(middle):
                high = middle
            else:
                low = middle + 1
        best = low if low < self._count else None
        if self._broken():
            self.monotonic = False
            best = next((number for number in range(self._count if best is None else best) if self.good(number)), best)
        return best

    def _broken(self) -> bool:
        values: Sequence[tuple[float, float]] = [value for _, value in sorted(self.found.items()) if value is not None]
        for place, (larger, larger_error) in enumerate(values):
            for smaller, smaller_error in values[:place]:
                error = (larger_error**2 + smaller_error**2) ** 0.5
                if larger > smaller + 2 * error:
                    return True
        return any(value is None for value in self.found.values())
