"""The results of `bench`: rows with every repetition, and llama-bench's figures of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from llama_magic.errors import MissingDependencyError
from llama_magic.evaluation.speed_test import LaneFacts, SpeedTest
from llama_magic.models.options import LoadOptions

__all__ = ["BenchResult", "BenchRow", "data_frame", "mean", "stdev"]


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0.0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def stdev(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample (over n - 1), as llama-bench does; 0.0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def data_frame(rows: Sequence[dict[str, Any]]) -> Any:
    """Return rows as a `pandas.DataFrame`; `MissingDependencyError` where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError:
        raise MissingDependencyError("to_pandas needs pandas: pip install pandas") from None
    return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True, repr=False)
class BenchRow:
    """One test of one model with one set of options.

    Attributes
    ----------
    ref, path
        What was typed, and the file.
    test
        What was run.
    options
        How the model was loaded; None where the choice was left to llama_magic.
    backend
        The backends that were asked for; empty where nothing was said.
    test_time
        When it was begun, in UTC (RFC 3339).
    facts
        What the worker found; None before it is open.
    samples_ns
        Nanoseconds of each repetition.
    error
        Why it could not be measured, else empty.
    """

    ref: str
    path: str
    test: SpeedTest
    options: LoadOptions
    backend: str = ""
    test_time: str = ""
    facts: LaneFacts | None = None
    samples_ns: tuple[int, ...] = ()
    error: str = ""

    @property
    def samples_ts(self) -> tuple[float, ...]:
        """Tokens per second of each repetition."""
        return tuple(1e9 * self.test.n_tokens / ns for ns in self.samples_ns)

    @property
    def avg_ts(self) -> float:
        """Mean of the tokens per second."""
        return mean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """Standard deviation of the tokens per second."""
        return stdev(self.samples_ts)

    @property
    def avg_ns(self) -> int:
        """Mean of the nanoseconds, rounded down."""
        return sum(self.samples_ns) // len(self.samples_ns) if self.samples_ns else 0

    @property
    def stddev_ns(self) -> int:
        """Standard deviation of the nanoseconds, rounded down."""
        return int(stdev(self.samples_ns))

    @property
    def n_threads(self) -> int:
        """Threads it ran with; 0 where that is not known."""
        return self.facts.n_threads if self.facts is not None else self.options.n_threads or 0

    def __repr__(self) -> str:
        if self.error:
            return f"BenchRow({self.ref}, {self.test.name}: {self.error})"
        return f"BenchRow({self.ref}, {self.test.name}: {self.avg_ts:.2f} ± {self.stddev_ts:.2f} tok/s)"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict, under llama-bench's names, with `ref`, `backend`, `test` and `error`."""
        from llama_magic.evaluation.bench_formats import fields_of

        return {
            "ref": self.ref,
            "backend": self.backend,
            "test": self.test.name,
            **fields_of(self),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True, repr=False)
class BenchResult(Sequence[BenchRow]):
    """The rows of one `bench`, in the order in which llama-bench would print them.

    Attributes
    ----------
    rows
        One for each model, backend, set of options and test.
    repetitions
        Repetitions that were asked for.
    seconds
        Time of the whole.
    notes
        What to know about it, in sentences.
    stopped
        The user stopped it: some rows have fewer repetitions.
    """

    rows: tuple[BenchRow, ...]
    repetitions: int
    seconds: float
    notes: tuple[str, ...] = ()
    stopped: bool = False

    @overload
    def __getitem__(self, index: int) -> BenchRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[BenchRow, ...]: ...
    def __getitem__(self, index: int | slice) -> BenchRow | tuple[BenchRow, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[BenchRow]:
        return iter(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {
            "repetitions": self.repetitions,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_pandas(self) -> Any:
        """Return the rows as a `pandas.DataFrame`, under llama-bench's names.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        return data_frame([row.to_dict() for row in self.rows])

    def to_markdown(self) -> str:
        """Return llama-bench's table."""
        from llama_magic.evaluation.bench_formats import markdown

        return markdown(self)

    def to_csv(self) -> str:
        """Return llama-bench's CSV."""
        from llama_magic.evaluation.bench_formats import comma_separated

        return comma_separated(self)

    def to_json(self) -> str:
        """Return llama-bench's JSON, each repetition included."""
        from llama_magic.evaluation.bench_formats import as_json

        return as_json(self)

    def __repr__(self) -> str:
        from llama_magic.evaluation.bench_view import text

        return text(self)

    def _repr_html_(self) -> str:
        from llama_magic.evaluation.bench_view import html

        return html(self)
