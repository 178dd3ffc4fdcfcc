"""Model text to safe HTML.

The text is untrusted: HTML in it is shown as text, links go to web and mail addresses only, images
become links, and nothing of it ends up in an attribute but a checked address. CommonMark with
tables and strikethrough, and maths as far as `llama_magic.notebook.maths` lets it pass.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llama_magic.notebook import maths, style
from llama_magic.notebook.highlight import code_block
from llama_magic.safe_text import neutralise, neutralise_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

__all__ = ["parse", "render_markdown", "render_tokens"]

_ADDRESS = re.compile(r"(?:https?://[^/?#\s]|mailto:[^?\s])\S*", re.IGNORECASE)
_MAX_MATHS_LINES = 80
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001efff]")
#: Top-level blocks that take their direction from their first letter.
_DIRECTED = frozenset({"paragraph_open", "heading_open", "bullet_list_open", "ordered_list_open", "blockquote_open"})
#: JupyterLab aligns these to the left whatever their direction.
_ALIGNED = frozenset({"paragraph_open", "heading_open"})


def render_markdown(text: str) -> str:
    """Return safe HTML for a whole text, without the wrapper of `style.root`."""
    return render_tokens(parse(text))


def parse(text: str) -> list[Token]:
    """Return the text's blocks as tokens in which only what may be shown is left."""
    tokens = _parser().parse(neutralise(text))
    for token in tokens:
        _secure(token)
    if _RIGHT_TO_LEFT.search(text):
        _direct(tokens)
    return tokens


def render_tokens(tokens: Sequence[Token]) -> str:
    """Return the HTML of tokens from `parse`."""
    md = _parser()
    result: str = md.renderer.render(tokens, md.options, {})
    return result


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    md = MarkdownIt("commonmark", {"html": False, "linkify": False, "typographer": False, "maxNesting": 60})
    md.enable(["table", "strikethrough"])
    md.disable(["html_block", "html_inline"])
    md.validateLink = _is_address  # type: ignore[method-assign]
    md.inline.ruler.before("escape", "maths", _maths_inline)
    md.block.ruler.before("fence", "maths", _maths_block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    rules: dict[str, Any] = md.renderer.rules  # type: ignore[attr-defined]
    rules["fence"] = rules["code_block"] = _render_code
    rules["code_inline"] = _render_code_inline
    rules["maths"] = _render_maths
    rules["image"] = _render_image
    rules["table_open"] = _render_table_open
    rules["table_close"] = lambda *_: "</table></div>\n"
    return md


def _is_address(url: str) -> bool:
    """Whether a link may stay one: an absolute web address, or mail. Relative ones would reach the Jupyter server."""
    return _ADDRESS.fullmatch(url) is not None


def _secure(token: Token) -> None:
    """Keep only attributes that are known here, and turn images into links."""
    kind = token.type
    if kind == "link_open":
        href = str(token.attrs.get("href", ""))
        token.attrs = {"href": href, "rel": "noopener noreferrer nofollow", "target": "_blank"}
    elif kind in ("heading_open", "heading_close"):
        # One level down, as the answer is part of a notebook, and out of its table of contents.
        token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        token.attrs = {"class": "jp-toc-ignore"} if kind == "heading_open" else {}
    elif kind == "ordered_list_open":
        token.attrs = {"start": token.attrs["start"]} if "start" in token.attrs else {}
    elif kind in ("th_open", "td_open"):
        token.attrs = {"style": token.attrs.get("style", "text-align:start")}
    elif kind != "image":
        token.attrs = {}
    depth = 0
    for child in token.children or ():
        depth += child.nesting if child.type in ("link_open", "link_close") else 0
        if child.type == "image":
            child.meta = {"in_link": depth > 0}
        else:
            _secure(child)


def _direct(tokens: Sequence[Token]) -> None:
    """Give every top-level block the direction of its first letter."""
    for token in tokens:
        if token.level == 0 and token.type in _DIRECTED:
            token.attrs["dir"] = "auto"
        if token.type in _ALIGNED:
            token.attrs["style"] = "text-align:start"


def _maths_inline(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    found = maths.find_inline(state.src, state.pos, state.posMax)
    if found is None:
        return False
    tex, end, display = found
    if not silent:
        token = state.push("maths", "", 0)
        token.content = tex
        token.meta = {"display": display, "source": state.src[state.pos : end]}
    state.pos = end
    return True


def _maths_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Display maths that starts a line and ends one; markup in between means nothing."""
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    signs = maths.find_display_end(first)
    if signs is None:
        return False
    opening, closing = signs
    last = None
    for line in range(start, min(end, start + _MAX_MATHS_LINES)):
        if line > start and not state.isEmpty(line) and state.sCount[line] < state.blkIndent:
            return False
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
        body = text[len(opening) :] if line == start else text
        if closing in body:
            if not body.endswith(closing) or body.count(closing) > 1:
                return False
            last = line
            break
    if last is None:
        return False
    if not silent:
        source = state.getLines(start, last + 1, state.blkIndent, False).strip()
        token = state.push("maths", "", 0)
        token.map = [start, last + 1]
        token.block = True
        token.content = source[len(opening) : len(source) - len(closing)] if opening else source
        token.meta = {"display": True, "source": source}
    state.line = last + 1
    return True


def _render_maths(tokens: Sequence[Token], index: int, *_: Any) -> str:
    token = tokens[index]
    tex = maths.safe_tex(token.content)
    if tex is not None:
        return maths.typeset(tex, display=token.meta["display"])
    shown = html.escape(token.meta["source"])
    return f'<p style="white-space:pre-wrap">{shown}</p>\n' if token.block else shown


def _render_code(tokens: Sequence[Token], index: int, *_: Any) -> str:
    token = tokens[index]
    language = token.info.strip().split(maxsplit=1)[0] if token.info.strip() else ""
    return code_block(token.content.removesuffix("\n"), language, joined=bool(token.meta.get("joined"))) + "\n"


def _render_table_open(tokens: Sequence[Token], index: int, *_: Any) -> str:
    joined = ' style="margin-bottom:0"' if tokens[index].meta.get("joined") else ""
    return f'<div style="{style.TABLE_BOX}"><table{joined}>\n'


def _render_code_inline(tokens: Sequence[Token], index: int, *_: Any) -> str:
    return f"<code>{html.escape(neutralise_code(tokens[index].content))}</code>"


def _render_image(tokens: Sequence[Token], index: int, *_: Any) -> str:
    token = tokens[index]
    label = "".join(_plain(child) for child in token.children or ()).strip() or "no description"
    shown = html.escape(f"[image: {label}]")
    if token.meta.get("in_link"):
        return shown
    href = html.escape(str(token.attrs.get("src", "")))
    return f'<a href="{href}" rel="noopener noreferrer nofollow" target="_blank">{shown}</a>'


def _plain(token: Token) -> str:
    if token.type in ("softbreak", "hardbreak"):
        return " "
    if token.type == "maths":
        return str(token.meta["source"])
    return token.content or "".join(_plain(child) for child in token.children or ())
