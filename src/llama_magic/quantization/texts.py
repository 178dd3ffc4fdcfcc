"""Texts that models read: to collect importance matrices, and to be evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama_magic.errors import InvalidRequestError

__all__ = ["TextPart", "read_bytes", "read_text"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text to read: a file, or the text itself. `name` goes into the result."""

    name: str
    path: str | None = None
    text: str | None = None


def read_text(part: TextPart) -> str:
    """Return a text as llama.cpp's tools read it: without its last line end, all else as it is.

    Raises
    ------
    InvalidRequestError
        The file can not be read, or is not UTF-8.
    """
    if part.path is None:
        return part.text or ""
    try:
        return read_bytes(part.path).decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{part.name} is not UTF-8 text") from None


def read_bytes(path: str) -> bytes:
    """Return what a file holds; raises `InvalidRequestError` where it can not be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{path} can not be read: {error.strerror or error}") from error
