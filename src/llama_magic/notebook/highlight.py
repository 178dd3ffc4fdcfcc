"""Code as HTML, coloured by JupyterLab's own editor colours."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llama_magic.notebook import style
from llama_magic.safe_text import neutralise_code

if TYPE_CHECKING:
    from pygments.lexer import Lexer  # type: ignore[import-untyped]

__all__ = ["code_block", "highlight"]

#: Longer code is shown without colours.
MAX_LENGTH = 100_000

#: Short CSS variable: its value. Set once on the block, so that each token needs few bytes.
_COLOURS = {
    "k": "var(--jp-mirror-editor-keyword-color,#008000)",
    "s": "var(--jp-mirror-editor-string-color,#ba2121)",
    "c": "var(--jp-mirror-editor-comment-color,#408080)",
    "n": "var(--jp-mirror-editor-number-color,#087f08)",
    "d": "var(--jp-mirror-editor-def-color,#0000c0)",
    "b": "var(--jp-mirror-editor-builtin-color,#008000)",
    "o": "var(--jp-mirror-editor-operator-color,#7800c2)",
    "t": "var(--jp-mirror-editor-tag-color,#117700)",
    "a": "var(--jp-mirror-editor-attribute-color,#0000c0)",
}
#: Prefix of a pygments token type: colour and what else. The longest prefix counts.
_STYLES = {
    "Token.Keyword": "color:var(--k);font-weight:600",
    "Token.Keyword.Constant": "color:var(--b);font-weight:600",
    "Token.Operator.Word": "color:var(--k);font-weight:600",
    "Token.Operator": "color:var(--o)",
    "Token.Literal.String": "color:var(--s)",
    "Token.Literal.Number": "color:var(--n)",
    "Token.Comment": "color:var(--c);font-style:italic",
    "Token.Name.Function": "color:var(--d)",
    "Token.Name.Class": "color:var(--d)",
    "Token.Name.Builtin": "color:var(--b)",
    "Token.Name.Decorator": "color:var(--o)",
    "Token.Name.Tag": "color:var(--t)",
    "Token.Name.Attribute": "color:var(--a)",
    "Token.Generic.Deleted": "color:var(--s)",
    "Token.Generic.Inserted": "color:var(--n)",
    "Token.Generic.Heading": "font-weight:600",
}
_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.\-]{1,30}")


def code_block(code: str, language: str = "", *, joined: bool = False) -> str:
    """Return a ``<pre>`` block. An unknown language gives plain code; `joined` has no gap below it."""
    inner = highlight(code, language)
    look = style.CODE_JOINED if joined else style.CODE
    variables = "".join(f";--{name}:{value}" for name, value in _COLOURS.items() if f"var(--{name})" in inner)
    return f'<pre dir="ltr" style="{look}{variables}"><code style="{style.CODE_INNER}">{inner}</code></pre>'


def highlight(code: str, language: str = "") -> str:
    """Return escaped code whose tokens are coloured where the language is known."""
    code = neutralise_code(code)
    match = _LANGUAGE.match(language.strip())
    lexer = _lexer(match.group().lower()) if match and len(code) <= MAX_LENGTH else None
    if lexer is None:
        return html.escape(code)
    parts = []
    for look, text in _runs(lexer, code):
        escaped = html.escape(text)
        parts.append(f'<span style="{look}">{escaped}</span>' if look and text.strip() else escaped)
    return "".join(parts)


def _runs(lexer: Lexer, code: str) -> Iterator[tuple[str, str]]:
    """Yield runs of text of the same look."""
    current, texts = "", [""]
    for kind, text in lexer.get_tokens(code):
        look = _look(kind)
        if look != current and text.strip():
            yield current, "".join(texts)
            current, texts = look, []
        texts.append(text)
    yield current, "".join(texts)


@lru_cache(maxsize=512)
def _look(kind: Any) -> str:
    while kind is not None:
        look = _STYLES.get(str(kind))
        if look:
            return look
        kind = kind.parent
    return ""


@lru_cache(maxsize=256)
def _lexer(language: str) -> Lexer | None:
    if language == "jinja":
        from llama_magic.notebook.jinja_lexer import JinjaLexer

        return JinjaLexer(stripnl=False, ensurenl=False)
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        lexer: Lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
    return lexer
