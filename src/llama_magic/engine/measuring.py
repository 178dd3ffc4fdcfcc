"""The worker that measures speed: models and lanes that stay between requests, so that repetitions can take turns.

A worker that measures does nothing else, and the kernel ends it when all is measured.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace

from llama_magic.backends.host import available_memory, default_threads
from llama_magic.engine.residency import check, devices_used, plan_load
from llama_magic.errors import EngineProtocolError, InvalidModelError, JobInterrupted, OutOfMemoryError
from llama_magic.evaluation.speed import SpeedLane, bench_settings
from llama_magic.evaluation.speed_test import (
    CloseLanesRequest,
    LaneFacts,
    OpenLaneRequest,
    TimeLaneRequest,
    model_options,
)
from llama_magic.models.gguf import read_metadata
from llama_magic.models.loading import chat_flash_attn, context_settings, model_settings
from llama_magic.models.memory import estimate
from llama_magic.models.options import LoadOptions
from llama_magic.native import ContextSettings, LoadCancelled, NativeModel, WorkerTools, library_info, list_devices
from llama_magic.native.heap import trim
from llama_magic.native.registry import registered
from llama_magic.progress import Progress
from llama_magic.units import format_bytes

__all__ = ["close_lanes", "open_lane", "time_lane"]


@dataclass(slots=True)
class _Loaded:
    model: NativeModel
    devices: tuple[str, ...]
    mapped: int


@dataclass(slots=True)
class _Bench:
    models: dict[tuple[str, LoadOptions], _Loaded] = field(default_factory=dict)
    lanes: dict[int, tuple[SpeedLane, tuple[str, LoadOptions]]] = field(default_factory=dict)


#: A buffer of weights that are used where the file is mapped, as llama.cpp logs it.
_MAPPED = re.compile(r"_Mapped model buffer size\s*=\s*([\d.]+) MiB")
#: What this worker holds.
_BENCH = _Bench()


def open_lane(request: OpenLaneRequest, tools: WorkerTools) -> LaneFacts:
    """Answer an `OpenLaneRequest`."""
    spec = request.spec
    options = spec.options.replace(n_ctx=request.test.n_ctx)
    if options.n_gpu_layers == "auto" and request.as_loaded is None:
        options = options.replace(n_gpu_layers="all")  # llama-bench's -1
    key = spec.path, model_options(options)
    loaded = _BENCH.models.get(key)
    if loaded is None:
        loaded = _load(request, options, tools)
        _BENCH.models[key] = loaded
    elif not request.force:
        _check_context(request, options)
    settings = _settings(request, options, loaded)
    try:
        lane = SpeedLane(loaded.model, request.test, settings, threadpool=request.as_loaded is None)
        _BENCH.lanes[request.lane] = (lane, key)
        warmup = lane.warm_up() if request.warmup else 0
    except BaseException:
        close_lanes(CloseLanesRequest((request.lane,)), tools)
        raise
    return replace(_facts(loaded, settings.n_threads), warmup_ns=warmup)


def time_lane(request: TimeLaneRequest, _tools: WorkerTools) -> int:
    """Answer a `TimeLaneRequest`."""
    found = _BENCH.lanes.get(request.lane)
    if found is None:
        raise EngineProtocolError(f"no lane {request.lane} is open")
    return found[0].repeat()


def close_lanes(request: CloseLanesRequest, _tools: WorkerTools) -> None:
    """Answer a `CloseLanesRequest`."""
    for lane in list(_BENCH.lanes) if request.lanes is None else request.lanes:
        if lane in _BENCH.lanes:
            _BENCH.lanes.pop(lane)[0].close()
    used = {key for _, key in _BENCH.lanes.values()}
    for key in [key for key in _BENCH.models if key not in used]:
        _BENCH.models.pop(key).model.close()
    trim()


def _settings(request: OpenLaneRequest, options: LoadOptions, loaded: _Loaded) -> ContextSettings:
    if request.as_loaded is None:
        return bench_settings(options, request.test, default_threads())
    flash = chat_flash_attn(options, loaded.devices) if request.as_loaded == "chat" else None
    return context_settings(options, request.test.n_ctx, default_threads(), flash_attn=flash)


def _check_memory(request: OpenLaneRequest, options: LoadOptions, tools: WorkerTools) -> int | None:
    """Raise `OutOfMemoryError` where it does not fit beside the rest; returns the layers to offload, None for all."""
    spec = replace(request.spec, options=options)
    metadata = read_metadata(spec.path)
    plan = plan_load(spec, metadata, tools.log, 0)
    check(spec, metadata, plan, available_memory() - _mapped())
    return plan.n_gpu_layers


def _check_context(request: OpenLaneRequest, options: LoadOptions) -> None:
    """Raise `OutOfMemoryError` where one more context of a loaded model does not fit."""
    metadata = read_metadata(request.spec.path)
    estimated = estimate(metadata, options)
    need, free = estimated.kv_cache + estimated.compute, available_memory() - _mapped()
    if need > free:
        raise OutOfMemoryError(
            f"{request.spec.ref} needs {format_bytes(need)} more for a context of {request.test.n_ctx:,} tokens, but "
            f"{format_bytes(max(free, 0))} are free. What helps: a smaller test or depth; --force to try all the same."
        )


def _mapped() -> int:
    """Return the bytes of loaded models that count as free although they are needed: pages of mapped files."""
    return sum(loaded.mapped for loaded in _BENCH.models.values())


def _load(request: OpenLaneRequest, options: LoadOptions, tools: WorkerTools) -> _Loaded:
    spec = request.spec
    layers = None if request.force else _check_memory(request, options, tools)

    told = 0.0

    def progress(fraction: float) -> bool:
        nonlocal told
        if time.perf_counter() - told > 0.1:
            told = time.perf_counter()
            tools.report(Progress("load", fraction, spec.ref))
        return not tools.cancelled()

    try:
        model = NativeModel(spec.path, tools.log, progress, model_settings(options, n_gpu_layers=layers))
    except LoadCancelled:
        raise JobInterrupted from None
    if not model.has_decoder:
        model.close()
        raise InvalidModelError(f"{spec.ref} only embeds texts: it does not generate, and can not be measured so")
    mapped = sum(float(found[1]) for _, line in tools.log.lines if (found := _MAPPED.search(line)))
    return _Loaded(model, devices_used(tools.log), int(mapped * 2**20))


def _facts(loaded: _Loaded, n_threads: int) -> LaneFacts:
    model, devices = loaded.model, list_devices()

    def described(*types: str) -> str:
        return ", ".join(device.description for device in devices if device.type in types)

    return LaneFacts(
        model_type=model.description,
        model_size=model.size,
        model_n_params=model.n_params,
        n_layer=model.n_layer + 1,
        n_threads=n_threads,
        devices=loaded.devices,
        cpu_info=described("cpu", "accelerator"),
        gpu_info=described("gpu", "igpu"),
        backends=_backends(),
        build_commit=library_info().commit,
    )


def _backends() -> str:
    """Name the backends as llama-bench does: all but the CPU's, RPC only where it has devices."""
    rows = registered()
    names = [row.name for row in rows if row.name not in ("CPU", "RPC")]
    names += ["RPC" for row in rows if row.name == "RPC" and row.devices]
    return ",".join(names) or "CPU"
