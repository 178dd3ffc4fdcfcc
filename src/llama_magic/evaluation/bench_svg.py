"""Bars of speeds, with their standard deviations as whiskers, in groups that have a scale each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from llama_magic import svg
from llama_magic.markup import Html

__all__ = ["Bar", "bars_svg"]

_WIDTH, _ROW, _HEAD = 700, 20, 24
_CHAR = 6.1  # pixels of a character at 11 px, about
_MOST_LABEL = 46
_VALUE = 118


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, mean and standard deviation in tokens per second, and the number of repetitions."""

    label: str
    mean: float
    stdev: float
    count: int


def _clip(label: str) -> str:
    return label if len(label) <= _MOST_LABEL else f"{label[: _MOST_LABEL // 2]}…{label[-_MOST_LABEL // 2 + 1 :]}"


def bars_svg(groups: Mapping[str, Sequence[Bar]]) -> Html:
    """Draw groups of bars below each other, the longest of each as wide as there is room."""
    longest = max(len(_clip(bar.label)) for bars in groups.values() for bar in bars)
    left = 8 + _CHAR * longest
    room = _WIDTH - left - _VALUE
    parts, y = list[str](), 0.0
    for name, bars in groups.items():
        parts.append(svg.text(0, y + 15, f"{name}, tok/s", "start", ";font-weight:600"))
        y += _HEAD
        most = max(bar.mean + bar.stdev for bar in bars) or 1.0
        for bar in bars:
            parts += _bar(bar, left, room, most, y)
            y += _ROW
        y += 6
    told = "; ".join(f"{name}: " + ", ".join(f"{b.label} {b.mean:.1f}" for b in bars) for name, bars in groups.items())
    return svg.svg(_WIDTH, round(y), f"tokens per second. {told}", parts)


def _bar(bar: Bar, left: float, room: float, most: float, y: float) -> list[str]:
    wide = room * bar.mean / most
    low, high = (left + room * max(0.0, value) / most for value in (bar.mean - bar.stdev, bar.mean + bar.stdev))
    middle = y + _ROW / 2
    shown = f"{bar.mean:,.1f}" + (f" ± {bar.stdev:,.1f}" if bar.count > 1 else "")
    told = f"{bar.label}: {shown} tok/s, {bar.count} repetition{'' if bar.count == 1 else 's'}"
    box = f'x="{left:.1f}" y="{y + 3:.1f}" width="{max(wide, 1):.1f}" height="{_ROW - 6}" rx="2"'
    parts = [
        f"<g><title>{escape(told)}</title>",
        svg.text(left - 6, middle + 4, _clip(bar.label), "end"),
        f'<rect {box} style="fill:{svg.BLUE}"/>',
    ]
    if bar.count > 1 and bar.stdev:
        stroke = "stroke:currentColor;stroke-width:1.5"
        parts.append(svg.line(low, middle, high, middle, stroke))
        parts += [svg.line(x, middle - 4, x, middle + 4, stroke) for x in (low, high)]
    parts.append(svg.text(max(high, left + wide) + 6, middle + 4, shown, "start") + "</g>")
    return parts
