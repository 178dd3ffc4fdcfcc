"""Jinja for pygments. Its own lexer of this name brings those of six other languages, and they take long to import."""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import RegexLexer, words  # type: ignore[import-untyped]
from pygments.token import (  # type: ignore[import-untyped]
    Comment,
    Keyword,
    Name,
    Number,
    Operator,
    String,
    Text,
    Whitespace,
)

__all__ = ["JinjaLexer"]

#: Jinja's statements and what stands in them (Template Designer Documentation, "List of Control Structures").
_WORDS = (
    "block", "break", "call", "continue", "elif", "else", "endblock", "endcall", "endfilter", "endfor",
    "endgeneration", "endif", "endmacro", "endraw", "endset", "endwith", "extends", "filter", "for", "from",
    "generation", "if", "import", "include", "macro", "raw", "recursive", "set", "with",
)  # fmt: skip
_OPERATORS = ("and", "in", "is", "not", "or")
_CONSTANTS = ("False", "None", "True", "false", "none", "true")


class JinjaLexer(RegexLexer):  # type: ignore[misc]
    """Statements, expressions and comments; what is between them is text."""

    name = "Jinja"
    tokens: ClassVar = {
        "root": [
            (r"[^{]+", Text),
            (r"(?s)\{#.*?#\}", Comment),
            (r"\{[%{][-+]?", Operator, "code"),
            (r"\{", Text),
        ],
        "code": [
            (r"[-+]?[%}]\}", Operator, "#pop"),
            (r"(?<=\|)\s*[A-Za-z_]\w*", Name.Function),
            (r"\s+", Whitespace),
            (r"(?s)'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", String),
            (r"\d+(?:\.\d+)?", Number),
            (words(_CONSTANTS, suffix=r"\b"), Keyword.Constant),
            (words(_OPERATORS, suffix=r"\b"), Operator.Word),
            (r"(?<=\.)[A-Za-z_]\w*", Name),
            (words(_WORDS, suffix=r"\b"), Keyword),
            (r"[A-Za-z_]\w*", Name),
            (r".", Operator),
        ],
    }
