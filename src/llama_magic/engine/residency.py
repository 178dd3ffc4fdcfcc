"""What may be in memory at once: what a model needs before it is loaded, and which one goes for it."""

from __future__ import annotations

from dataclasses import dataclass

from llama_magic.backends.host import available_memory, default_threads
from llama_magic.engine.fitting import MARGIN, accelerators, layers_that_fit
from llama_magic.errors import OutOfMemoryError
from llama_magic.models.dryrun import dry_run
from llama_magic.models.memory import MemoryNeed, default_n_ctx, estimate
from llama_magic.models.metadata import ModelMetadata
from llama_magic.models.options import ModelSpec
from llama_magic.native import Device, LogCapture
from llama_magic.native.placement import placement
from llama_magic.units import format_bytes

__all__ = ["LoadPlan", "check", "devices_used", "plan_load", "room"]

#: The fast estimate is enough where this many times as much is free; else llama.cpp lays the model out.
_CLEARLY = 1.25


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a load will take.

    Attributes
    ----------
    need
        Bytes of main memory.
    n_gpu_layers
        Layers to offload; None: as the options say.
    short
        The first accelerator with too little memory, and what it would have to hold.
    """

    need: MemoryNeed
    n_gpu_layers: int | None = None
    short: tuple[Device, int] | None = None


def plan_load(spec: ModelSpec, metadata: ModelMetadata, log: LogCapture, held: int) -> LoadPlan:
    """Work out what a model takes: by the fast estimate where that is clearly enough, else by llama.cpp's own count.

    Parameters
    ----------
    held
        Bytes that loaded models hold.
    """
    options = spec.options
    need = estimate(metadata, options)
    gpus = accelerators(options.devices)
    if not gpus:
        if need.total * _CLEARLY <= room(spec, held):
            return LoadPlan(need)
        layout = dry_run(spec.path, options, default_n_ctx(metadata, options), default_threads(), log)
        weights, cache, compute = layout.of("CPU")
        return LoadPlan(MemoryNeed(weights, cache, compute + layout.output, layout.host))
    n_ctx, threads = default_n_ctx(metadata, options), default_threads()
    layers: int | None = None
    if options.n_gpu_layers == "auto":
        layers = layers_that_fit(
            lambda count: dry_run(spec.path, options, n_ctx, threads, log, n_gpu_layers=count), gpus, MARGIN
        )
    layout = dry_run(spec.path, options, n_ctx, threads, log, n_gpu_layers=layers)
    weights, cache, compute = layout.of("CPU")
    over = [(device, sum(layout.of(device.name))) for device in gpus]
    short = next(((device, size) for device, size in over if size > device.memory_free), None)
    return LoadPlan(MemoryNeed(weights, cache, compute + layout.output, layout.host), layers, short)


def room(spec: ModelSpec, held: int, released: int = 0) -> int:
    """Return the bytes that a load may take: what is free, within the budget for all models together.

    Parameters
    ----------
    held
        Bytes that other models hold meanwhile.
    released
        Bytes that models give back before.
    """
    free = available_memory() + released
    budget = spec.options.memory_budget
    return free if budget is None else max(0, min(free, budget - held))


def check(spec: ModelSpec, metadata: ModelMetadata, plan: LoadPlan, free: int) -> None:
    """Raise `OutOfMemoryError`, with the numbers and what helps, where a model does not fit into `free` bytes."""
    if plan.short is not None:
        device, size = plan.short
        raise OutOfMemoryError(
            f"{spec.ref} needs {format_bytes(size)} on {device.name}, but {format_bytes(device.memory_free)} are free "
            "there. What helps: fewer layers (-ngl auto finds how many fit); a smaller context; a smaller "
            "quantization; --force to try all the same."
        )
    if plan.need.total > free:
        raise OutOfMemoryError(_refusal(spec, metadata, plan.need, free))


def _refusal(spec: ModelSpec, metadata: ModelMetadata, need: MemoryNeed, free: int) -> str:
    """Say what does not fit and what would: a smaller context, a quantized cache, a smaller quantization."""
    options = spec.options
    n_ctx = default_n_ctx(metadata, options)
    remedies = []
    for smaller in (n_ctx // 2, n_ctx // 4, 512):
        if estimate(metadata, options.replace(n_ctx=max(smaller, 1))).total <= free:
            remedies.append(f"a smaller context (-c {smaller})")
            break
    if options.cache_type_k == "f16":
        quantized = options.replace(cache_type_k="q8_0", cache_type_v="q8_0", flash_attn="auto")
        if estimate(metadata, quantized).total <= free:
            remedies.append("a quantized cache (-ctk q8_0 -ctv q8_0)")
    rest = free - need.kv_cache - need.compute - need.other
    if rest > 0 and metadata.n_params:
        bits = 8 * rest / metadata.n_params
        remedies.append(f"a quantization of at most {bits:.1f} bits per weight" if bits >= 1.5 else "a smaller model")
    else:
        remedies.append("a smaller model")
    remedies.append("--force to try all the same")
    budget = options.memory_budget
    limit = (
        "are free" if budget is None or free < budget else f"are left of the memory_budget of {format_bytes(budget)}"
    )
    return (
        f"{spec.ref} needs {format_bytes(need.total)} (weights {format_bytes(need.weights)}, cache for {n_ctx:,} "
        f"tokens {format_bytes(need.kv_cache)}, buffers {format_bytes(need.compute + need.other)}), "
        f"but {format_bytes(free)} {limit}. What helps: {'; '.join(remedies)}."
    )


def devices_used(log: LogCapture) -> tuple[str, ...]:
    """Return the devices that hold weights of the model that was loaded last, the one with most layers first."""
    return tuple(row.device for row in placement(log) if row.weights) or ("CPU",)
