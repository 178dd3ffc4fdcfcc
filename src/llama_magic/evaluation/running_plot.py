"""A small plot of how the figures settled while the text was read: a line for each model, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_magic.evaluation.requests import Z95, Estimate, distinct_names, short_name
from llama_magic.markup import Html
from llama_magic.svg import line, path, svg, text

__all__ = ["running_plot"]

_WIDTH, _HEIGHT = 680, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 190, 12, 34
#: Colours that both themes show, and dashes that tell the lines apart without them.
_COLOURS = ("#1976d2", "#d9731a", "#388e3c", "#ab47bc", "#00897b", "#c62828", "#8d6e63", "#5c6bc0")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 2", "12 4", "5 2 1 2")
#: Lines that can be told apart.
_MOST = 8


def _value(estimate: Estimate) -> tuple[float, float]:
    """Return the figure that is drawn, and its error: KL divergence, or perplexity where there is no base."""
    if estimate.kld is not None and estimate.kld_error is not None:
        return estimate.kld, estimate.kld_error
    return estimate.ppl, estimate.ppl_error


def running_plot(items: Sequence[Any]) -> Html:
    """Draw the running mean of each model over the chunks, and its 95 % confidence interval."""
    shown = [item for item in items if len(item.running) > 1][:_MOST]
    if not shown:
        return Html("")
    longest = max(len(item.running) for item in shown)
    # the first chunks have intervals so wide that they would flatten all that follows
    settled = [_value(point) for item in shown for point in item.running[max(1, len(item.running) // 4) :]]
    low = min(value - Z95 * error for value, error in settled)
    high = max(value + Z95 * error for value, error in settled)
    kld = shown[0].running[0].kld is not None
    if kld:
        low = max(low, 0.0)
    high = high if high > low else low + 1.0
    floor = _HEIGHT - _BOTTOM

    def x(number: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * number / (longest - 1)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return _TOP + (floor - _TOP) * (high - inside) / (high - low)

    grid = "stroke:currentColor;stroke-opacity:.18"
    parts = []
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        parts += [line(_LEFT, y(value), x(longest - 1), y(value), grid)]
        parts += [text(_LEFT - 6, y(value) + 4, f"{value:.3g}", "end")]
    labels = []
    names = [name[:22] for name in distinct_names([item.model for item in shown])] if len(shown) > 1 else ["now"]
    for number, item in enumerate(shown):
        points = [_value(point) for point in item.running]
        colour, dash = _COLOURS[number], _DASHES[number]
        upper = [(x(place), y(value + Z95 * error)) for place, (value, error) in enumerate(points)]
        lower = [(x(place), y(value - Z95 * error)) for place, (value, error) in enumerate(points)]
        parts.append(path([*upper, *reversed(lower)], f"fill:{colour};fill-opacity:.13;stroke:none", closed=True))
        middle = [(x(place), y(value)) for place, (value, _) in enumerate(points)]
        parts.append(path(middle, f"fill:none;stroke:{colour};stroke-width:2;stroke-dasharray:{dash or 'none'}"))
        labels.append((middle[-1], colour, dash, f"{names[number]} {points[-1][0]:.4g}"))
    parts += _labels(labels)
    parts += [text(x(0), floor + 15, "1", "start"), text(x(longest - 1), floor + 15, f"{longest:,} chunks", "end")]
    name = "mean KL divergence (nats)" if kld else "perplexity"
    parts.append(text((_LEFT + x(longest - 1)) / 2, _HEIGHT - 4, f"running {name}, 95 % interval shaded"))
    return svg(_WIDTH, _HEIGHT, f"running {name} of {', '.join(short_name(item.model, 26) for item in shown)}", parts)


def _labels(labels: Sequence[tuple[tuple[float, float], str, str, str]]) -> list[str]:
    """Write the names beside the ends of the lines, pushed apart where these lie close."""
    parts, last = [], -100.0
    for (right, height), colour, dash, words in sorted(labels, key=lambda label: label[0][1]):
        last = max(height, last + 14)
        parts.append(
            line(right + 4, last, right + 26, last, f"stroke:{colour};stroke-width:2;stroke-dasharray:{dash or 'none'}")
        )
        parts.append(text(right + 31, last + 4, words, "start"))
    return parts
