"""KL divergence by kind of text, as a heat map: it shows where a level breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llama_magic.evaluation.recommend import short
from llama_magic.markup import Html, heading, note
from llama_magic.models.card import clean

if TYPE_CHECKING:
    from llama_magic.evaluation.comparison import LevelResult

__all__ = ["kinds_html"]

#: Share of the colour at the least and at the largest divergence.
_LEAST, _MOST = 6, 62


def kinds_html(levels: Sequence[LevelResult]) -> Html:
    """Return a row for each level, a column for each kind of text; the worst kind of each level is marked."""
    measured = [level for level in levels if level.kinds]
    kinds = list(dict.fromkeys(kind for level in measured for kind in level.kinds))
    values = [figure.value for level in measured for figure in level.kinds.values() if figure.value > 0]
    low, high = math.log(min(values, default=1.0)), math.log(max(values, default=1.0))
    cell = "padding:.25em .7em;text-align:right;white-space:nowrap;border:2px solid var(--jp-layout-color0,Canvas)"
    name = "padding:.25em .8em .25em 0;text-align:left;white-space:nowrap;font-weight:600;border:0"
    head = "".join(f'<th scope="col" style="{cell};font-weight:600">{_escaped(kind)}</th>' for kind in kinds)
    rows = []
    for level in measured:
        worst = max(level.kinds.values(), key=lambda figure: figure.value)
        cells = []
        for kind in kinds:
            figure = level.kinds.get(kind)
            if figure is None:
                cells.append(f'<td style="{cell}">—</td>')
                continue
            place = (math.log(figure.value) - low) / (high - low) if figure.value > 0 and high > low else 0.0
            share = _LEAST + (_MOST - _LEAST) * place
            ground = f"background:color-mix(in srgb,var(--jp-warn-color1,#f57c00) {share:.0f}%,transparent)"
            text = short(figure.value)
            text = f"<b>▲ {text}</b>" if figure is worst and len(kinds) > 1 else text
            told = f"KLD {figure.value:.4f}" + (f" ± {figure.error:.4f}" if figure.error is not None else "")
            cells.append(f'<td title="{told}" style="{cell};{ground};font-variant-numeric:tabular-nums">{text}</td>')
        label = f'<th scope="row" style="{name}">{_escaped(level.name)}</th>'
        rows.append(f'<tr style="background:none">{label}{"".join(cells)}</tr>')
    table = (
        '<div style="overflow-x:auto;max-width:100%"><table style="border-collapse:collapse;margin:0;color:inherit">'
        f'<thead><tr style="background:none"><th style="{name}">KLD</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    title = heading("KL divergence by kind of text", "the stronger the colour, the further from the reference")
    return Html(f"{title}{table}{note('▲ is the kind on which a level loses most.')}")


def _escaped(text: str) -> str:
    from html import escape

    return escape(clean(text))
