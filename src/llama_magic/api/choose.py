"""Choose a quantization level: the smallest one that is good, small and fast enough."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_magic.api.compare import Settings, TextLike
from llama_magic.api.comparing import measure
from llama_magic.api.levels import Lineup, line_up, plan_levels
from llama_magic.api.locate import locate
from llama_magic.errors import InvalidRequestError
from llama_magic.evaluation.choice import Choice, Search, Trial
from llama_magic.evaluation.comparison import LevelResult
from llama_magic.evaluation.recommend import MAX_KLD, short
from llama_magic.models.gguf import read_metadata
from llama_magic.models.memory import estimate
from llama_magic.models.overrides import parse_size
from llama_magic.progress import Report
from llama_magic.units import format_bytes

__all__ = ["CANDIDATES", "choose"]

#: What there is to choose from where nothing is named: the types that need no importance matrix and are in common use.
CANDIDATES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")


def choose(
    ref: str | os.PathLike[str],
    ftypes: Sequence[str] | str = CANDIDATES,
    *,
    max_memory: int | str | None = None,
    max_kld: float = MAX_KLD,
    min_tps: float | None = None,
    text: TextLike = None,
    n_ctx: int = 512,
    chunks: int | None = 8,
    runs: int = 3,
    n_prompt: int = 0,
    n_gen: int = 64,
    base: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Report | None = None,
    **options: Any,
) -> Choice:
    """Find the smallest level that keeps within limits, measuring as few as needed.

    Sizes are known exactly before anything is made, so what is too large is left out. Among the rest, the smallest
    level whose divergence is at most `max_kld` is found by bisection; that larger levels lose less is checked on what
    was measured. With `min_tps`, speed is measured too, and larger levels are tried where the first is too slow.

    Parameters
    ----------
    ref
        The model: a file, ``owner/repo[:quant]`` on the Hub, or ``smollm2``.
    ftypes
        Types to choose from.
    max_memory
        Most bytes that it may take when it is loaded with a context as `load` makes it; also a text such as "4GB".
    max_kld
        Largest mean KL divergence from the reference, in nats a token.
    min_tps
        Fewest tokens generated a second.
    text, n_ctx, chunks, runs, n_prompt, n_gen, base, imatrix, force, progress, **options
        As `compare` takes them.

    Returns
    -------
    Choice
        Its `ref` is what `load` takes.

    Raises
    ------
    InvalidRequestError
        No level keeps within the limits; the message tells how far the nearest is.
    ModelNotFoundError, InvalidModelError, DiskFullError, JobInterrupted
    """
    if text is False:
        raise InvalidRequestError("choose needs a text: without it there is no KL divergence")
    words = list(dict.fromkeys([ftypes] if isinstance(ftypes, str) else ftypes))
    limit = _bytes(max_memory)
    settings = Settings(
        text=text, n_ctx=n_ctx, chunks=chunks, runs=runs if min_tps is not None else 0, n_prompt=n_prompt, n_gen=n_gen,
        force=force, options=options,
    )  # fmt: skip
    search = _Choosing(os.fspath(ref), settings, base, imatrix, progress)
    trials = search.trials(words)
    small = [trial for trial in trials if limit is None or trial.memory <= limit]
    if not small:
        least = trials[0]
        raise InvalidRequestError(
            f"nothing fits into {format_bytes(limit or 0)}: {least.name}, the smallest, takes "
            f"{format_bytes(least.memory)} when it is loaded. What helps: a smaller model, or more memory"
        )
    return search.run(trials, small, limit, max_kld, min_tps)


def _bytes(size: int | str | None) -> int | None:
    if not isinstance(size, str):
        return size
    try:
        return parse_size(size)
    except ValueError as error:
        raise InvalidRequestError(f"max_memory takes {error}; got {size!r}") from error


class _Choosing:
    """One search: measures levels one by one, each beside the reference."""

    def __init__(
        self,
        ref: str,
        settings: Settings,
        base: str | os.PathLike[str] | None,
        imatrix: str | os.PathLike[str] | None,
        progress: Report | None,
    ) -> None:
        self._ref = ref
        self._settings = settings
        self._base = None if base is None else os.fspath(base)
        self._imatrix = imatrix
        self._progress = progress
        self._request = settings.request()
        self._rows: dict[str, LevelResult] = {}
        self._notes: dict[str, None] = {}

    def trials(self, words: Sequence[str]) -> list[Trial]:
        """Return all levels with what they take, the smallest first; of two of one size, one is enough."""
        source = read_metadata(locate(self._ref, self._progress))
        sizes = plan_levels(source.path, words, self._progress)
        need = estimate(source, self._request.options.replace(n_ctx=None))
        besides = need.total - need.weights
        found: dict[int, Trial] = {}
        for name, size in sizes.items():
            found.setdefault(size, Trial(name, size, size + besides))
        return [found[size] for size in sorted(found)]

    def run(
        self, trials: list[Trial], small: list[Trial], limit: int | None, max_kld: float, min_tps: float | None
    ) -> Choice:
        """Search, and tell what came of it."""
        search = Search(len(small), lambda number: self._measure(small[number].name), max_kld)
        best = search.smallest()
        slow: list[str] = []
        while best is not None and min_tps is not None and self._tps(small[best].name) < min_tps:
            slow.append(small[best].name)
            best = next((number for number in range(best + 1, len(small)) if search.good(number)), None)
        if not search.monotonic:
            self._notes["A larger level lost more than a smaller one, so every smaller level was measured."] = None
        if best is None:
            raise InvalidRequestError(self._refusal(small, max_kld, min_tps, slow))
        chosen = small[best].name
        rows = tuple(self._trial(trial, chosen, limit, max_kld, min_tps) for trial in trials)
        return Choice(self._rows[chosen].path, chosen, self._reason(chosen, max_kld, limit), rows, tuple(self._notes))

    def _measure(self, name: str) -> tuple[float, float] | None:
        lineup = line_up(self._ref, [name], base=self._base, imatrix=self._imatrix, progress=self._progress)
        if not lineup.levels:  # it is the reference itself
            lineup = Lineup(lineup.model, lineup.base, (replace(lineup.base, name=f"{name} "),), lineup.notes)
        found = measure(lineup, self._request, progress=self._progress)
        self._notes |= dict.fromkeys(found.notes)
        row = next(level for level in found.levels if not level.base)
        self._rows[name] = replace(row, name=name)
        return None if row.kld is None else (row.kld.value, row.kld.error or 0.0)

    def _tps(self, name: str) -> float:
        row = self._rows.get(name)
        return row.generation.mean if row is not None and row.generation else 0.0

    def _reason(self, name: str, max_kld: float, limit: int | None) -> str:
        row = self._rows[name]
        assert row.kld is not None
        within = f" and takes no more than {format_bytes(limit)}" if limit is not None else ""
        sure = ""
        if row.kld.value + 2 * (row.kld.error or 0.0) > max_kld:
            sure = "; within the error it may be above, a longer text tells more"
        error = f" ± {short(row.kld.error)}" if row.kld.error else ""
        return f"the smallest level whose KLD ({short(row.kld.value)}{error}) is at most {max_kld:g}{within}{sure}"

    def _trial(self, trial: Trial, chosen: str, limit: int | None, max_kld: float, min_tps: float | None) -> Trial:
        row = self._rows.get(trial.name)
        if limit is not None and trial.memory > limit:
            return replace(trial, verdict="takes too much memory")
        if row is None:
            return replace(trial, verdict="not measured: it was not needed")
        kld, tps = row.kld, row.generation.mean if row.generation else None
        values = replace(
            trial, kld=kld.value if kld else None, kld_error=kld.error if kld else None, tps=tps,
            chosen=trial.name == chosen,
        )  # fmt: skip
        if kld is None:
            return replace(values, verdict=f"could not be measured: {row.error or row.kld_reason}")
        if kld.value > max_kld:
            return replace(values, verdict=f"KLD above {max_kld:g}")
        if min_tps is not None and (tps or 0.0) < min_tps:
            return replace(values, verdict=f"below {min_tps:g} tok/s")
        return replace(values, verdict="chosen" if values.chosen else "good enough, but larger")

    def _refusal(self, small: Sequence[Trial], max_kld: float, min_tps: float | None, slow: Sequence[str]) -> str:
        if slow and min_tps is not None:
            told = ", ".join(f"{name} {self._tps(name):.1f}" for name in slow)
            return (
                f"no level with KLD at most {max_kld:g} generates {min_tps:g} tok/s here: {told}. What helps: a larger "
                "max_kld, a smaller model, or another backend (%llama backends)"
            )
        measured = [(row.kld.value, name) for name, row in self._rows.items() if row.kld is not None]
        if not measured:
            reasons = "; ".join(f"{name}: {row.error or row.kld_reason}" for name, row in self._rows.items())
            return f"no level could be measured: {reasons}"
        kld, name = min(measured)
        return (
            f"no level of {', '.join(trial.name for trial in small)} keeps KLD at or below {max_kld:g}; the nearest is "
            f"{name} with {short(kld)}. What helps: a larger max_kld, more memory, or an importance matrix "
            "(--imatrix auto)"
        )
