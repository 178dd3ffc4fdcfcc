"""Where two answers part, and which of their words differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

__all__ = ["changed", "parting", "words_of"]

# Scripts without spaces are compared character by character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
#: Pairs of words from which on comparing them all takes long.
_LONG = 1_000_000
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)")


def words_of(text: str) -> list[str]:
    """Return the words of a text, each with the space before it: joined, they are the text without its end's space."""
    return _WORD.findall(text)


def parting(reference: Sequence[str], words: Sequence[str]) -> int | None:
    """Return the number of the first word in which two answers differ, from 0; None where none does.

    Where one goes on after the end of the other, that is the first word that only one of them has.
    """
    for place, (theirs, ours) in enumerate(zip(reference, words, strict=False)):
        if theirs != ours:
            return place
    shorter = min(len(reference), len(words))
    return shorter if len(reference) != len(words) else None


def changed(reference: Sequence[str], words: Sequence[str]) -> list[bool]:
    """Tell for each word whether it has no counterpart in the reference (the longest common blocks are aligned).

    Time grows with the product of both lengths. Of long texts, words that come very often are not aligned, which is
    quicker.
    """
    long = len(reference) * len(words) > _LONG
    found = [True] * len(words)
    blocks = SequenceMatcher(None, [w.strip() for w in reference], [w.strip() for w in words], autojunk=long)
    for _, start, size in blocks.get_matching_blocks():
        found[start : start + size] = [False] * size
    return found
