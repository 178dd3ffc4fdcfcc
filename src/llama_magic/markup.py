"""Pieces of HTML and of plain text that results are shown with: tables, facts, bars, a map of tensors.

Everything is escaped but `Html`. Styles are inline and use JupyterLab's variables with fallbacks, so
that light and dark themes and saved pages all show them, without a kernel and without scripts.
Nothing is told by colour alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = [
    "Html",
    "badge",
    "bar",
    "details",
    "facts",
    "heading",
    "join",
    "note",
    "page",
    "table",
    "tensor_map",
    "text_table",
]

_MUTED = "color:var(--jp-ui-font-color2,#6b6b6b)"
_LINE = "var(--jp-border-color2,#8884)"
_FONT = "font-size:var(--jp-ui-font-size1,13px);line-height:1.45"
_MONO = "font-family:var(--jp-code-font-family,ui-monospace,monospace)"
#: Text colours of a tone; each has a sign too, for those who do not see the colour.
_TONES = {
    "info": "var(--jp-ui-font-color2,#6b6b6b)",
    "good": "var(--jp-success-color0,#1b5e20)",
    "warning": "var(--jp-warn-color0,#a35200)",
    "error": "var(--jp-error-color0,#b71c1c)",
}
_SIGNS = {"info": "", "good": "✓ ", "warning": "⚠ ", "error": "✗ "}

#: Ground of a tensor's cell by its bits per weight; dark text is readable on all of them.
_GROUNDS = ((1, "#f3a8a0"), (2, "#f6b99a"), (3, "#f8d095"), (4, "#f3e793"), (5, "#cfe79a"), (6, "#a6dfb5"),
            (8, "#9fd0ee"), (16, "#c3baf2"), (32, "#dddddd"))  # fmt: skip
_CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BLOCK = re.compile(r"(?:blk|dec\.blk|enc\.blk)\.(\d+)\.(.+)")


class Html(str):
    """HTML that is ready to be shown; any other string is escaped."""

    __slots__ = ()


def _html(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))


def join(*parts: object) -> Html:
    """Put pieces behind each other, escaping what is no `Html`."""
    return Html("".join(map(_html, parts)))


def page(*parts: object) -> str:
    """Return what `_repr_html_` gives: the parts below each other, no LaTeX typeset in them."""
    inner = "".join(map(_html, parts))
    return (
        f'<div class="llama-magic mathjax_ignore tex2jax_ignore" style="overflow-wrap:anywhere;{_FONT}">{inner}</div>'
    )


def heading(text: object, more: object = "") -> Html:
    """Return a line in bold, with more beside it."""
    beside = f' <span style="{_MUTED}">{_html(more)}</span>' if more else ""
    return Html(f'<div style="margin:.5em 0 .3em"><b>{_html(text)}</b>{beside}</div>')


def note(text: object, tone: str = "info") -> Html:
    """Return a line of text; `tone` is "info", "good", "warning" or "error"."""
    return Html(f'<div style="margin:.3em 0;color:{_TONES[tone]}">{_SIGNS[tone]}{_html(text)}</div>')


def badge(text: object, tone: str = "info") -> Html:
    """Return a short word with a border, to stand in a line or a cell."""
    return Html(
        f'<span style="border:1px solid currentColor;border-radius:.7em;padding:0 .5em;white-space:nowrap;'
        f'color:{_TONES[tone]}">{_SIGNS[tone]}{_html(text)}</span>'
    )


def details(summary: object, *parts: object, open_: bool = False) -> Html:
    """Return a fold that opens without a script."""
    inner = "".join(map(_html, parts))
    flag = " open" if open_ else ""
    head = f'<summary style="cursor:pointer">{_html(summary)}</summary>'
    return Html(f'<details{flag} style="margin:.4em 0">{head}{inner}</details>')


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Return labels and values in two columns."""
    rows = "".join(
        f'<div style="{_MUTED}">{_html(label)}</div><div style="min-width:0">{_html(value)}</div>'
        for label, value in pairs
    )
    style = "display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.1em 1.2em;margin:.3em 0"
    return Html(f'<div style="{style}">{rows}</div>')


def bar(fraction: float, text: object = "") -> Html:
    """Return a text with a bar of its magnitude below, for a cell of a table; `fraction` is from 0 to 1."""
    width = 100 * min(max(fraction, 0.0), 1.0)
    return Html(
        f'<div>{_html(text)}</div><div style="height:4px;min-width:3.5em;border-radius:2px;'
        f'background:var(--jp-layout-color3,#8883)"><div style="height:4px;border-radius:2px;width:{width:.1f}%;'
        f'background:var(--jp-brand-color1,#1976d2)"></div></div>'
    )


def table(head: Sequence[object], rows: Iterable[Sequence[object]], align: str = "", caption: object = "") -> Html:
    """Return a table that scrolls sideways where it is too wide.

    Parameters
    ----------
    align
        "l", "r" or "c" for each column; left where nothing is said.
    """
    sides = [{"r": "right", "c": "center"}.get(letter, "left") for letter in align.ljust(len(head), "l")]
    cell = "padding:.2em .7em .2em 0;vertical-align:top;border:0"
    top = "".join(
        f'<th scope="col" style="{cell};text-align:{side};border-bottom:1px solid {_LINE};{_MUTED};font-weight:600">'
        f"{_html(title)}</th>"
        for title, side in zip(head, sides, strict=True)
    )
    body = "".join(
        '<tr style="background:none">'
        + "".join(
            f'<td style="{cell};text-align:{side}">{_html(value)}</td>' for value, side in zip(row, sides, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    title = f'<caption style="text-align:left;{_MUTED}">{_html(caption)}</caption>' if caption else ""
    look = f"border-collapse:collapse;margin:0;{_FONT};overflow-wrap:normal;color:inherit"
    look += ";font-variant-numeric:tabular-nums"
    return Html(
        f'<div style="overflow-x:auto;max-width:100%;margin:.3em 0"><table style="{look}">{title}'
        f'<thead><tr style="background:none">{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def text_table(head: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """Return the same for a terminal: columns padded with spaces."""
    lines = [[str(value) for value in row] for row in (head, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    sides = align.ljust(len(head), "l")

    def pad(text: str, width: int, side: str) -> str:
        space = " " * (width - _width(text))
        return space + text if side == "r" else text + space

    done = ["  ".join(map(pad, line, widths, sides)).rstrip() for line in lines]
    return "\n".join([done[0], "  ".join("-" * width for width in widths), *done[1:]])


def _bits(type_name: str) -> int:
    found = re.search(r"\d+", type_name)
    return int(found[0]) if found else 32


def _ground(type_name: str) -> str:
    bits = _bits(type_name)
    return next((ground for limit, ground in _GROUNDS if bits <= limit), _GROUNDS[-1][1])


def tensor_map(tensors: Iterable[tuple[str, str]], marks: Mapping[str, str] | None = None) -> Html:
    """Return a map of a model: a row for each kind of tensor, a column for each layer, the type as letter and colour.

    Parameters
    ----------
    tensors
        Name and type of each, for example ``("blk.0.attn_q.weight", "Q4_K")``.
    marks
        Texts for single tensors, shown when the pointer rests on them; their cells are underlined.
    """
    listed, marks = list(tensors), marks or {}
    counts = Counter(type_name for _, type_name in listed)
    order = sorted(counts, key=lambda name: (_bits(name), name))
    codes = {name: _CODES[place % len(_CODES)] for place, name in enumerate(order)}
    grid: dict[str, dict[int, tuple[str, str]]] = {}
    alone: list[tuple[str, str]] = []
    for name, type_name in listed:
        match = _BLOCK.fullmatch(name)
        if match:
            grid.setdefault(match[2].removesuffix(".weight"), {})[int(match[1])] = (name, type_name)
        else:
            alone.append((name, type_name))

    def cell(name: str, type_name: str) -> str:
        mark = marks.get(name, "")
        told = f"{name}: {type_name}" + (f"; {mark}" if mark else "")
        line = ";text-decoration:underline;font-weight:700" if mark else ""
        return (
            f'<td title="{escape(told)}" style="background:{_ground(type_name)};color:#1a1a1a;text-align:center;'
            f'padding:0;min-width:1.15em;border:1px solid var(--jp-layout-color0,#fff){line}">{codes[type_name]}</td>'
        )

    layers = sorted({layer for row in grid.values() for layer in row})
    label = f'style="{_MUTED};text-align:left;padding:0 .6em 0 0;font-weight:400;white-space:nowrap;border:0"'
    tick = f'style="{_MUTED};padding:0;font-weight:400;text-align:center;border:0"'
    top = "".join(f"<th {tick}>{layer if layer % 5 == 0 else ''}</th>" for layer in layers)
    head = f'<tr style="background:none"><th {label}>layer</th>{top}</tr>' if layers else ""
    empty = '<td style="border:0"></td>'
    body = "".join(
        f'<tr style="background:none"><th scope="row" {label}>{escape(kind)}</th>'
        + "".join(cell(*row[layer]) if layer in row else empty for layer in layers)
        + "</tr>"
        for kind, row in grid.items()
    )
    body += "".join(
        f'<tr style="background:none"><th scope="row" {label}>{escape(name)}</th>{cell(name, type_name)}</tr>'
        for name, type_name in alone
    )
    legend = " ".join(
        f'<span style="white-space:nowrap;margin-right:.9em"><span style="background:{_ground(name)};color:#1a1a1a;'
        f'padding:0 .35em;border-radius:2px">{codes[name]}</span> {escape(name)}: {counts[name]}</span>'
        for name in order
    )
    told = f'<div style="{_MUTED}">underlined: point at it for the reason</div>' if marks else ""
    return Html(
        f'<div style="overflow-x:auto;max-width:100%"><table style="border-collapse:collapse;margin:.3em 0;{_MONO};'
        f'font-size:11px;line-height:1.5">{head}{body}</table></div><div style="margin:.2em 0">{legend}</div>{told}'
    )
