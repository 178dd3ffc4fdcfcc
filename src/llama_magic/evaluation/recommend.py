"""Which level to take: the rule, and the sentence that gives the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_magic.evaluation.comparison import LevelResult, Recommendation

__all__ = ["MAX_KLD", "as_good", "recommend", "short"]

#: KL divergence up to which a level counts as close to its reference. In llama.cpp's scoreboard for Llama 3 8B
#: (tools/perplexity/README.md) Q4_K_M has 0.031, Q4_K_S 0.043 and Q4_0 0.072: it is the line that most users of
#: 4 bits draw.
MAX_KLD = 0.05
#: Sizes that differ by less than this count as the same.
_SAME_SIZE = 0.02


def recommend(levels: Sequence[LevelResult], max_kld: float = MAX_KLD) -> Recommendation:
    """Choose a level.

    The rule: of the levels whose mean KL divergence from the reference is at most `max_kld`, the smallest; where none
    is, the one with the least divergence. Levels of the same size (within 2 %) whose divergence differs by less than
    two standard errors of the difference are ties: among them the one that generates faster by more than the spread of
    the runs, and where none does, the rest are named with it.
    """
    from llama_magic.evaluation.comparison import Recommendation

    rule = (
        f"The smallest level whose mean KL divergence from the reference is at most {max_kld:g}; where none is, the "
        "one with the least. Levels of the same size (within 2 %) and the same divergence (within two standard errors) "
        "are ties; the faster one goes first."
    )
    base = next((level for level in levels if level.base), None)
    known = [level for level in levels if not level.base and _kld(level) is not None and level.size]
    if base is None or not known:
        return Recommendation(None, _nothing(levels, base), rule=rule)
    close = [level for level in known if _kld(level) <= max_kld]  # type: ignore[operator]
    best = min(close, key=lambda level: level.size) if close else min(known, key=_value)
    ties = [level for level in (close or known) if level is not best and _tied(level, best)]
    faster = max([best, *ties], key=_speed)
    if faster is not best and _surely_faster(faster, best):
        ties = [best, *(tie for tie in ties if tie is not faster)]
        best = faster
    names = tuple(tie.name for tie in ties if not _surely_faster(best, tie))
    sentence = _sentence(best, base, known, max_kld, names, above=not close)
    return Recommendation(best.name, sentence, names, rule)


def _kld(level: LevelResult) -> float | None:
    found = level.kld
    return None if found is None or not math.isfinite(found.value) else found.value


def _value(level: LevelResult) -> float:
    found = _kld(level)
    return math.inf if found is None else found


def _speed(level: LevelResult) -> float:
    return level.generation.mean if level.generation else 0.0


def as_good(one: LevelResult, other: LevelResult) -> bool:
    """Tell whether two divergences differ by less than two standard errors of their difference.

    The errors are taken as independent. Both come from the same text, so that they go up and down together, and the
    difference is known better than this says: what counts as different here is different.
    """
    if one.kld is None or other.kld is None:
        return False
    error = math.hypot(one.kld.error or 0.0, other.kld.error or 0.0)
    return abs(one.kld.value - other.kld.value) <= 2 * error


def _tied(one: LevelResult, other: LevelResult) -> bool:
    return abs(one.size - other.size) <= _SAME_SIZE * max(one.size, other.size) and as_good(one, other)


def _surely_faster(one: LevelResult, other: LevelResult) -> bool:
    if one.generation is None or other.generation is None:
        return False
    return one.generation.mean - other.generation.mean > 2 * math.hypot(one.generation.sd, other.generation.sd)


def _nothing(levels: Sequence[LevelResult], base: LevelResult | None) -> str:
    if base is None:
        return "No recommendation: there is no reference to compare with."
    if all(level.base for level in levels):
        return "No recommendation: there is nothing beside the reference."
    return "No recommendation: no level has a KL divergence from the reference."


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def _size_words(level: LevelResult, base: LevelResult) -> str:
    if not base.size:
        return ""
    ratio = base.size / level.size
    if 0.985 < ratio < 1.015:
        return f"as large as {base.name}"
    if ratio > 1:
        return f"{_times(ratio)} times smaller than {base.name}"
    return f"{_times(1 / ratio)} times larger than {base.name}"


def _speed_words(level: LevelResult, base: LevelResult) -> str:
    if level.generation is None or base.generation is None or not base.generation.mean:
        return ""
    if _surely_faster(level, base):
        return f"{_times(level.generation.mean / base.generation.mean)} times faster"
    if _surely_faster(base, level) and level.generation.mean:
        return f"{_times(base.generation.mean / level.generation.mean)} times slower"
    return "as fast within the spread of the runs"


def short(value: float) -> str:
    """Return a divergence in two digits that count, or one where it is very small."""
    if abs(value) >= 1e-4 or value == 0:
        return f"{value:.2g}"
    return f"{Decimal(f'{value:.1g}'):f}" if abs(value) >= 1e-6 else f"{value:.0e}"


def _kld_words(level: LevelResult) -> str:
    assert level.kld is not None
    error = f" ± {short(level.kld.error)}" if level.kld.error else ""
    return f"KLD {short(level.kld.value)}{error}"


def _sentence(
    best: LevelResult,
    base: LevelResult,
    known: Sequence[LevelResult],
    max_kld: float,
    ties: Sequence[str],
    *,
    above: bool,
) -> str:
    facts = [_size_words(best, base), _speed_words(best, base), _kld_words(best)]
    text = f"{best.name}: {', '.join(filter(None, facts))}"
    smaller = [level for level in known if level.size < best.size * (1 - _SAME_SIZE)]
    if smaller:
        text += f"; {_next_words(max(smaller, key=lambda level: level.size), best, base)}"
    text += "."
    if ties:
        text += f" {', '.join(ties)} {'is' if len(ties) == 1 else 'are'} as good within the error."
    if above:
        text += f" No level stays at or below KLD {max_kld:g}; this one is the closest to {base.name}."
    elif best.kld is not None and best.kld.value + 2 * (best.kld.error or 0) > max_kld:
        text += f" Its KLD is not surely below {max_kld:g}: a longer text tells more."
    doubtful = [level.name for level in smaller if _within(level, max_kld)]
    if doubtful and not above:
        text += f" {', '.join(doubtful)} may be below {max_kld:g} too, within the error."
    return text


def _within(level: LevelResult, max_kld: float) -> bool:
    assert level.kld is not None
    return level.kld.value > max_kld >= level.kld.value - 2 * (level.kld.error or 0.0)


def _next_words(smaller: LevelResult, best: LevelResult, base: LevelResult) -> str:
    saved = 100 * (best.size - smaller.size) / (base.size or best.size)
    words = f"{smaller.name} saves {saved:.0f} % more"
    if as_good(smaller, best):
        return f"{words} and loses as much within the error"
    here, there = _value(best), _value(smaller)
    if here <= 0:
        return f"{words} and has {_kld_words(smaller)}"
    ratio = there / here
    if ratio < 1:
        return f"{words} and loses less ({_kld_words(smaller)})"
    return f"{words} and loses {_times(ratio)} times as much"
