"""The `llama-cli` line that does the same as a request made here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from llama_magic.inference.params import DEFAULT_SAMPLERS, SamplingParams
from llama_magic.inference.results import Message
from llama_magic.models.options import LoadOptions
from llama_magic.models.overrides import format_adapter, format_key_value

__all__ = ["llama_cli_line"]

#: Flags written in every line, since a GGUF file may carry its own defaults for them.
_ALWAYS: dict[str, str] = {
    "max_tokens": "-n", "seed": "-s", "temperature": "--temp", "top_k": "--top-k", "top_p": "--top-p",
    "min_p": "--min-p",
}  # fmt: skip

#: Flags written where the value is not llama.cpp's default.
_CHANGED: dict[str, str] = {
    "typical_p": "--typical", "top_n_sigma": "--top-nsigma", "xtc_probability": "--xtc-probability",
    "xtc_threshold": "--xtc-threshold", "repeat_penalty": "--repeat-penalty", "repeat_last_n": "--repeat-last-n",
    "presence_penalty": "--presence-penalty", "frequency_penalty": "--frequency-penalty",
    "dry_multiplier": "--dry-multiplier", "dry_base": "--dry-base", "dry_allowed_length": "--dry-allowed-length",
    "dry_penalty_last_n": "--dry-penalty-last-n", "adaptive_target": "--adaptive-target",
    "adaptive_decay": "--adaptive-decay", "dynatemp_range": "--dynatemp-range",
    "dynatemp_exponent": "--dynatemp-exp", "mirostat": "--mirostat", "mirostat_tau": "--mirostat-ent",
    "mirostat_eta": "--mirostat-lr", "grammar": "--grammar", "schema": "--json-schema",
}  # fmt: skip

_LOADING: dict[str, str] = {
    "n_ctx": "-c", "n_threads": "-t", "n_threads_batch": "-tb", "n_batch": "-b", "n_ubatch": "-ub",
    "n_gpu_layers": "-ngl", "flash_attn": "-fa", "cache_type_k": "-ctk", "cache_type_v": "-ctv", "lazy_mode": "-lzm",
    "n_cpu_moe": "-ncmoe", "n_cpu_ffn": "-ncffn", "split_mode": "-sm", "main_gpu": "-mg",
    "rope_scaling": "--rope-scaling", "rope_freq_base": "--rope-freq-base", "rope_freq_scale": "--rope-freq-scale",
    "yarn_orig_ctx": "--yarn-orig-ctx", "yarn_ext_factor": "--yarn-ext-factor",
    "yarn_attn_factor": "--yarn-attn-factor", "yarn_beta_slow": "--yarn-beta-slow",
    "yarn_beta_fast": "--yarn-beta-fast", "numa": "--numa",
}  # fmt: skip

#: Switches, by option and the value that they stand for.
_SWITCHES: dict[tuple[str, bool], str] = {
    ("cpu_moe", True): "-cmoe", ("offload_kqv", False): "-nkvo", ("op_offload", False): "--no-op-offload",
    ("check_tensors", True): "--check-tensors", ("repack", False): "--no-repack", ("no_host", True): "--no-host",
}  # fmt: skip


def llama_cli_line(
    options: LoadOptions,
    params: SamplingParams,
    *,
    path: str,
    prompt: str | None = None,
    messages: Sequence[Message] = (),
    rpc: Sequence[str] = (),
) -> str:
    """Return a shell-quoted command that asks llama.cpp's own tool the same.

    A chat becomes `llama-cli`, a prompt to continue `llama-completion`. What these tools can
    not be told (earlier turns, several samples, a bias on text instead of a token id) is named
    in a comment at the end.

    Parameters
    ----------
    options, params
        Those in force: with the context, threads and seed that were really used.
    path
        The GGUF file.
    prompt, messages
        As in `GenerateRequest`: one of them.
    rpc
        RPC hosts as ``host:port``.
    """
    words = ["llama-cli" if prompt is None else "llama-completion", "-m", path]
    if rpc:
        words += ["--rpc", ",".join(rpc)]
    comments: list[str] = []
    words += _loading(options)
    words += _sampling(params, options, comments)
    if prompt is None:
        words += _chat(messages, comments)
    else:
        words += ["-no-cnv", "--no-display-prompt", "--no-escape", "-p", prompt]
    if params.samples > 1:
        comments.append(f"one of {params.samples} samples")
    return shlex.join(words) + (f"  # {'; '.join(comments)}" if comments else "")


def _loading(options: LoadOptions) -> list[str]:
    default = LoadOptions()
    words: list[str] = []
    for name, flag in _LOADING.items():
        value = getattr(options, name)
        if value is not None and value != getattr(default, name):
            words += [flag, str(value)]
    words += [flag for (name, value), flag in _SWITCHES.items() if getattr(options, name) == value]
    if options.devices:
        words += ["-dev", ",".join(options.devices)]
    if options.tensor_split:
        words += ["-ts", ",".join(f"{share:g}" for share in options.tensor_split)]
    if options.override_tensor:
        words += ["-ot", ",".join(f"{pattern}={buffer}" for pattern, buffer in options.override_tensor)]
    for pair in options.override_kv:
        words += ["--override-kv", format_key_value(pair)]
    for adapter in options.lora:
        words += ["--lora-scaled", format_adapter(adapter)]
    mode = "+".join(word for word, on in (("mmap", options.use_mmap), ("mlock", options.use_mlock)) if on) or "none"
    mode = "dio" if options.direct_io else mode
    return words if mode == "mmap" else [*words, "-lm", mode]


def _sampling(params: SamplingParams, options: LoadOptions, comments: list[str]) -> list[str]:
    default = SamplingParams()
    words: list[str] = []
    for name, flag in (_ALWAYS | _CHANGED).items():
        value = getattr(params, name)
        if value is None or (name in _CHANGED and value == getattr(default, name)):
            continue
        if name in ("repeat_last_n", "dry_penalty_last_n") and value == -1:
            # The tools refuse -1; the context is as long as the window can get.
            value = options.n_ctx or default.repeat_last_n
        words += [flag, _number(value)]
    if params.samplers != DEFAULT_SAMPLERS:
        words += ["--samplers", ";".join(params.samplers)]
    if params.dry_sequence_breakers != default.dry_sequence_breakers:
        for breaker in params.dry_sequence_breakers or ("none",):
            words += ["--dry-sequence-breaker", breaker]
    for text in params.stop:
        words += ["-r", text]
    for token, bias in params.logit_bias:
        if isinstance(token, int):
            words += ["--logit-bias", f"{token}{'-' if bias < 0 else '+'}{_number(abs(bias))}"]
        else:
            comments.append(f"and {_number(bias)} on the logit of {_one_line(token)}")
    return [*words, "--ignore-eos"] if params.ignore_eos else words


def _chat(messages: Sequence[Message], comments: list[str]) -> list[str]:
    words = ["-st", "--no-escape"]
    system = next((message.content for message in messages if message.role == "system"), "")
    asked = [message.content for message in messages if message.role == "user"]
    if system:
        words += ["-sys", system]
    if len(asked) > 1:
        comments.append(f"after {len(asked) - 1} earlier turn{'' if len(asked) == 2 else 's'} of the conversation")
    return [*words, "-p", asked[-1] if asked else ""]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "inf" if math.isinf(value) else f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _one_line(text: str) -> str:
    return ascii(text)
