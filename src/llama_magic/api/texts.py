"""Texts as callers give them: a string, or a file as a `Path`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeAlias

from llama_magic.errors import InvalidRequestError
from llama_magic.quantization.texts import TextPart

__all__ = ["TextLike", "text_part"]

#: A text: itself as a string, or a file as a `Path`.
TextLike: TypeAlias = str | os.PathLike[str]


def text_part(text: TextLike) -> TextPart:
    """Return a text to send to the worker.

    Raises
    ------
    InvalidRequestError
        There is no such file, or a string is the name of one.
    """
    if not isinstance(text, str):
        path = Path(text).expanduser()
        if not path.is_file():
            raise InvalidRequestError(f"there is no text file {str(text)!r}")
        return TextPart(str(text), str(path.absolute()))
    if _is_file(text):
        raise InvalidRequestError(f"a string is the text itself; to read the file, give a path: Path({text!r})")
    return TextPart("text", text=text)


def _is_file(text: str) -> bool:
    """Tell whether a text is the name of a file; most texts are too long for one, or hold what no name may."""
    if len(text) > 1000 or "\n" in text:
        return False
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        return Path(text).expanduser().is_file()
    return False
