"""Measure levels in one worker: load them, let them answer, time them in turns, and evaluate them in lock step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from llama_magic.backends.host import default_threads
from llama_magic.errors import LlamaMagicError
from llama_magic.evaluation.comparison import Rate
from llama_magic.evaluation.levels import CompareRequest, LevelUpdate, QuantizationLevel, SpeedRuns
from llama_magic.evaluation.race import race
from llama_magic.evaluation.reading import check_texts, read
from llama_magic.evaluation.speed import SpeedLane, bench_settings
from llama_magic.evaluation.speed_test import SpeedTest
from llama_magic.models.loading import context_settings, model_settings
from llama_magic.native import LoadCancelled, NativeContext, NativeModel, library_info, list_devices
from llama_magic.native.breakdown import breakdown
from llama_magic.native.heap import trim
from llama_magic.native.tools import WorkerTools

__all__ = ["run"]


@dataclass(slots=True)
class _Entrant:
    """A level with its model in memory."""

    level: QuantizationLevel
    model: NativeModel


def run(request: CompareRequest, tools: WorkerTools) -> dict[str, Any]:
    """Measure all levels, and return what is common to them. What becomes known of each is told as it is found.

    A level that can not be loaded is told with its reason; the others go on.
    """
    entrants: list[_Entrant] = []
    try:
        for level in request.levels:
            if tools.cancelled():
                break
            model = _load(level, request, tools)
            if model is not None:
                entrants.append(_Entrant(level, model))
        facts: dict[str, Any] = {"machine": _machine(request)}
        if not entrants:
            return facts
        check_texts(request, entrants[0].model)
        base = request.levels[0].name if request.has_base else ""
        new = [one for one in entrants if not (request.base_known and one.level.name == base)]
        if request.prompt is not None and not tools.cancelled():
            race([(one.level.name, one.model) for one in new], request, tools)
        if request.speed is not None and not tools.cancelled():
            _time(new, request, request.speed, tools)
    finally:
        for entrant in entrants:
            entrant.model.close()
    trim()
    if not tools.cancelled():
        facts |= read(request, tuple(entrant.level for entrant in entrants), tools)
    return facts


def _machine(request: CompareRequest) -> dict[str, Any]:
    devices = [device for device in list_devices() if device.type != "cpu"]
    processor = next((device.description for device in list_devices() if device.type == "cpu"), "")
    speed = {} if request.speed is None else {"n_prompt": request.speed.n_prompt, "n_gen": request.speed.n_gen}
    return {
        "processor": processor,
        "threads": request.options.n_threads or default_threads(),
        "devices": ", ".join(f"{device.name} ({device.description})" for device in devices),
        "llama.cpp": library_info().commit,
        **speed,
    }


# -- loading ----------------------------------------------------------------------------------------------------------


def _load(level: QuantizationLevel, request: CompareRequest, tools: WorkerTools) -> NativeModel | None:
    """Load a level, compute once with it, and tell how long that took and what it holds."""

    def progress(_fraction: float) -> bool:
        return not tools.cancelled()

    tools.report(LevelUpdate("load", None, f"loading {level.name}", level=level.name))
    trim()
    before = _resident()
    started = time.perf_counter()
    try:
        model = NativeModel(level.path, tools.log, progress, model_settings(request.options))
    except LoadCancelled:
        return None
    except LlamaMagicError as error:
        tools.report(LevelUpdate("load", level=level.name, values={"error": str(error)}))
        return None
    try:
        threads = request.options.n_threads or default_threads()
        context = NativeContext(model, context_settings(request.options, max(request.n_ctx, 64), threads))
        load_s = time.perf_counter() - started
        try:
            context.prefill([max(model.bos, 0)] * 2, 0, 0, logits=True)
            memory = max(0, _resident() - before) + _elsewhere(context)
            where = _where(context)
        finally:
            context.close()
    except LlamaMagicError as error:
        model.close()
        tools.report(LevelUpdate("load", level=level.name, values={"error": str(error)}))
        return None
    values = {"load_s": load_s, "memory": memory, "where": where}
    tools.report(LevelUpdate("load", None, f"{level.name} is loaded", level=level.name, values=values))
    return model


def _resident() -> int:
    """Return the bytes of main memory that this process holds, pages of mapped files included."""
    return int(psutil.Process().memory_info().rss)


def _elsewhere(context: NativeContext) -> int:
    """Return the bytes that model and context hold on other devices."""
    buffers = breakdown(context) or ()
    return sum(one.weights + one.kv_cache + one.compute for one in buffers if not one.is_host)


def _where(context: NativeContext) -> str:
    buffers = breakdown(context) or ()
    names = dict.fromkeys(one.device for one in buffers if one.device and one.weights)
    return ", ".join(names) or "CPU"


# -- speed ------------------------------------------------------------------------------------------------------------


def _time(entrants: list[_Entrant], request: CompareRequest, speed: SpeedRuns, tools: WorkerTools) -> None:
    """Time all levels in turns: what slows the machine down for a while slows all of them down."""
    tests = {
        "prompt": SpeedTest(n_prompt=speed.n_prompt) if speed.n_prompt else None,
        "generation": SpeedTest(n_gen=speed.n_gen) if speed.n_gen else None,
    }
    wanted = [(kind, test) for kind, test in tests.items() if test is not None]
    for number, (kind, test) in enumerate(wanted):
        threads = request.options.n_threads or default_threads()
        lanes: dict[str, SpeedLane] = {}
        try:
            for entrant in entrants:
                if tools.cancelled():
                    return
                with _noted(entrant.level.name, tools):
                    lane = SpeedLane(entrant.model, test, bench_settings(request.options, test, threads))
                    lanes[entrant.level.name] = lane
                    lane.warm_up()
            _rounds(lanes, kind, speed.runs, (number / len(wanted), 1 / len(wanted)), tools)
        finally:
            for lane in lanes.values():
                lane.close()


def _rounds(lanes: dict[str, SpeedLane], kind: str, count: int, share: tuple[float, float], tools: WorkerTools) -> None:
    """Run every lane once a round, in the other direction every second round; what is known is told after each run."""
    runs: dict[str, list[float]] = {name: [] for name in lanes}
    done, total = 0, count * len(lanes)
    for number in range(count):
        for name in list(runs) if number % 2 == 0 else list(reversed(runs)):
            if tools.cancelled():
                return
            lane = lanes[name]
            at = share[0] + share[1] * done / total
            words = f"{name}: {lane.test.name}, run {number + 1} of {count}"
            tools.report(LevelUpdate("speed", at, words, level=name))
            with _noted(name, tools):
                runs[name].append(lane.test.n_tokens * 1e9 / lane.repeat())
                values = {kind: Rate.of(tuple(runs[name]))}
                tools.report(LevelUpdate("speed", at, words, level=name, values=values))
            done += 1


@contextlib.contextmanager
def _noted(name: str, tools: WorkerTools) -> Iterator[None]:
    """Let a failure of one level become a note of it."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except LlamaMagicError as error:
        tools.report(LevelUpdate("speed", level=name, values={"notes": (f"speed was not measured: {error}",)}))
