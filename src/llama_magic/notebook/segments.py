"""Text that grows, as pieces that are settled and a short live end.

Sending the whole answer for every update costs bytes in the square of its length. A feed takes
text as it comes and gives HTML pieces that will not change any more; only what follows the last
of them is drawn again.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llama_magic.notebook import style
from llama_magic.notebook.highlight import code_block
from llama_magic.notebook.markdown import parse, render_tokens
from llama_magic.safe_text import neutralise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it.token import Token

    from llama_magic.inference.results import Chunk

__all__ = ["CodeFeed", "Feed", "MarkdownFeed", "TextFeed"]

#: A live end longer than this is cut even where a block goes on, in characters.
LIMIT = 700
#: The same for code, whose HTML is several times as long as its text.
CODE_LIMIT = 350


class Feed(Protocol):
    """What a stream view needs of one column of text."""

    def add(self, chunk: Chunk) -> None:
        """Take new text."""

    def advance(self) -> tuple[list[str], str]:
        """Return the pieces that have settled since the last call, and the live end."""


class TextFeed:
    """Plain text; it settles line by line."""

    _limit = LIMIT

    def __init__(self) -> None:
        self._live = ""

    def add(self, chunk: Chunk) -> None:
        """Take new text."""
        self._live += chunk.text

    def advance(self) -> tuple[list[str], str]:
        """Return what has settled, and the live end."""
        settled = []
        if len(self._live) > self._limit:
            cut = _cut_text(self._live, len(self._live) // 2)
            settled.append(self._draw(self._live[:cut].removesuffix("\n"), joined=True))
            self._live = self._live[cut:]
        return settled, self._draw(self._live, joined=False) if self._live else ""

    def _draw(self, text: str, *, joined: bool) -> str:  # noqa: ARG002 - code needs it
        return f'<div dir="auto" style="{style.PRE_WRAP}">{html.escape(neutralise(text))}</div>'


class CodeFeed(TextFeed):
    """Code of one language; it settles line by line."""

    _limit = CODE_LIMIT

    def __init__(self, language: str) -> None:
        super().__init__()
        self._language = language

    def _draw(self, text: str, *, joined: bool) -> str:
        return code_block(text, self._language, joined=joined)


class MarkdownFeed:
    """Markdown; it settles block by block, and a long block is cut so that what follows still reads as its part."""

    def __init__(self) -> None:
        self._live = ""
        self._held = ""
        self._rest = _Rest()

    def add(self, chunk: Chunk) -> None:
        """Take new text."""
        text = self._held + chunk.text
        # A carriage return may be half a line end: wait for what follows.
        self._held = "\r" if text.endswith("\r") else ""
        self._live += neutralise(text.removesuffix("\r") if self._held else text)

    def advance(self) -> tuple[list[str], str]:
        """Return what has settled, and the live end."""
        settled: list[str] = []
        while True:
            tokens = parse(self._live)
            last = _last_block(tokens)
            if last and tokens[last].map:
                lines = _lines(self._live)
                settled.append(_draw(tokens[:last], self._rest))
                self._live = "".join(lines[(tokens[last].map or [0])[0] :])
                self._rest = _Rest()
                tokens = tokens[last:]
            limit = CODE_LIMIT if any(token.type == "fence" for token in tokens) else LIMIT
            if len(self._live) <= limit + self._rest.prefix_length:
                return settled, _draw(tokens, self._rest)
            head, rest = _cut_block(self._live, self._rest)
            settled.append(_draw(_join(parse(head)), self._rest))
            self._live, self._rest = rest.text, rest


@dataclass(frozen=True)
class _Rest:
    """What is left after a cut: source that starts with lines that open the same containers again."""

    text: str = ""
    prefix_lines: int = 0
    prefix_length: int = 0
    hidden_markers: int = 0
    hidden_head: bool = False
    goes_on: bool = False


@dataclass(frozen=True)
class _Place:
    """Where a block starts: its line, the containers around it, and the table whose row it is."""

    line: int
    containers: tuple[Token, ...]
    token: Token
    table: Token | None = None


_CONTAINERS = {"list_item_open": "list_item_close", "blockquote_open": "blockquote_close"}
_LEAVES = frozenset({"paragraph_open", "heading_open", "fence", "code_block", "hr", "maths"})


def _outline(tokens: Sequence[Token]) -> list[_Place]:
    places: list[_Place] = []
    stack: list[Token] = []
    table: Token | None = None
    in_body = False
    for token in tokens:
        if token.type in ("table_open", "table_close"):
            table = token if token.nesting > 0 else None
            in_body = False
        elif token.type == "tbody_open":
            in_body = True
        if token.type in _CONTAINERS.values():
            stack.pop()
        elif token.map and (token.type in _CONTAINERS or token.type in _LEAVES or token.type == "table_open"):
            places.append(_Place(token.map[0], tuple(stack), token))
        elif token.map and token.type == "tr_open" and in_body:
            places.append(_Place(token.map[0], tuple(stack), token, table))
        if token.type in _CONTAINERS:
            stack.append(token)
    return places


def _cut_block(source: str, before: _Rest) -> tuple[str, _Rest]:
    """Cut a long text at its last block, or else within it."""
    lines = _lines(source)
    places = _outline(parse(source))
    for place in reversed(places):
        if before.prefix_lines < place.line < len(lines):
            rest = "".join(lines[place.line :])
            return "".join(lines[: place.line]), _reopen(place, lines, rest)
    if not places:
        cut = _cut_text(source, len(source) // 2)
        return source[:cut], _Rest(source[cut:], goes_on=True)
    leaf = places[-1]
    start = sum(map(len, lines[: max(leaf.line + (leaf.token.type == "fence"), before.prefix_lines)]))
    least = max(start + 1, len(source) // 2)
    if leaf.token.type in ("fence", "code_block", "tr_open"):
        cut = source.rfind("\n", start, len(source) - 1) + 1
        if cut <= start:
            cut = len(source)
    else:
        cut = _cut_text(source, least)
    return source[:cut], _reopen(leaf, lines, source[cut:], inside=True, mid_line=source[cut - 1 : cut] != "\n")


def _reopen(place: _Place, lines: list[str], rest: str, *, inside: bool = False, mid_line: bool = False) -> _Rest:
    """Put lines before `rest` that open its containers again (CommonMark lets a list item start empty)."""
    indent, prefix, markers = "", "", 0
    for container in place.containers:
        if container.type == "blockquote_open":
            indent += "> "
        else:
            marker = container.info + container.markup
            prefix += f"{indent}{marker}\n"
            indent += " " * (len(marker) + 1)
            markers += 1
    if place.table is not None and place.table.map:
        first = place.table.map[0]
        prefix += "".join(lines[first : first + 2])
    elif inside and place.token.type == "fence":
        prefix += f"{indent}{place.token.markup}{place.token.info}\n"
    if len(prefix) > LIMIT // 2:
        return _Rest(rest, goes_on=True)
    if (mid_line and rest) or (inside and place.token.type == "paragraph_open" and "> " not in indent):
        rest = indent + rest.lstrip(" ")
    text = prefix + rest
    return _Rest(text, prefix.count("\n"), len(prefix), markers, place.table is not None, goes_on=True)


def _draw(tokens: list[Token], rest: _Rest) -> str:
    """Render, without the markers and the table head that only open what had been cut."""
    hidden = rest.hidden_markers
    if rest.goes_on and tokens and tokens[0].nesting > 0:
        _add_style(tokens[0], "margin-top:0")
    for token in tokens:
        if hidden and token.type == "list_item_open":
            _add_style(token, "list-style:none")
            hidden -= 1
    if rest.hidden_head:
        starts = [index for index, token in enumerate(tokens) if token.type == "thead_open"]
        if starts:
            stop = next(i for i in range(starts[0], len(tokens)) if tokens[i].type == "thead_close")
            tokens = tokens[: starts[0]] + tokens[stop + 1 :]
    return render_tokens(tokens)


def _lines(text: str) -> list[str]:
    """Split as the parser does, at newlines only; `str.splitlines` knows eight more ends."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def _join(tokens: list[Token]) -> list[Token]:
    """Leave no gap below the last block, as it goes on in the next piece."""
    for index in range(len(tokens) - 1, -1, -1):
        token = tokens[index]
        if token.type in ("fence", "code_block", "table_open"):
            token.meta["joined"] = True
        if token.level == 0 and token.nesting >= 0:
            if token.nesting > 0 and token.type != "table_open":
                _add_style(token, "margin-bottom:0")
            break
    return tokens


def _add_style(token: Token, look: str) -> None:
    before = token.attrs.get("style")
    token.attrs["style"] = f"{before};{look}" if before else look


def _last_block(tokens: Sequence[Token]) -> int:
    """Return the index at which the last top-level block starts; 0 where there is only one."""
    for index in range(len(tokens) - 1, -1, -1):
        if tokens[index].level == 0 and tokens[index].nesting >= 0 and tokens[index].block:
            return index
    return 0


#: Text that at the start of a line is still text: neither a heading's sign nor a list's.
_STARTS_NOTHING = re.compile(r"[^\W\d_]")


def _cut_text(text: str, least: int) -> int:
    """Return where running text is best cut after `least`: at a line's, a sentence's or a word's end."""
    for sign in ("\n", ". ", "。", "! ", "? ", "; ", ", ", " "):
        at = text.rfind(sign, least)
        while at >= least:
            cut = at + len(sign)
            if cut < len(text) and (sign == "\n" or _STARTS_NOTHING.match(text, cut)) and _outside_markup(text[:cut]):
                return cut
            at = text.rfind(sign, least, at)
    return len(text)


def _outside_markup(head: str) -> bool:
    """Whether no code, emphasis, link or formula is open at the end of the text (a guess that may be wrong)."""
    return (
        head.count("`") % 2 == 0
        and head.count("**") % 2 == 0
        and head.count("$") % 2 == 0
        and head.count("[") == head.count("]")
        and head.count("\\(") == head.count("\\)")
    )
