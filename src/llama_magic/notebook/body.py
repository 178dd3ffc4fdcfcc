"""What of a cell's body reaches the model: everything, byte for byte, but ``{name}``.

``{name}`` is replaced where it is a plain identifier that exists in the user's namespace.
Every other brace stays as typed: ``{{``, ``{x!r}``, ``{a.b}``, ``{"json": 1}``. Nothing is
ever evaluated, and what was put in is not looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["cell_text", "fill_in"]

_NAME = re.compile(r"\{([^\W\d]\w*)\}")


def fill_in(text: str, namespace: Mapping[str, Any]) -> str:
    """Replace each ``{name}`` whose name is in `namespace` by ``str()`` of its value."""

    def replace(match: re.Match[str]) -> str:
        start, end = match.span()
        # {{name}} is how f-strings and templates write a literal brace: leave it alone.
        if text[start - 1 : start] == "{" and text[end : end + 1] == "}":
            return match.group()
        name = match.group(1)
        return str(namespace[name]) if name.isidentifier() and name in namespace else match.group()

    return _NAME.sub(replace, text)


def cell_text(body: str) -> str:
    """Return a cell's body without the one line end that IPython adds to it."""
    return body.removesuffix("\n")
