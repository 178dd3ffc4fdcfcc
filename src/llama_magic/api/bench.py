"""Measuring speed: llama-bench's tests and method, with repetitions that take turns."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from llama_magic.api.locate import locate
from llama_magic.api.speed import Lane, SpeedWorkers, busy_note
from llama_magic.backends.known import parse_backends
from llama_magic.errors import (
    EngineCrashed,
    InvalidRequestError,
    JobInterrupted,
    LlamaMagicError,
    OutOfMemoryError,
)
from llama_magic.evaluation.bench import BenchResult, BenchRow
from llama_magic.evaluation.speed_test import SpeedTest
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.progress import Progress, Report
from llama_magic.units import format_seconds

__all__ = ["bench"]

_T = TypeVar("_T")
#: One value, or several: each is measured.
OneOrMore: TypeAlias = _T | Sequence[_T]

#: Load options that may have several values, in llama-bench's order: the last changes fastest.
_GRID = (
    "n_gpu_layers", "n_cpu_moe", "devices", "n_batch", "n_ubatch", "cache_type_k", "cache_type_v", "offload_kqv",
    "flash_attn", "n_threads",
)  # fmt: skip
#: What a test sets itself.
_NOT_HERE = {"n_ctx", "backend", "memory_budget", "n_threads_batch", "lora"}


def bench(
    ref: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = "smollm2",
    *,
    n_prompt: OneOrMore[int] = 512,
    n_gen: OneOrMore[int] = 128,
    pg: Iterable[tuple[int, int]] = (),
    n_depth: OneOrMore[int] = 0,
    repetitions: int = 5,
    backends: OneOrMore[str] | None = None,
    warmup: bool = True,
    force: bool = False,
    progress: Report | None = None,
    **options: Any,
) -> BenchResult:
    """Measure how fast models are, as llama-bench does: its tests, its method, its figures.

    Several models, backends and values give a row for each combination. The repetitions of all rows take turns, so
    that a machine that becomes slower meanwhile does so for all. Each backend has a worker of its own; the models are
    loaded beside each other as far as memory allows.

    Parameters
    ----------
    ref
        A model or several: files, ``owner/repo[:quant]`` on the Hub, aliases.
    n_prompt, n_gen
        Tokens of a prompt to process, and tokens to generate: a test each. 0: no such test.
    pg
        Pairs of them: tests that process a prompt and generate then.
    n_depth
        Tokens in the cache before.
    repetitions
        How often each test is timed.
    backends
        Backends to compare: ``"cpu"``, ``"blas"``, ``"vulkan"``, several together as ``"vulkan,rpc"``. None: the
        backends that are selected.
    warmup
        Run each test once before it is timed.
    force
        Do not refuse what seems not to fit into memory.
    progress
        Called with every `Progress`, whose `partial` is the result so far.
    **options
        Load options. `n_threads`, `n_batch`, `n_ubatch`, `n_gpu_layers`, `n_cpu_moe`, `devices`, `cache_type_k`,
        `cache_type_v`, `offload_kqv` and `flash_attn` may be lists (of tuples, for `devices`).

    Raises
    ------
    ModelNotFoundError, InvalidModelError, InvalidRequestError, OutOfMemoryError, BackendError
        Where that holds for all rows; otherwise the row says it, and the others are measured.
    JobInterrupted
        It was stopped; the rows so far are its `result`.
    TypeError
        An option is unknown; the nearest one is named.
    """
    if repetitions < 1:
        raise InvalidRequestError(f"repetitions must be at least 1; got {repetitions}")
    refs = [ref] if isinstance(ref, (str, os.PathLike)) else list(ref)
    tests = _tests(_many(n_prompt), _many(n_gen), list(pg))
    choices = list(_options(options))
    wanted = [None] if backends is None else [backends] if isinstance(backends, str) else list(backends)
    for names in filter(None, wanted):
        parse_backends(names)  # a slip of the pen is told before anything is measured
    rows = [
        BenchRow(os.fspath(name), path, replace(test, n_depth=depth), chosen, backend or "")
        for name, path in [(each, str(locate(each, progress))) for each in refs]
        for backend in wanted
        for chosen in choices
        for depth in _many(n_depth)
        for test in tests
    ]
    if not rows:
        raise InvalidRequestError("there is nothing to measure: give a model, and a test above 0 (-p 512 -n 128)")
    return _Run(rows, repetitions, progress, warmup=warmup, force=force).run()


def _many(value: OneOrMore[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _tests(prompts: list[int], gens: list[int], pairs: list[tuple[int, int]]) -> list[SpeedTest]:
    tests = [SpeedTest(n_prompt=count) for count in prompts if count]
    tests += [SpeedTest(n_gen=count) for count in gens if count]
    return tests + [SpeedTest(prompt, gen) for prompt, gen in pairs if prompt or gen]


def _options(given: dict[str, Any]) -> Iterator[LoadOptions]:
    for name in _NOT_HERE & set(given):
        raise TypeError(f"bench takes no {name}: the tests and their contexts decide that")
    LoadOptions.from_keywords(**{name: value for name, value in given.items() if name not in _GRID})
    varied = {name: given[name] for name in _GRID if name in given}
    columns = [_values(name, value) for name, value in varied.items()]
    plain = {name: value for name, value in given.items() if name not in varied}
    for values in itertools.product(*columns):
        yield LoadOptions.from_keywords(**plain, **dict(zip(varied, values, strict=True)))


def _values(name: str, value: Any) -> list[Any]:
    if name == "devices":
        # A device may be named alone; several devices for one row are a tuple.
        found = [value] if isinstance(value, str) else list(value)
        return [(each,) if isinstance(each, str) else tuple(each) for each in found] or [()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


class _Run:
    """One `bench`: the rows, and how far they are."""

    def __init__(
        self, rows: list[BenchRow], repetitions: int, progress: Report | None, *, warmup: bool, force: bool
    ) -> None:
        self.rows = rows
        self.repetitions = repetitions
        self.progress = progress
        self.warmup = warmup
        self.force = force
        self.notes: list[str] = []
        self.failure: LlamaMagicError | None = None
        self.started = time.perf_counter()
        self.spent = [0.0] * len(rows)  # seconds of one repetition, depth included

    def run(self) -> BenchResult:
        waiting = list(range(len(self.rows)))
        groups = 0
        self.notes += filter(None, [busy_note()])
        try:
            with SpeedWorkers() as workers:
                while waiting:
                    open_rows, waiting = self._open(workers, waiting)
                    groups += bool(open_rows)
                    self._take_turns(workers, open_rows)
                    workers.close()
        except KeyboardInterrupt:  # GenerationInterrupted is one
            raise self._stopped() from None
        if self.failure is not None and not any(row.samples_ns for row in self.rows):
            raise self.failure
        if groups > 1:
            self.notes.append(
                f"not all rows fit into memory together: they were measured in {groups} groups, one after the other"
            )
        return self._result()

    def _open(self, workers: SpeedWorkers, waiting: list[int]) -> tuple[dict[int, Lane], list[int]]:
        """Open rows until memory is full; returns the open ones and those that wait for the next round."""
        lanes: dict[int, Lane] = {}
        for place, number in enumerate(waiting):
            row = self.rows[number]
            self._tell(f"preparing {row.test.name} of {row.ref}")
            began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            try:
                lane = workers.open(
                    ModelSpec(row.path, row.ref, row.options), row.test, backend=row.backend or None,
                    warmup=self.warmup, force=self.force, progress=self._loading,
                )  # fmt: skip
            except OutOfMemoryError as exc:
                if lanes:
                    return lanes, waiting[place:]
                self._fail(number, exc)
            except EngineCrashed as exc:
                self._fail(number, exc)
                for other in [n for n in lanes if self.rows[n].backend == row.backend]:
                    del lanes[other]  # they went with the worker
                    self._fail(other, exc)
            except LlamaMagicError as exc:
                self._fail(number, exc)
            else:
                lanes[number] = lane
                self.rows[number] = replace(row, facts=lane.facts, test_time=began)
                self.spent[number] = lane.facts.warmup_ns / 1e9
        return lanes, []

    def _take_turns(self, workers: SpeedWorkers, lanes: dict[int, Lane]) -> None:
        """Time every lane once a round, forwards and backwards in turn."""
        for turn in range(self.repetitions):
            for number in list(lanes) if turn % 2 == 0 else list(reversed(lanes)):
                if number not in lanes:
                    continue
                row = self.rows[number]
                self._tell(f"{row.test.name}, repetition {turn + 1} of {self.repetitions}", lanes, turn)
                began = time.perf_counter()
                try:
                    took = workers.time(lanes[number])
                except EngineCrashed as exc:
                    for other in [n for n in lanes if self.rows[n].backend == row.backend]:
                        del lanes[other]
                        self._fail(other, exc)
                except LlamaMagicError as exc:
                    del lanes[number]
                    self._fail(number, exc)
                else:
                    self.spent[number] = time.perf_counter() - began
                    self.rows[number] = replace(row, samples_ns=(*row.samples_ns, took))

    def _fail(self, number: int, error: LlamaMagicError) -> None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        self.failure = self.failure or error
        self.rows[number] = replace(self.rows[number], error=str(error).partition("\n")[0])

    def _loading(self, progress: Progress) -> None:
        if self.progress is not None:
            self.progress(replace(progress, partial=self._shown()))

    def _tell(self, words: str, lanes: dict[int, Lane] | None = None, turn: int = 0) -> None:
        if self.progress is None:
            return
        done = sum(len(row.samples_ns) for row in self.rows)
        wanted = self.repetitions * sum(not row.error for row in self.rows)
        if lanes and turn:
            left = sum(self.spent[n] * (self.repetitions - len(self.rows[n].samples_ns)) for n in lanes)
            words = f"{words} · {format_seconds(left)} left"
        self.progress(Progress("bench", done / max(wanted, 1), words, self._shown()))

    def _shown(self) -> BenchResult | None:
        return self._result() if any(row.samples_ns for row in self.rows) else None

    def _result(self, *, stopped: bool = False) -> BenchResult:
        seconds = time.perf_counter() - self.started
        return BenchResult(tuple(self.rows), self.repetitions, seconds, tuple(self.notes), stopped)

    def _stopped(self) -> JobInterrupted:
        done = sum(len(row.samples_ns) for row in self.rows)
        if not done:
            return JobInterrupted(None, "stopped before anything was measured.")
        return JobInterrupted(self._result(stopped=True), f"stopped; what {done} repetitions measured is kept.")
