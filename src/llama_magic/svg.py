"""Pieces of small inline charts. Colours come from JupyterLab's variables; nothing needs a script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from llama_magic.markup import Html

__all__ = ["BLUE", "RED", "circle", "line", "path", "svg", "text"]

BLUE = "var(--jp-brand-color1,#1976d2)"
RED = "var(--jp-error-color1,#d32f2f)"
_TEXT = "font:11px var(--jp-ui-font-family,sans-serif);fill:currentColor"


def svg(width: int, height: int, label: str, parts: Sequence[str]) -> Html:
    """Return a picture that shrinks with its column; `label` is what it shows, in words."""
    return Html(
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="width:100%;max-width:{width}px;height:auto;color:var(--jp-ui-font-color1,inherit)" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    """Return a text; `anchor` is "start", "middle" or "end"."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{_TEXT}{more}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Return a line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="{style}"/>'


def circle(x: float, y: float, radius: float, style: str, title: str = "") -> str:
    """Return a circle, with a text that shows when the pointer rests on it."""
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" style="{style}">{told}</circle>'


def path(points: Sequence[tuple[float, float]], style: str, *, closed: bool = False) -> str:
    """Return a line through points."""
    steps = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<path d="M{steps}{"Z" if closed else ""}" style="{style}"/>'
