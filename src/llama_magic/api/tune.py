"""Finding the fastest settings for a model on this machine, by short measured trials."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from llama_magic.api.locate import locate
from llama_magic.api.speed import Lane, SpeedWorkers, busy_note
from llama_magic.backends.host import cpu_quota, default_threads
from llama_magic.errors import (
    EngineCrashed,
    InvalidRequestError,
    JobInterrupted,
    LlamaMagicError,
    OutOfMemoryError,
)
from llama_magic.evaluation.bench import mean
from llama_magic.evaluation.speed_test import LaneFacts, SpeedTest
from llama_magic.evaluation.tune import Speedup, TuneCheck, TuneResult, TuneTrial, flags_of, speedup
from llama_magic.evaluation.tune_plan import Knob, TuneTest, TuneTests, knobs, size_tests
from llama_magic.evaluation.tuned import backend_label, forget_tuned, machine_name, store_tuned, with_companions
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.progress import Progress, Report
from llama_magic.units import format_seconds

__all__ = ["forget", "tune", "tune_spec"]

#: Stands for the options without any tuned setting.
_DEFAULTS: Mapping[str, Any] = MappingProxyType({})
_DROPPED = "dropped early"
#: Seconds after which no further setting is tried.
_BUDGET_S, _QUICK_S = 240.0, 75.0
#: What is slower than the best by this factor in the first rounds is not tried further.
_DROP = 1.15


def tune(
    ref: str | os.PathLike[str] = "smollm2",
    *,
    quick: bool = False,
    reset: bool = False,
    allow_kv_quant: bool = False,
    backends: Iterable[str] = (),
    progress: Report | None = None,
    **options: Any,
) -> TuneResult | None:
    """Find the settings with which a model is fastest on this machine, and keep them for `load`.

    Threads, batch sizes, flash attention, the type of the KV cache and, with an accelerator, the layers to offload are
    tried in turn, each in short trials whose repetitions take turns with what was best until then. What is faster
    beyond the noise is kept. At the end defaults and tuned settings are measured in turns once more, and only if that
    confirms the gain, and no test became slower, the settings are stored: per model file, machine and backends. From
    then on `load` and the magics use them wherever nothing else is said.

    Parameters
    ----------
    ref
        The model.
    quick
        Fewer candidates and repetitions: about a minute.
    reset
        Forget what was found for this model on this machine, and measure nothing; returns None.
    allow_kv_quant
        Try types of the KV cache that lose accuracy, too (q8_0, q4_0).
    backends
        Backends to compare first, for example ``("cpu", "blas")``; the fastest is part of the settings.
    progress
        Called with every `Progress`, whose `partial` is the result so far.
    **options
        Load options; what is given is fixed and not tuned.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, OutOfMemoryError, BackendError
    JobInterrupted
        It was stopped; the trials so far are its `result`, and nothing is stored.
    """
    spec = ModelSpec(locate(ref, progress), os.fspath(ref), LoadOptions.from_keywords(**options))
    if reset:
        forget(spec.path)
        return None
    return tune_spec(
        spec, said=options, quick=quick, allow_kv_quant=allow_kv_quant, backends=backends, progress=progress
    )


def forget(path: str) -> int:
    """Forget the tuned settings of a model file on this machine; returns how many there were."""
    return forget_tuned(path)


def tune_spec(
    spec: ModelSpec,
    *,
    said: Iterable[str] = (),
    quick: bool = False,
    allow_kv_quant: bool = False,
    backends: Iterable[str] = (),
    progress: Report | None = None,
) -> TuneResult:
    """Do what `tune` does, for a model with options; those named by `said` are fixed."""
    run = _Tuning(spec, set(said), quick=quick, kv_quant=allow_kv_quant, progress=progress)
    try:
        with SpeedWorkers() as workers:
            return run.run(workers, list(backends))
    except KeyboardInterrupt:  # GenerationInterrupted is one
        raise JobInterrupted(run.result(), "stopped; nothing is stored.") from None


class _Tuning:
    """One search: what is best so far, and what was tried."""

    def __init__(
        self, spec: ModelSpec, said: set[str], *, quick: bool, kv_quant: bool, progress: Report | None
    ) -> None:
        self.spec = spec
        self.said = with_companions(said)
        self.quick = quick
        self.kv_quant = kv_quant
        self.progress = progress
        self.started = time.perf_counter()
        self.rounds = 3 if quick else 5
        self.label = backend_label(spec.options)
        self.settings: dict[str, Any] = {}
        self.base: dict[str, Any] = {}
        self.trials: list[TuneTrial] = []
        self.checks: list[TuneCheck] = []
        self.gain: Speedup | None = None
        self.stored = ""
        self.notes: list[str] = []
        self.share = 0.0

    def run(self, workers: SpeedWorkers, backends: Sequence[str]) -> TuneResult:
        options = self.spec.options
        threads = options.n_threads or default_threads()
        self.base = {
            "n_threads": threads, "n_threads_batch": options.n_threads_batch or threads, "n_batch": options.n_batch,
            "n_ubatch": options.n_ubatch, "flash_attn": options.flash_attn, "cache_type_k": options.cache_type_k,
            "cache_type_v": options.cache_type_v,
        }  # fmt: skip
        self.tell("a first look")
        self.notes += filter(None, [busy_note()])
        tests, facts = self.first_look(workers)
        if facts.gpu_info:
            self.base["n_gpu_layers"] = options.n_gpu_layers
        if len(backends) > 1:
            if "backend" in self.said or self.label:
                raise InvalidRequestError("backends are compared where none is selected: leave out --backend")
            self.turn(workers, Knob("backend", tuple({"backend": name} for name in backends), tests.all))
        plan = knobs(tests, facts, self.base, _cpus(threads), quick=self.quick, kv_quant=self.kv_quant)
        plan = [knob for knob in plan if not self.said & set(knob.candidates[0])]
        budget = _QUICK_S if self.quick else _BUDGET_S
        for number, knob in enumerate(plan):
            if time.perf_counter() - self.started > budget:
                left = ", ".join(knob.name for knob in plan[number:])
                self.notes.append(f"not tried, since it had taken {format_seconds(budget)}: {left}")
                break
            self.share = (number + 1) / (len(plan) + 2)
            self.turn(workers, knob)
        if self.settings:
            self.share = 1 - 1 / (len(plan) + 2)
            self.check(workers, tests)
        return self.result()

    def first_look(self, workers: SpeedWorkers) -> tuple[TuneTests, LaneFacts]:
        """Measure roughly what the defaults reach, and size the tests after it."""
        n_ctx = min(self.spec.options.n_ctx or 4096, 4096)
        small = SpeedTest(n_prompt=64), SpeedTest(n_gen=8)
        lanes = [self.open(workers, {}, TuneTest("", test, "solo", 1.0)) for test in small]
        speeds = [1e9 * lane.test.n_tokens / workers.time(lane) for lane in lanes]
        workers.close()
        facts = lanes[0].facts
        return size_tests(speeds[0], speeds[1], n_ctx, gpu=bool(facts.gpu_info), quick=self.quick), facts

    # -- measuring -------------------------------------------------------------------------

    def open(self, workers: SpeedWorkers, changes: Mapping[str, Any], test: TuneTest) -> Lane:
        merged = {**self.settings, **changes} if changes is not _DEFAULTS else {}
        backend = merged.pop("backend", None)
        spec = replace(self.spec, options=self.spec.options.replace(**merged))
        return workers.open(
            spec, test.test, backend=backend or self.label or None, as_loaded=test.context, progress=self.loading
        )

    def measure(
        self,
        workers: SpeedWorkers,
        rows: Sequence[Mapping[str, Any]],
        tests: Sequence[TuneTest],
        rounds: int,
        what: str,
    ) -> tuple[list[list[list[int]]], dict[int, str]]:
        """Time all rows in turns; returns nanoseconds by row, test and round, and why rows failed.

        The first row is what the others are compared with. What is clearly slower is dropped after two rounds. Where
        memory does not hold all of them beside each other, each is opened anew for its turn.
        """
        times: list[list[list[int]]] = [[[] for _ in tests] for _ in rows]
        failed: dict[int, str] = {}
        lanes = self.open_all(workers, rows, tests, failed, what)
        for turn in range(rounds):
            order = [number for number in range(len(rows)) if number not in failed]
            for number in order if turn % 2 == 0 else reversed(order):
                self.tell(f"{what}: {self.words(rows[number])}, {turn + 1} of {rounds}")
                try:
                    opened = (
                        [self.open(workers, rows[number], test) for test in tests] if lanes is None else lanes[number]
                    )
                    for place, lane in enumerate(opened):
                        times[number][place].append(workers.time(lane))
                except LlamaMagicError as exc:
                    _refuse(number, exc, failed)
                    lanes = None if isinstance(exc, EngineCrashed) else lanes  # they went with the worker
                if lanes is None:
                    workers.close()
            if turn == 1 and rounds > 2:
                self.drop(times, tests, failed)
        workers.close()
        return times, failed

    def open_all(
        self,
        workers: SpeedWorkers,
        rows: Sequence[Mapping[str, Any]],
        tests: Sequence[TuneTest],
        failed: dict[int, str],
        what: str,
    ) -> dict[int, list[Lane]] | None:
        """Open the lanes of all rows; None where each has to be opened for its turn and closed again."""
        lanes: dict[int, list[Lane]] = {}
        for number, row in enumerate(rows):
            self.tell(f"{what}: preparing {self.words(row)}")
            try:
                lanes[number] = [self.open(workers, row, test) for test in tests]
            except (OutOfMemoryError, EngineCrashed) as exc:
                if isinstance(exc, EngineCrashed):
                    _refuse(number, exc, failed)
                workers.close()
                return None
            except LlamaMagicError as exc:
                _refuse(number, exc, failed)
        return lanes

    @staticmethod
    def words(row: Mapping[str, Any]) -> str:
        return flags_of(row) or ("the defaults" if row is _DEFAULTS else "what is best so far")

    @staticmethod
    def drop(times: list[list[list[int]]], tests: Sequence[TuneTest], failed: dict[int, str]) -> None:
        """Leave out what two rounds showed to be clearly slower than the best."""
        sums = {
            number: min(_weighted(row, tests)) for number, row in enumerate(times) if number not in failed and all(row)
        }
        best = min(sums.values())
        for number, value in sums.items():
            if number and value > _DROP * best:
                failed[number] = _DROPPED

    def turn(self, workers: SpeedWorkers, knob: Knob) -> None:
        """Try the candidates of one knob, and keep the best where it beats what was best until then."""
        candidates = [row for row in knob.candidates if any(self.now(name) != value for name, value in row.items())]
        if not candidates:
            return
        rows: list[Mapping[str, Any]] = [{}, *candidates]
        times, failed = self.measure(workers, rows, knob.tests, self.rounds, knob.name)
        before = _weighted(times[0], knob.tests)
        found: list[TuneTrial] = [self.trial(knob, {}, times[0], None, "what was best so far")]
        best: tuple[float, int] = (0.0, 0)
        for number in range(1, len(rows)):
            reason = failed.get(number, "")
            gain = None
            if any(times[number]) and not (reason and reason != _DROPPED):
                gain = speedup(before, _weighted(times[number], knob.tests))
                worse = [
                    test.test.name
                    for test, old, new in zip(knob.tests, times[0], times[number], strict=True)
                    if speedup(old, new).slower
                ]
                reason = reason or ("slower" if gain.slower else f"slower in {worse[0]}" if worse else "as fast")
                if gain.faster and reason == "as fast":
                    reason = "faster"
                    best = max(best, (gain.ratio, number))
            found.append(self.trial(knob, rows[number], times[number], gain, reason.partition("\n")[0]))
        if best[1]:
            found[best[1]] = self.confirm(workers, knob, rows[best[1]], found[best[1]])
            self.settings |= rows[best[1]] if found[best[1]].kept else {}
        self.trials += found

    def confirm(self, workers: SpeedWorkers, knob: Knob, row: Mapping[str, Any], trial: TuneTrial) -> TuneTrial:
        """Measure the best candidate once more: of several, one is easily ahead by chance."""
        times, failed = self.measure(workers, [{}, row], knob.tests, self.rounds, f"{knob.name}, once more")
        if failed:
            return replace(trial, verdict=failed[1])
        gain = speedup(_weighted(times[0], knob.tests), _weighted(times[1], knob.tests))
        return replace(trial, gain=gain, verdict="kept" if gain.faster else "not confirmed")

    def now(self, name: str) -> Any:
        """Return what a load option is at this point."""
        return self.settings.get(name, self.base.get(name))

    def trial(
        self, knob: Knob, row: Mapping[str, Any], times: list[list[int]], gain: Speedup | None, verdict: str
    ) -> TuneTrial:
        values = dict(row) or {name: self.now(name) for name in knob.candidates[0] if self.now(name) is not None}
        speeds = tuple(_speed(test, each) for test, each in zip(knob.tests, times, strict=True))
        return TuneTrial(knob.name, flags_of(values), tuple(t.test.name for t in knob.tests), speeds, gain, verdict)

    def check(self, workers: SpeedWorkers, tests: TuneTests) -> None:
        """Measure defaults and tuned settings in turns, and keep these only if that confirms them."""
        rounds = self.rounds + 2
        times, _ = self.measure(workers, [_DEFAULTS, {}], tests.all, rounds, "the last check")
        for place, test in enumerate(tests.all):
            old, new = times[0][place], times[1][place]
            self.checks.append(
                TuneCheck(test.what, test.test.name, _speed(test, old), _speed(test, new), speedup(old, new))
            )
        self.gain = speedup(_weighted(times[0], tests.all), _weighted(times[1], tests.all))
        slower = [check.test for check in self.checks if check.gain.slower]
        if not self.gain.faster or slower:
            why = f"{', '.join(slower)} became slower" if slower else "the last check did not confirm a gain"
            self.notes.append(f"{flags_of(self.settings)} looked faster, but {why}: the defaults stay")
            self.settings = {}
        forget_tuned(self.spec.path, self.label)
        if self.settings:
            self.settings = settings = _complete(self.settings, self.base)
            about = {"ref": self.spec.ref, "gain": round(self.gain.ratio, 4), "day": time.strftime("%Y-%m-%d")}
            self.stored = str(store_tuned(self.spec.path, self.label, settings, about))

    # -- telling ---------------------------------------------------------------------------

    def loading(self, progress: Progress) -> None:
        if self.progress is not None:
            self.progress(replace(progress, partial=self.result() if self.trials else None))

    def tell(self, words: str) -> None:
        if self.progress is not None:
            self.progress(Progress("tune", self.share, words, self.result() if self.trials else None))

    def result(self) -> TuneResult:
        return TuneResult(
            ref=self.spec.ref,
            path=self.spec.path,
            backend=self.label or "default",
            machine=machine_name(),
            defaults=flags_of(self.base),
            settings=dict(self.settings),
            trials=tuple(self.trials),
            checks=tuple(self.checks),
            gain=self.gain,
            stored=self.stored,
            seconds=time.perf_counter() - self.started,
            notes=tuple(self.notes),
        )


def _refuse(number: int, error: LlamaMagicError, failed: dict[int, str]) -> None:
    """Note why a row failed; the first one, which the others are compared with, must not."""
    if number == 0 or isinstance(error, KeyboardInterrupt):
        raise error
    failed[number] = str(error)


def _cpus(threads: int) -> int:
    """Return the hardware threads that may be used, within the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(threads, count if quota is None else min(count, math.ceil(quota)))


def _weighted(times: Sequence[Sequence[int]], tests: Sequence[TuneTest]) -> list[float]:
    """Return each round's nanoseconds, weighted to the use that the tests stand for."""
    return [
        sum(test.weight * value for test, value in zip(tests, values, strict=True))
        for values in zip(*times, strict=False)
    ]


def _speed(test: TuneTest, times: Sequence[int]) -> float:
    return mean([1e9 * test.test.n_tokens / value for value in times])


def _complete(settings: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the defaults; threads for prompts would follow the others if they were left out."""
    changed = {name: value for name, value in settings.items() if value != base.get(name)}
    if "n_threads" in changed:
        changed["n_threads_batch"] = settings.get("n_threads_batch", base["n_threads_batch"])
    return changed
