"""The answers of all levels next to each other: words that differ from the reference's are marked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from llama_magic.evaluation.differences import changed, parting, words_of
from llama_magic.markup import Html, heading, note
from llama_magic.models.card import clean, clean_block

if TYPE_CHECKING:
    from llama_magic.evaluation.comparison import LevelResult

__all__ = ["answers_html", "answers_text", "column", "columns", "marked_words", "parting_words"]

_LINE = "var(--jp-border-color2,#8884)"
_MUTED = "color:var(--jp-ui-font-color2,#6b6b6b)"
#: Not by colour alone: what differs is underlined, too.
_MARK = (
    "background:rgba(255,167,38,.28);color:inherit;text-decoration:underline;text-decoration-thickness:2px;"
    "text-underline-offset:2px"
)
_POINTER = (
    '<span style="color:var(--jp-error-color1,#d32f2f);font-weight:700" title="here it leaves the reference">▸</span>'
)
#: Words around those shown that they are compared with.
_NEAR = 40


def columns(cells: Sequence[str]) -> Html:
    """Put columns side by side; they scroll sideways where there is no room."""
    grid = (
        f"display:grid;gap:0 1.1em;overflow-x:auto;max-width:100%;"
        f"grid-template-columns:repeat({len(cells)},minmax(11.5em,1fr))"
    )
    return Html(f'<div style="{grid}">{"".join(cells)}</div>')


def column(title: str, under: str, body: str) -> str:
    """Return one column: a bold title, a line below it, the text."""
    style = f"min-width:0;border-top:1px solid {_LINE};padding:.35em 0 .5em"
    small = f'<div style="{_MUTED};font-size:.92em;min-height:4.4em">{under}</div>' if under else ""
    return (
        f'<div style="{style}"><div><b>{title}</b></div>{small}'
        f'<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere;margin-top:.3em">{body}</div></div>'
    )


def marked_words(reference: Sequence[str], words: Sequence[str], *, whole: bool = True, first: int = 0) -> str:
    """Return the words from number `first` on as HTML, marked where they differ, the first difference pointed at.

    Parameters
    ----------
    whole
        Both answers are complete. Otherwise words behind the end of the reference are not judged yet.
    """
    apart = parting(reference, words)
    # what is shown is compared with what stands about there in the reference, so that the work has a bound, too
    shown = words[first:]
    near = slice(max(0, first - _NEAR), first + len(shown) + _NEAR) if first else slice(None)
    differs = [False] * first + changed(reference[near], shown)
    parts = []
    for place, word in enumerate(words):
        if place < first:
            continue
        text = escape(clean_block(word))
        lead, text = text[: len(text) - len(text.lstrip())], text.lstrip()
        judged = whole or place < len(reference)
        pointer = _POINTER if place == apart and judged else ""
        marked = f'<mark style="{_MARK}">{text}</mark>' if differs[place] and judged else text
        parts.append(lead + pointer + marked)
    return "".join(parts)


def parting_words(reference: Sequence[str], words: Sequence[str], name: str) -> str:
    """Say where an answer leaves the reference's."""
    apart = parting(reference, words)
    if apart is None:
        return f"the same words as {name}"
    if apart >= len(words):
        return f"ends at word {apart}, where {name} goes on"
    ours = clean(words[apart].strip())
    if apart >= len(reference):
        return f"goes on where {name} ends, at word {apart}"
    return f"leaves {name} at word {apart + 1}: “{clean(reference[apart].strip())}” → “{ours}”"


def answers_html(levels: Sequence[LevelResult]) -> Html:
    """Return the answers of all levels in columns."""
    base = next((level for level in levels if level.base and level.answer), None)
    reference = words_of(base.answer.text) if base is not None and base.answer else []
    cells = []
    for level in levels:
        answer = level.answer
        if answer is None:
            continue
        words = words_of(answer.text)
        rate = f"{answer.tps:.1f} tok/s · {len(answer.tokens)} tokens"
        if base is None or level.base:
            body = escape(clean_block(answer.text))
            under = rate
        else:
            body = marked_words(reference, words)
            under = f"{rate}<br>{escape(parting_words(reference, words, clean(base.name)))}"
        cells.append(column(escape(clean(level.name)), under, body or f'<span style="{_MUTED}">(no text)</span>'))
    told = (
        "▸ is where an answer leaves the reference; underlined words have no counterpart in it. tok/s counts a "
        "level's own decoding, while all levels took turns in one process."
    )
    return Html(f"{heading('answers')}{columns(cells)}{note(told)}")


def answers_text(levels: Sequence[LevelResult]) -> str:
    """Return the answers as text."""
    base = next((level for level in levels if level.base and level.answer), None)
    reference = words_of(base.answer.text) if base is not None and base.answer else []
    lines = []
    for level in levels:
        if level.answer is None:
            continue
        where = ""
        if base is not None and not level.base:
            where = f"; {parting_words(reference, words_of(level.answer.text), clean(base.name))}"
        lines += ["", f"[{clean(level.name)}: {level.answer.tps:.1f} tok/s{where}]", clean_block(level.answer.text)]
    return "\n".join(lines)
