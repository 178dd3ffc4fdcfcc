"""How long work tells how far it is. Every package may use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Progress", "Report"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something is: `fraction` from 0 to 1, or None where it can not be known.

    Attributes
    ----------
    stage
        A word for what is being done: "load", "prompt", "download", "quantize" and so on.
    fraction
        From 0 to 1, or None.
    message
        What a person reads; the stage is shown where it is empty.
    partial
        What there is so far, where that can be shown: an object with ``_repr_html_``, drawn below the bar.
    """

    stage: str
    fraction: float | None = None
    message: str = ""
    partial: Any = None


#: Takes every step of progress.
Report: TypeAlias = Callable[[Progress], None]
