"""From load options to what the native layer takes: for the worker only."""

from __future__ import annotations

from llama_magic.models.options import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    LAZY_MODES,
    NUMA,
    ROPE_SCALING,
    SPLIT_MODES,
    LoadOptions,
)
from llama_magic.native import ContextSettings
from llama_magic.native.loading import ModelSettings

__all__ = ["SOLO_SEQUENCES", "chat_flash_attn", "context_settings", "model_settings", "numa_strategy"]

#: Sequences of the context for cells that stand alone, and of the one that conversations share (inference/runtime.py).
SOLO_SEQUENCES = 4


def model_settings(options: LoadOptions, *, n_gpu_layers: int | None = None) -> ModelSettings:
    """Return how to load a model; `n_gpu_layers` takes the place of the option's."""
    layers = options.n_gpu_layers if isinstance(options.n_gpu_layers, int) else -1
    return ModelSettings(
        n_gpu_layers=layers if n_gpu_layers is None else n_gpu_layers,
        devices=options.devices or None,
        use_mmap=options.use_mmap,
        use_mlock=options.use_mlock,
        direct_io=options.direct_io,
        lazy_mode=LAZY_MODES[options.lazy_mode],
        split_mode=SPLIT_MODES[options.split_mode],
        tensor_split=options.tensor_split,
        main_gpu=options.main_gpu,
        tensor_places=options.override_tensor,
        cpu_moe=options.cpu_moe,
        n_cpu_moe=options.n_cpu_moe,
        n_cpu_ffn=options.n_cpu_ffn,
        kv_overrides=options.override_kv,
        check_tensors=options.check_tensors,
        repack=options.repack,
        no_host=options.no_host,
    )


def context_settings(
    options: LoadOptions, n_ctx: int, threads: int, *, n_seq_max: int = 1, flash_attn: int | None = None
) -> ContextSettings:
    """Return the sizes and choices of a context of `n_ctx` tokens; `threads` where the options name none."""
    n_threads = options.n_threads or threads
    return ContextSettings(
        n_ctx=n_ctx,
        n_seq_max=n_seq_max,
        n_threads=n_threads,
        n_threads_batch=options.n_threads_batch or n_threads,
        n_batch=min(options.n_batch, n_ctx),
        n_ubatch=min(options.n_ubatch, n_ctx),
        flash_attn=FLASH_ATTENTION[options.flash_attn] if flash_attn is None else flash_attn,
        cache_type_k=CACHE_TYPES[options.cache_type_k],
        cache_type_v=CACHE_TYPES[options.cache_type_v],
        offload_kqv=options.offload_kqv,
        op_offload=options.op_offload,
        swa_full=options.swa_full,
        rope_scaling=-1 if options.rope_scaling is None else ROPE_SCALING[options.rope_scaling],
        rope_freq_base=options.rope_freq_base or 0.0,
        rope_freq_scale=options.rope_freq_scale or 0.0,
        yarn_orig_ctx=options.yarn_orig_ctx or 0,
        yarn_ext_factor=_or_model(options.yarn_ext_factor),
        yarn_attn_factor=_or_model(options.yarn_attn_factor),
        yarn_beta_slow=_or_model(options.yarn_beta_slow),
        yarn_beta_fast=_or_model(options.yarn_beta_fast),
    )


def _or_model(value: float | None) -> float:
    return -1.0 if value is None else value


def chat_flash_attn(options: LoadOptions, devices: tuple[str, ...]) -> int | None:
    """Return the flash attention of conversations: off on a processor when nothing else was asked for.

    There it is faster for short contexts, and slower for long ones: with it, a follow-up of 20
    tokens after 1,500 took 1.7 times as long on two cores. Conversations grow long; cells that
    stand alone seldom do.
    """
    free_to_choose = options.flash_attn == "auto" and options.cache_type_v in ("f16", "f32", "bf16")
    return FLASH_ATTENTION["off"] if free_to_choose and devices == ("CPU",) else None


def numa_strategy(options: LoadOptions) -> int:
    """Return the `ggml_numa_strategy`."""
    return 0 if options.numa is None else NUMA[options.numa]
