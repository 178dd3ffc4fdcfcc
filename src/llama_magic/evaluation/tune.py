"""Which settings are faster, decided from repetitions that took turns; and the results that people see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama_magic.evaluation.bench import mean, stdev

__all__ = ["FLAGS", "Speedup", "TuneCheck", "TuneResult", "TuneTrial", "flags_of", "speedup"]

#: Settings that tuning may choose, and the flag of each.
FLAGS = {
    "backend": "--backend", "n_gpu_layers": "-ngl", "n_threads": "-t", "n_threads_batch": "-tb", "n_batch": "-b",
    "n_ubatch": "-ub", "flash_attn": "-fa", "cache_type_k": "-ctk", "cache_type_v": "-ctv",
}  # fmt: skip

#: 97.5 % quantiles of Student's t with 1, 2, … degrees of freedom: a 95 % interval reaches that far to both sides.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
#: What is called faster is faster by at least this factor.
_LEAST = 1.02


def flags_of(settings: Mapping[str, Any]) -> str:
    """Return settings as flags: ``-t 2 -fa on``."""
    return " ".join(f"{flag} {settings[name]}" for name, flag in FLAGS.items() if name in settings)


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast one thing is as another, by repetitions that took turns.

    Attributes
    ----------
    ratio
        Geometric mean of the rounds' ratios.
    low, high
        Its 95 % interval, as far as the logarithms of the rounds are normally distributed.
    count
        Rounds.
    """

    ratio: float
    low: float
    high: float
    count: int

    @property
    def faster(self) -> bool:
        """Faster beyond the noise, and by at least 2 %."""
        return self.low > 1 and self.ratio >= _LEAST

    @property
    def slower(self) -> bool:
        """Slower beyond the noise."""
        return self.high < 1

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.ratio:.2f}x"
        return f"{self.ratio:.2f}x ({self.low:.2f} to {self.high:.2f})"


def speedup(before: Sequence[float], after: Sequence[float]) -> Speedup:
    """Compare times of the same rounds; above 1 where `after` took less.

    Paired logarithms of the ratios, their mean, and Student's 95 % interval around it.
    """
    logs = [math.log(old / new) for old, new in zip(before, after, strict=False)]
    if not logs:
        return Speedup(1.0, 0.0, math.inf, 0)
    middle = mean(logs)
    if len(logs) < 2:
        return Speedup(math.exp(middle), 0.0, math.inf, 1)
    reach = _T[min(len(logs) - 2, len(_T) - 1)] * stdev(logs) / math.sqrt(len(logs))
    return Speedup(math.exp(middle), math.exp(middle - reach), math.exp(min(middle + reach, 700.0)), len(logs))


@dataclass(frozen=True, slots=True)
class TuneTrial:
    """One setting that was tried.

    Attributes
    ----------
    knob
        What it is about: "threads", "flash attention" and so on.
    flags
        What was tried.
    tests
        Names of the tests that judged it, and the mean tokens per second of each in `speeds`.
    gain
        Against what was best until then; None for that itself, and for what failed.
    verdict
        "kept", "as fast", "slower", "dropped early", "not confirmed", "what was best so far", or why it failed.
    """

    knob: str
    flags: str
    tests: tuple[str, ...]
    speeds: tuple[float, ...]
    gain: Speedup | None
    verdict: str

    @property
    def kept(self) -> bool:
        """Whether it became part of the settings."""
        return self.verdict == "kept"


@dataclass(frozen=True, slots=True)
class TuneCheck:
    """One test of the last check: tokens per second with the defaults and with the tuned settings."""

    what: str
    test: str
    default_ts: float
    tuned_ts: float
    gain: Speedup


@dataclass(frozen=True, slots=True, repr=False)
class TuneResult:
    """What tuning found.

    Attributes
    ----------
    ref, path
        The model.
    backend
        The backends it ran on.
    machine
        The machine, in words.
    defaults
        What `load` takes without tuning, as flags.
    settings
        What is faster: load options by name; empty where nothing is.
    trials
        What was tried, in order.
    checks
        The last check: defaults and tuned settings in turns, test by test.
    gain
        The same for all tests together, weighted to a prompt of 512 tokens, an answer of 128 and a follow-up.
    stored
        The file it is kept in, empty where it is not.
    seconds, notes
        Time of the whole, and what to know about it.
    """

    ref: str
    path: str
    backend: str
    machine: str
    defaults: str
    settings: Mapping[str, Any]
    trials: tuple[TuneTrial, ...]
    checks: tuple[TuneCheck, ...]
    gain: Speedup | None
    stored: str
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def flags(self) -> str:
        """The settings as flags; empty where the defaults are best."""
        return flags_of(self.settings)

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        if self.settings and not self.stored:
            return f"{self.flags}: fastest so far; nothing is stored"
        if not self.settings and self.checks:
            return "the last check confirmed no gain: the defaults stay"
        if not self.settings or self.gain is None:
            return "the defaults are as fast as anything that was tried: nothing is changed"
        return f"{self.flags}: {self.gain.ratio:.2f} times as fast as the defaults, and used by load from now on"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {**asdict(self), "settings": dict(self.settings), "flags": self.flags}

    def to_pandas(self) -> Any:
        """Return the trials as a `pandas.DataFrame`.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        from llama_magic.evaluation.bench import data_frame

        return data_frame([{**asdict(trial), "gain": trial.gain and trial.gain.ratio} for trial in self.trials])

    def __repr__(self) -> str:
        from llama_magic.evaluation.tune_view import text

        return text(self)

    def _repr_html_(self) -> str:
        from llama_magic.evaluation.tune_view import html

        return html(self)
