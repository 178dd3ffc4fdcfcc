"""Bars of speeds, with their standard deviations as whiskers, in groups that have a scale each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from llama_magic.markup import Html

__all__ = ["Bar", "bars_svg"]

_WIDTH, _ROW, _HEAD = 700, 20, 24
_CHAR = 6.1  # pixels of a character at 11 px, about
_MOST_LABEL = 46
_VALUE = 118
_FONT = "font:11px var(--jp-ui-font-family,sans-serif);fill:currentColor"
_FILL = "fill:var(--jp-brand-color1,#1976d2)"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, mean and standard deviation in tokens per second, and the number of repetitions."""

    label: str
    mean: float
    stdev: float
    count: int


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{_FONT}{more}">{escape(text)}</text>'


def _clip(label: str) -> str:
    return label if len(label) <= _MOST_LABEL else f"{label[: _MOST_LABEL // 2]}…{label[-_MOST_LABEL // 2 + 1 :]}"


def bars_svg(groups: Mapping[str, Sequence[Bar]]) -> Html:
    """Draw groups of bars below each other, the longest of each as wide as there is room."""
    longest = max(len(_clip(bar.label)) for bars in groups.values() for bar in bars)
    left = 8 + _CHAR * longest
    room = _WIDTH - left - _VALUE
    parts, y = list[str](), 0.0
    for name, bars in groups.items():
        parts.append(_text(0, y + 15, f"{name}, tok/s", "start", ";font-weight:600"))
        y += _HEAD
        most = max(bar.mean + bar.stdev for bar in bars) or 1.0
        for bar in bars:
            parts += _bar(bar, left, room, most, y)
            y += _ROW
        y += 6
    told = "; ".join(f"{name}: " + ", ".join(f"{b.label} {b.mean:.1f}" for b in bars) for name, bars in groups.items())
    return Html(
        f'<svg role="img" aria-label="{escape(f"tokens per second. {told}")}" viewBox="0 0 {_WIDTH} {y:.0f}" '
        f'style="width:100%;max-width:{_WIDTH}px;height:auto;color:var(--jp-ui-font-color1,inherit)" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _bar(bar: Bar, left: float, room: float, most: float, y: float) -> list[str]:
    wide = room * bar.mean / most
    low, high = (left + room * max(0.0, value) / most for value in (bar.mean - bar.stdev, bar.mean + bar.stdev))
    middle = y + _ROW / 2
    shown = f"{bar.mean:,.1f}" + (f" ± {bar.stdev:,.1f}" if bar.count > 1 else "")
    told = f"{bar.label}: {shown} tok/s, {bar.count} repetition{'' if bar.count == 1 else 's'}"
    parts = [
        f"<g><title>{escape(told)}</title>",
        _text(left - 6, middle + 4, _clip(bar.label), "end"),
        f'<rect x="{left:.1f}" y="{y + 3:.1f}" width="{max(wide, 1):.1f}" height="{_ROW - 6}" rx="2" style="{_FILL}"/>',
    ]
    if bar.count > 1 and bar.stdev:
        stroke = 'style="stroke:currentColor;stroke-width:1.5"'
        parts.append(f'<line x1="{low:.1f}" y1="{middle:.1f}" x2="{high:.1f}" y2="{middle:.1f}" {stroke}/>')
        parts += [
            f'<line x1="{x:.1f}" y1="{middle - 4:.1f}" x2="{x:.1f}" y2="{middle + 4:.1f}" {stroke}/>'
            for x in (low, high)
        ]
    parts.append(_text(max(high, left + wide) + 6, middle + 4, shown, "start") + "</g>")
    return parts
