"""The chart of a comparison: size or speed against KL divergence, with error bars and the frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from llama_magic.markup import Html
from llama_magic.units import format_bytes

__all__ = ["NOTEBOOK", "PAPER", "Point", "Theme", "frontier", "pareto_svg"]

_WIDTH, _HEIGHT = 520, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 20, 46
#: Below this a divergence is rounding, and on a logarithmic axis it would push all others together.
_FLOOR = 1e-6
_RADIUS = 5.0
_LETTER = 6.6  # width of a letter of a label


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of text and lines, of the frontier, and of the ground behind labels; and the font."""

    text: str
    accent: str
    ground: str
    font: str


#: Follows JupyterLab's theme, with fallbacks for pages without one.
NOTEBOOK = Theme("currentColor", "var(--jp-brand-color1,#1976d2)", "var(--jp-layout-color0,Canvas)", "sans-serif")
#: For files: dark on white.
PAPER = Theme("#1a1a1a", "#1565c0", "#ffffff", "DejaVu Sans, Liberation Sans, Arial, Helvetica, sans-serif")


@dataclass(frozen=True, slots=True)
class Point:
    """One level: place on the x axis, divergence, and their errors."""

    name: str
    x: float
    kld: float
    x_error: float = 0.0
    kld_error: float = 0.0
    chosen: bool = False


def frontier(points: Sequence[Point], *, more_is_better: bool) -> list[Point]:
    """Return the points that no other beats in both directions, the best divergence first."""
    sign = -1 if more_is_better else 1
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.kld, sign * point.x)):
        if not found or sign * point.x < sign * found[-1].x:
            found.append(point)
    return found


def pareto_svg(
    points: Sequence[Point], base: tuple[str, float] | None, x: str, theme: Theme = NOTEBOOK, *, sized: bool = False
) -> Html:
    """Draw the chart.

    Parameters
    ----------
    base
        Name of the reference and its place on the x axis. Its own divergence is 0, which a logarithmic axis lacks.
    x
        "size" (bytes, less is better) or "speed" (tokens a second, more is better).
    sized
        Give the picture a size of its own, for a file.
    """
    axes = _Axes(points, base, x)
    ahead = frontier(points, more_is_better=x == "speed")
    parts = [*_grid(axes, theme, x), *_base_line(axes, theme, base), *_line(axes, theme, ahead)]
    for point in points:
        parts += _mark(axes, theme, point, ahead=point in ahead)
    parts += _labels(axes, theme, points)
    told = "; ".join(f"{point.name}: {_tick(point.x, x)}, KLD {point.kld:.3g}" for point in points)
    style = (
        f'width="{_WIDTH}" height="{_HEIGHT}"'
        if sized
        else f'style="width:100%;min-width:300px;max-width:{_WIDTH}px;height:auto;'
        'color:var(--jp-ui-font-color1,inherit)"'
    )
    ground = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="{theme.ground}"/>' if sized else ""
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(f"KL divergence by {x}. {told}")}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" {style}>{ground}{"".join(parts)}</svg>'
    )


class _Axes:
    """From values to places in the picture."""

    def __init__(self, points: Sequence[Point], base: tuple[str, float] | None, x: str) -> None:
        values = [value for p in points for value in (p.x - p.x_error, p.x + p.x_error)]
        if base is not None:
            values.append(base[1])
        low, high = min(values), max(values)
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        self.low, self.high = max(0.0, low - pad), high + pad
        self.x_kind = x
        reach = [value for p in points for value in (p.kld - p.kld_error, p.kld + p.kld_error, p.kld) if value > 0]
        least = max(_FLOOR, min([p.kld for p in points if p.kld > 0], default=_FLOOR))
        least = min([value for value in reach if value > least / 3], default=least)
        most = max([*reach, 2 * least])
        self.bottom, self.top = math.log10(least) - 0.15, math.log10(most) + 0.15

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - self.low) / (self.high - self.low)

    def y(self, kld: float) -> float:
        share = (math.log10(max(kld, 10**self.bottom)) - self.bottom) / (self.top - self.bottom)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(share, 1.0)

    def y_ticks(self) -> list[float]:
        wide = self.top - self.bottom > 1.6
        steps = (1.0,) if wide else (1.0, 2.0, 5.0)
        decades = range(math.floor(self.bottom), math.ceil(self.top) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        return [tick for tick in ticks if self.bottom <= math.log10(tick) <= self.top]

    def x_ticks(self) -> list[float]:
        unit = 2**20 if self.x_kind == "size" else 1.0
        span = (self.high - self.low) / unit
        step = 10.0 ** math.floor(math.log10(span / 3))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
        first = math.ceil(self.low / unit / step)
        return [unit * step * number for number in range(first, first + 8) if unit * step * number <= self.high]


def _tick(value: float, x: str) -> str:
    return format_bytes(value) if x == "size" else f"{value:.0f} tok/s"


def _text(x: float, y: float, text: str, theme: Theme, anchor: str = "middle", more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{theme.text}" '
        f'font-family="{theme.font}" font-size="11"{more}>{escape(text)}</text>'
    )


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def _grid(axes: _Axes, theme: Theme, x: str) -> list[str]:
    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for kld in axes.y_ticks():
        y = axes.y(kld)
        parts.append(_stroke(_LEFT, y, right, y, theme.text, ' stroke-opacity=".15"'))
        parts.append(_text(_LEFT - 7, y + 4, f"{kld:g}", theme, "end"))
    for value in axes.x_ticks():
        place = axes.x(value)
        parts.append(_stroke(place, floor, place, floor + 4, theme.text, ' stroke-opacity=".5"'))
        label = f"{value / 2**20:g}" if x == "size" else f"{value:g}"
        parts.append(_text(place, floor + 17, label, theme))
    parts.append(_stroke(_LEFT, floor, right, floor, theme.text, ' stroke-opacity=".5"'))
    title = "size of the file in MiB (smaller is better)" if x == "size" else "generation in tok/s (more is better)"
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 10, title, theme))
    middle = (_TOP + floor) / 2
    turned = f' transform="rotate(-90 14 {middle:.0f})"'
    parts.append(_text(14, middle, "mean KL divergence (lower is better)", theme, more=turned))
    return parts


def _base_line(axes: _Axes, theme: Theme, base: tuple[str, float] | None) -> list[str]:
    if base is None:
        return []
    place = axes.x(base[1])
    dots = ' stroke-opacity=".6" stroke-dasharray="2 4"'
    anchor = "end" if place > _WIDTH / 2 else "start"
    shift = -5 if anchor == "end" else 5
    return [
        _stroke(place, _TOP, place, _HEIGHT - _BOTTOM, theme.text, dots),
        _text(place + shift, _TOP + 2, f"{base[0]} (KLD 0)", theme, anchor),
    ]


def _line(axes: _Axes, theme: Theme, ahead: Sequence[Point]) -> list[str]:
    if len(ahead) < 2:
        return []
    places = " ".join(f"{axes.x(point.x):.1f},{axes.y(point.kld):.1f}" for point in ahead)
    return [f'<polyline points="{places}" fill="none" stroke="{theme.accent}" stroke-width="1.5"/>']


def _mark(axes: _Axes, theme: Theme, point: Point, *, ahead: bool) -> list[str]:
    x, y = axes.x(point.x), axes.y(point.kld)
    parts = []
    if point.kld_error:
        low, high = axes.y(point.kld - point.kld_error), axes.y(point.kld + point.kld_error)
        parts.append(_stroke(x, low, x, high, theme.text, ' stroke-width="1.2"'))
        parts += [_stroke(x - 3, end, x + 3, end, theme.text, ' stroke-width="1.2"') for end in (low, high)]
    if point.x_error:
        left, right = axes.x(point.x - point.x_error), axes.x(point.x + point.x_error)
        parts.append(_stroke(left, y, right, y, theme.text, ' stroke-width="1.2"'))
        parts += [_stroke(end, y - 3, end, y + 3, theme.text, ' stroke-width="1.2"') for end in (left, right)]
    fill = theme.accent if ahead else theme.ground
    told = f"{point.name}: KLD {point.kld:.4g}" + (f" ± {point.kld_error:.2g}" if point.kld_error else "")
    circle = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}" fill="{fill}" stroke="{theme.accent}" stroke-width="1.5">'
        f"<title>{escape(told)}</title></circle>"
    )
    parts.append(circle)
    if point.chosen:
        ring = f'r="{_RADIUS + 4}" fill="none" stroke="{theme.accent}" stroke-width="1.5"'
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {ring}/>')
    return parts


_Box = tuple[float, float, float, float]


def _labels(axes: _Axes, theme: Theme, points: Sequence[Point]) -> list[str]:
    """Put each name beside its point where it covers least."""
    taken: list[_Box] = []
    for point in points:
        x, y = axes.x(point.x), axes.y(point.kld)
        taken.append((x - 7, y - 7, x + 7, y + 7))
        # names do not lie on error bars where there is another place
        taken.append((axes.x(point.x - point.x_error), y - 3, axes.x(point.x + point.x_error), y + 3))
        taken.append((x - 3, axes.y(point.kld + point.kld_error), x + 3, axes.y(point.kld - point.kld_error)))
    parts = []
    for point in points:
        text = f"★ {point.name}" if point.chosen else point.name
        x, y, wide = axes.x(point.x), axes.y(point.kld), _LETTER * len(text)
        gap = 13.0 if point.chosen else 9.0
        places: list[tuple[float, float, str]] = [
            (x + gap, y + 4, "start"), (x - gap, y + 4, "end"), (x, y - gap, "middle"), (x, y + gap + 9, "middle"),
            (x + gap, y - gap, "start"), (x - gap, y - gap, "end"), (x + gap, y + gap + 8, "start"),
            (x - gap, y + gap + 8, "end"),
        ]  # fmt: skip
        best = min(places, key=lambda place: _covered(_box(place, wide), taken))
        taken.append(_box(best, wide))
        # a halo keeps the name readable on lines and error bars
        weight = f' paint-order="stroke" stroke="{theme.ground}" stroke-width="3" stroke-linejoin="round"'
        weight += ' font-weight="700"' if point.chosen else ""
        parts.append(_text(*best[:2], text, theme, best[2], weight))
    return parts


def _box(place: tuple[float, float, str], wide: float) -> _Box:
    x, y, anchor = place
    left = x if anchor == "start" else x - wide if anchor == "end" else x - wide / 2
    return (left, y - 10, left + wide, y + 3)


def _covered(box: _Box, taken: Sequence[_Box]) -> float:
    """Return the area that a label would share with others, and much more for what lies outside."""
    outside = max(0.0, _LEFT - box[0]) + max(0.0, box[2] - _WIDTH + 2) + max(0.0, _TOP - 8 - box[1])
    outside += max(0.0, box[3] - _HEIGHT + _BOTTOM)
    shared = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return shared + 100 * outside
