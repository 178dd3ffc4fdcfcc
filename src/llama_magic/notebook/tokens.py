"""Tokens shown by how likely they were: a colour, an underline, and the alternatives in the tooltip."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from llama_magic.notebook import style
from llama_magic.safe_text import neutralise, quoted
from llama_magic.units import format_probability

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llama_magic.inference.results import Chunk, TokenLogprob

__all__ = ["LEGEND", "TokenFeed", "token_lines", "tokens_html"]

#: From this probability on: words for the legend, and the look. Underlines say the same as colours.
_LEVELS: tuple[tuple[float, str, str], ...] = (
    (0.9, "90 % and more", ""),
    (0.5, "50 to 90 %", "background:rgba(255,193,7,.18);text-decoration:underline dotted"),
    (0.2, "20 to 50 %", "background:rgba(255,152,0,.28);text-decoration:underline dashed"),
    (0.05, "5 to 20 %", "background:rgba(244,100,30,.36);text-decoration:underline solid"),
    (0.0, "below 5 %", "background:rgba(229,40,60,.42);text-decoration:underline double"),
)
_COMMON = "text-underline-offset:.22em;text-decoration-thickness:1px;border-radius:2px"
#: A live end of more tokens than this is cut.
_LIMIT = 96


def _look(logprob: float) -> str:
    probability = math.exp(min(logprob, 0.0))
    return next(look for least, _, look in _LEVELS if probability >= least)


def _legend() -> str:
    items = "".join(
        f'<span style="white-space:nowrap;{look};{_COMMON}">{words}</span> · ' for _, words, look in _LEVELS
    )
    return (
        f'<p style="{style.LABEL};margin-top:.6em"><small>Probability of each token: {items}'
        "point at a token to see what else was likely.</small></p>"
    )


LEGEND = _legend()


def tokens_html(entries: Iterable[TokenLogprob], *, tooltips: bool = True) -> str:
    """Return the tokens in one block, each in its look. Tooltips name the alternatives."""
    spans = "".join(_span(entry, tooltips=tooltips) for entry in entries)
    return f'<div dir="auto" style="{style.PRE_WRAP}">{spans}</div>'


def _span(entry: TokenLogprob, *, tooltips: bool) -> str:
    text = html.escape(neutralise(entry.text))
    look = _look(entry.logprob)
    attributes = f' style="{look};{_COMMON}"' if look else ""
    if tooltips:
        attributes += f' title="{html.escape(_tooltip(entry))}"'
    return f"<span{attributes}>{text}</span>" if attributes else text


def _tooltip(entry: TokenLogprob) -> str:
    lines = [f"{quoted(entry.text)}  {format_probability(entry.logprob)}"]
    others = [candidate for candidate in entry.top if candidate.id != entry.id]
    if others:
        lines.append("instead of:")
        lines += [f"{quoted(candidate.text)}  {format_probability(candidate.logprob)}" for candidate in others]
    return "\n".join(lines)


def token_lines(entries: Iterable[TokenLogprob]) -> str:
    """Return one line per token for a terminal: the token, its probability, the alternatives."""
    lines = []
    for entry in entries:
        others = [f"{quoted(c.text)} {format_probability(c.logprob)}" for c in entry.top if c.id != entry.id]
        lines.append(
            f"{format_probability(entry.logprob):>7}  {quoted(entry.text)}"
            + (f"   {', '.join(others)}" if others else "")
        )
    return "\n".join(lines)


class TokenFeed:
    """Coloured tokens as they come, without tooltips until the end."""

    def __init__(self) -> None:
        self._live: list[TokenLogprob] = []

    def add(self, chunk: Chunk) -> None:
        """Take new tokens."""
        self._live.extend(chunk.logprobs)

    def advance(self) -> tuple[list[str], str]:
        """Return what has settled, and the live end."""
        settled = []
        while len(self._live) > _LIMIT:
            breaks = [i for i in range(_LIMIT // 2, _LIMIT) if self._live[i].text.endswith("\n")]
            words = [i - 1 for i in range(_LIMIT // 2, _LIMIT) if self._live[i].text.startswith(" ")]
            cut = max(breaks or words or [_LIMIT - 1]) + 1
            settled.append(tokens_html(self._live[:cut], tooltips=False))
            del self._live[:cut]
        return settled, tokens_html(self._live, tooltips=False) if self._live else ""
