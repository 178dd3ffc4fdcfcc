"""Nearest names, for errors that say what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "reject_unknown"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean X?`` (with a leading space), or an empty string when nothing is near."""
    names = list(known)
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return f" Did you mean {folded[near[0]]}?" if near else ""


def reject_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise `TypeError` for the first name in `given` that is not `known`, naming the nearest."""
    names = list(known)
    for name in given:
        if name not in names:
            raise TypeError(f"unknown {what} {name!r}.{did_you_mean(name, names)}")
