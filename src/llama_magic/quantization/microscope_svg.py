"""The microscope's two pictures: a group of weights between the values that can be stored, and a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from llama_magic.markup import Html
from llama_magic.svg import BLUE, RED, line, svg, text

__all__ = ["histogram_svg", "weights_svg"]

_WIDTH = 680
_LEFT, _RIGHT = 62, 12
#: Lines for single values are drawn up to this many; more would be a grey area.
_MOST_LINES = 40


def weights_svg(original: Sequence[float], quantized: Sequence[float], steps: Sequence[float], first: int) -> Html:
    """Draw weights as rings, what they became as squares, and the values that can be stored as lines.

    Parameters
    ----------
    steps
        All values that a weight of this group may take.
    first
        Number of the first weight in its block.
    """
    height, top, bottom = 240, 12, 42
    values = [value for value in (*original, *quantized) if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or abs(high) or 1.0
    low, high = low - pad, high + pad

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    wide = (_WIDTH - _LEFT - _RIGHT) / max(len(original), 1)

    def x(place: int) -> float:
        return _LEFT + wide * (place + 0.5)

    parts = []
    shown = sorted({step for step in steps if low <= step <= high})
    if len(shown) <= _MOST_LINES:
        grid = "stroke:currentColor;stroke-opacity:.25;stroke-width:1"
        parts += [line(_LEFT, y(step), _WIDTH - _RIGHT, y(step), grid) for step in shown]
    last = math.inf
    for step in reversed(shown if len(shown) <= _MOST_LINES else [low + pad, 0.0, high - pad]):
        if abs(y(step) - last) >= 13 or last == math.inf:
            last = y(step)
            parts.append(text(_LEFT - 6, last + 4, f"{step:.3g}", "end"))
    for place, (before, after) in enumerate(zip(original, quantized, strict=True)):
        told = f"weight {first + place}: {before:.6g} became {after:.6g}, error {after - before:+.3g}"
        parts.append(
            f"<g><title>{escape(told)}</title>"
            + line(x(place), y(before), x(place), y(after), f"stroke:{RED};stroke-width:2")
            + f'<circle cx="{x(place):.1f}" cy="{y(before):.1f}" r="4" style="fill:none;stroke:currentColor"/>'
            + f'<rect x="{x(place) - 2.5:.1f}" y="{y(after) - 2.5:.1f}" width="5" height="5" style="fill:{BLUE}"/></g>'
        )
        if place % 4 == 0:
            parts.append(text(x(place), height - bottom + 15, str(first + place)))
    legend = height - 8
    parts += [
        f'<circle cx="{_LEFT + 6}" cy="{legend - 4}" r="4" style="fill:none;stroke:currentColor"/>',
        text(_LEFT + 15, legend, "original weight", "start"),
        f'<rect x="{_LEFT + 116}" y="{legend - 7}" width="5" height="5" style="fill:{BLUE}"/>',
        text(_LEFT + 127, legend, "what is stored", "start"),
        line(_LEFT + 226, legend - 10, _LEFT + 226, legend + 1, f"stroke:{RED};stroke-width:2"),
        text(_LEFT + 233, legend, "error", "start"),
    ]
    if len(shown) <= _MOST_LINES:
        parts.append(text(_LEFT + 290, legend, "lines: the values that can be stored", "start"))
    return svg(_WIDTH, height, f"{len(original)} weights before and after quantizing", parts)


def histogram_svg(low: float, high: float, counts: Sequence[int], rmse: float) -> Html:
    """Draw how often each error occurs, with marks at the RMSE to both sides."""
    height, top, bottom = 170, 14, 34
    most = max(counts, default=0) or 1
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(counts), 1)
    floor = height - bottom
    parts = []
    for place, count in enumerate(counts):
        tall = (floor - top) * count / most
        parts.append(
            f'<rect x="{_LEFT + place * width:.1f}" y="{floor - tall:.1f}" width="{max(width - 1, 1):.1f}" '
            f'height="{tall:.1f}" style="fill:{BLUE}"><title>{count:,} weights</title></rect>'
        )
    parts.append(line(_LEFT, floor, _WIDTH - _RIGHT, floor, "stroke:currentColor;stroke-opacity:.5"))
    parts += [text(_LEFT - 6, top + 8, f"{most:,}", "end"), text(_LEFT - 6, floor, "0", "end")]
    if high > low:

        def x(value: float) -> float:
            return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

        parts += [text(x(low), floor + 15, f"{low:.2g}", "start"), text(x(high), floor + 15, f"{high:.2g}", "end")]
        parts.append(text(x(0), floor + 15, "0"))
        for sign, name in ((-1, "-RMSE"), (1, "+RMSE")):
            if abs(rmse) < high:
                dashes = "stroke:currentColor;stroke-dasharray:4 3"
                parts += [
                    line(x(sign * rmse), top, x(sign * rmse), floor, dashes),
                    text(x(sign * rmse), top - 3, name),
                ]
    parts.append(text((_LEFT + _WIDTH) / 2, height - 3, "error of a weight (quantized minus original)"))
    return svg(_WIDTH, height, "histogram of the errors of all weights of the tensor", parts)
