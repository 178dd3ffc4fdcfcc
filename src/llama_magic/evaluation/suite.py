"""Short texts of different kinds, which tell where a quantization breaks.

Each is our own writing and apart from the calibration text, so that an importance matrix is not judged by what it was
made from. Each has enough tokens for some chunks of `SUITE_CTX`: read them in one `EvaluateRequest` with that `n_ctx`,
and every text has its KL divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama_magic.quantization.texts import TextPart

__all__ = ["SUITE", "SUITE_CTX", "SuiteText", "with_own"]

#: Tokens of a chunk of these texts.
SUITE_CTX = 256

_DATA = Path(__file__).parent / "data" / "suite"


@dataclass(frozen=True, slots=True)
class SuiteText:
    """One text: the kind it stands for, and where it is."""

    kind: str
    text: TextPart


def _shipped(kind: str, name: str) -> SuiteText:
    return SuiteText(kind, TextPart(kind, str(_DATA / f"{name}.txt")))


#: Prose in English, Python and TypeScript, sums with their results, and Welsh for the languages that models saw
#: little of.
SUITE: tuple[SuiteText, ...] = (
    _shipped("prose", "prose"),
    _shipped("code", "code"),
    _shipped("arithmetic", "arithmetic"),
    _shipped("Welsh", "welsh"),
)


def with_own(*texts: TextPart) -> tuple[SuiteText, ...]:
    """Return the suite with texts of a user's behind it; each is a kind of its own, by its name."""
    return (*SUITE, *(SuiteText(Path(part.name).name, part) for part in texts))
