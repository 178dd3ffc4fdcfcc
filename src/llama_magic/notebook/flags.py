"""The one table of flags: parser, help, tab completion and docs are all made from it.

Short flags mean what they mean in llama-cli (`common/arg.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_magic.inference.params import SAMPLERS, parse_samplers
from llama_magic.models.options import CACHE_TYPES, LAZY_MODES, NUMA, ROPE_SCALING, SPLIT_MODES
from llama_magic.models.overrides import (
    parse_adapters,
    parse_key_values,
    parse_scaled_adapters,
    parse_size,
    parse_tensor_places,
    parse_tensor_split,
)
from llama_magic.notebook.converters import (
    backend_names,
    choice,
    devices,
    hub_reference,
    identifier,
    integer,
    inverse,
    layers,
    load_mode,
    logit_bias,
    names_of,
    number,
    text_file,
    unescape,
)

__all__ = ["FLAGS", "FORMATS", "GROUPS", "OWN", "Flag", "by_name", "own_flag", "own_switch"]

FORMATS = ("markdown", "text", "html", "json", "code", "math")

#: Groups of flags and what stands above them in the help.
GROUPS: dict[str, str] = {
    "model": "Model",
    "loading": "Loading the model",
    "prompt": "Prompt",
    "chat": "Conversation",
    "compare": "Comparing",
    "sampling": "Sampling",
    "output": "Output",
}
#: The group of flags that one subcommand alone has.
OWN = "own"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Attributes
    ----------
    names
        All spellings, the shortest first.
    dest
        What it sets; for "loading" and "sampling" the name of the field.
    group
        A key of `GROUPS`.
    metavar
        What stands for its value in the help; empty for a switch.
    convert
        Turns the text into the value; raises `ValueError` whose message completes "-n takes …".
    help
        One line.
    const
        The value of a switch, or of a flag whose optional value is left out.
    optional
        The value may be left out.
    repeat
        May be given several times; the values are collected.
    joined
        The same for values that are tuples: they are put together.
    glued
        The value may follow the name without a space, as in ``-DNAME=VALUE``.
    complete
        What tab completion offers: "file", "model", "backend", "chat", "branch", "saved", "variable", or the words
        themselves.
    """

    names: tuple[str, ...]
    dest: str
    group: str
    metavar: str
    convert: Callable[[str], Any]
    help: str
    const: Any = True
    optional: bool = False
    repeat: bool = False
    joined: bool = False
    glued: bool = False
    complete: str | tuple[str, ...] = ""


_PENALTY_WINDOW = integer(-1, "a number of tokens, or -1 for the whole context")
_THREADS = integer(1, "a number of threads, 1 or more (-1: as many as this container may use)", {"-1": None, "0": None})
_SHARE = number("a number between 0 and 1", 0, 1)
_ANY = number("a number")
_ZERO_UP = number("a number, 0 or more", 0)
_MIROSTAT = integer(0, "0, 1 or 2", most=2)
_SAMPLES = integer(1, "a number between 1 and 64", most=64)
_LOGPROBS = integer(0, "a number between 0 and 100", most=100)
_COUNT = integer(1, "a number of tokens, 1 or more")
_CONTEXT = integer(0, "a number of tokens, 1 or more (0: as long as the model was trained for)")
_LENGTH = integer(1, "1 or more tokens, or -1 for no limit", {"-1": -1, "-2": -1})
_SEED = integer(0, "a number between 0 and 4294967294, or -1 to draw one", {"-1": None}, most=0xFFFFFFFE)
_WHEN = choice(
    "on", "off", "auto", **{"1": "on", "true": "on", "enabled": "on", "0": "off", "false": "off", "disabled": "off"}
)
_TARGET = number("a number between 0 and 1, or -1 for off", -1, 1)
_KV = choice(*CACHE_TYPES)
_LAYERS = integer(0, "a number of layers, 0 or more")
_ABOVE_ZERO = number("a number above 0", 5e-324)
_CACHE = tuple(CACHE_TYPES)


def by_name() -> dict[str, Flag]:
    """Return the flags under each of their spellings."""
    return {name: flag for flag in FLAGS for name in flag.names}


def own_flag(names: str, dest: str, metavar: str, convert: Callable[[str], Any], text: str, **more: Any) -> Flag:
    """Return a flag of one subcommand only (`Parser.own`); `names` are separated by spaces."""
    return Flag(tuple(names.split()), dest, OWN, metavar, convert, text, **more)


def own_switch(names: str, dest: str, text: str, const: Any = True) -> Flag:
    """Return a switch of one subcommand only (`Parser.own`)."""
    return Flag(tuple(names.split()), dest, OWN, "", str, text, const)


def _flag(
    names: str, dest: str, group: str, metavar: str, convert: Callable[[str], Any], text: str, **more: Any
) -> Flag:
    return Flag(tuple(names.split()), dest, group, metavar, convert, text, **more)


def _switch(names: str, dest: str, group: str, text: str, const: Any = True) -> Flag:
    return Flag(tuple(names.split()), dest, group, "", str, text, const)


# fmt: off
FLAGS: tuple[Flag, ...] = (
    # model
    _flag("-m --model", "ref", "model", "REF", str,
          "model: a GGUF file, hf:owner/repo[:quant], an alias, or smollm2", complete="model"),
    _flag("-hf -hfr --hf-repo", "ref", "model", "REPO", hub_reference,
          "model from the Hugging Face Hub, owner/repo[:quant]"),
    _switch("--force", "force", "model", "load it even if it seems not to fit into memory"),
    # loading
    _flag("-c --ctx-size", "n_ctx", "loading", "N", _CONTEXT, "tokens that the context holds"),
    _flag("-t --threads", "n_threads", "loading", "N", _THREADS, "threads for generating"),
    _flag("-tb --threads-batch", "n_threads_batch", "loading", "N", _THREADS, "threads for processing prompts"),
    _flag("-b --batch-size", "n_batch", "loading", "N", _COUNT, "most tokens submitted at once"),
    _flag("-ub --ubatch-size", "n_ubatch", "loading", "N", _COUNT, "most tokens computed at once"),
    _flag("-ngl --gpu-layers --n-gpu-layers", "n_gpu_layers", "loading", "N", layers,
          "layers on the accelerator: a number, auto or all", complete=("auto", "all")),
    _flag("--backend", "backend", "loading", "NAMES", backend_names,
          "backends to run on, separated by commas: cpu, blas, vulkan, …", complete="backend"),
    _flag("-dev --device", "devices", "loading", "NAMES", devices,
          "devices to use, separated by commas; none: only the CPU"),
    _flag("-fa --flash-attn", "flash_attn", "loading", "WHEN", _WHEN,
          "flash attention: on, off or auto", complete=("on", "off", "auto")),
    _flag("-ctk --cache-type-k", "cache_type_k", "loading", "TYPE", _KV,
          "type of the KV cache's keys", complete=_CACHE),
    _flag("-ctv --cache-type-v", "cache_type_v", "loading", "TYPE", _KV,
          "type of the KV cache's values", complete=_CACHE),
    _flag("-lm --load-mode", "load_mode", "loading", "MODE", load_mode,
          "auto, none, mmap, mlock, mmap+mlock or dio",
          complete=("auto", "none", "mmap", "mlock", "mmap+mlock", "dio")),
    _flag("-lzm --lazy-mode", "lazy_mode", "loading", "WHEN", choice(*LAZY_MODES),
          "leave marked tensors on the disk until needed: on, off or auto", complete=tuple(LAZY_MODES)),
    _flag("--lora", "lora", "loading", "FILE[:SCALE]", parse_adapters,
          "LoRA adapter; changing it loads nothing again", joined=True, complete="file"),
    _flag("--lora-scaled", "lora", "loading", "FILE:SCALE", parse_scaled_adapters,
          "LoRA adapter with a scale", joined=True, complete="file"),
    _flag("-ot --override-tensor", "override_tensor", "loading", "PATTERN=BUFFER", parse_tensor_places,
          "where tensors go whose names match a regular expression", joined=True),
    _switch("-cmoe --cpu-moe", "cpu_moe", "loading", "keep the weights of all experts on the CPU"),
    _flag("-ncmoe --n-cpu-moe", "n_cpu_moe", "loading", "N", _LAYERS,
          "keep the experts of the first N layers on the CPU"),
    _flag("-ncffn --n-cpu-ffn", "n_cpu_ffn", "loading", "N", _LAYERS,
          "keep the dense FFN weights of the first N layers on the CPU"),
    _flag("-sm --split-mode", "split_mode", "loading", "MODE", choice(*SPLIT_MODES),
          "how accelerators share the model: none, layer, row or tensor", complete=tuple(SPLIT_MODES)),
    _flag("-ts --tensor-split", "tensor_split", "loading", "N0,N1", parse_tensor_split,
          "share of the model for each accelerator, for example 3,1"),
    _flag("-mg --main-gpu", "main_gpu", "loading", "N", integer(0, "the number of a device, 0 or more"),
          "the main accelerator"),
    _switch("-kvo --kv-offload", "offload_kqv", "loading", "keep the KV cache on the accelerator (the default)"),
    _switch("-nkvo --no-kv-offload", "offload_kqv", "loading", "keep the KV cache in main memory", const=False),
    _switch("--op-offload", "op_offload", "loading",
            "let the accelerator compute with weights in main memory (the default)"),
    _switch("--no-op-offload", "op_offload", "loading", "compute with weights in main memory on the CPU", const=False),
    _flag("--rope-scaling", "rope_scaling", "loading", "METHOD", choice(*ROPE_SCALING),
          "RoPE scaling: none, linear or yarn", complete=tuple(ROPE_SCALING)),
    _flag("--rope-scale", "rope_freq_scale", "loading", "X", inverse, "expand the context by this factor"),
    _flag("--rope-freq-base", "rope_freq_base", "loading", "X", _ABOVE_ZERO, "RoPE base frequency"),
    _flag("--rope-freq-scale", "rope_freq_scale", "loading", "X", _ABOVE_ZERO, "expand the context by 1/X"),
    _flag("--yarn-orig-ctx", "yarn_orig_ctx", "loading", "N", integer(0, "a number of tokens, 0 or more"),
          "YaRN: context the model was trained for"),
    _flag("--yarn-ext-factor", "yarn_ext_factor", "loading", "X", _ANY, "YaRN: extrapolation mix; 0 interpolates"),
    _flag("--yarn-attn-factor", "yarn_attn_factor", "loading", "X", _ANY, "YaRN: scale of the attention"),
    _flag("--yarn-beta-slow", "yarn_beta_slow", "loading", "X", _ANY, "YaRN: high correction dimension"),
    _flag("--yarn-beta-fast", "yarn_beta_fast", "loading", "X", _ANY, "YaRN: low correction dimension"),
    _flag("--override-kv", "override_kv", "loading", "KEY=TYPE:VALUE", parse_key_values,
          "metadata in place of the file's; TYPE is int, float, bool or str", joined=True),
    _switch("--swa-full", "swa_full", "loading", "keep a full cache for layers with a window (the default here)"),
    _switch("--no-swa-full", "swa_full", "loading",
            "keep only the window: less memory, more prompts processed again", const=False),
    _switch("--check-tensors", "check_tensors", "loading", "look for invalid values in the weights"),
    _switch("--repack", "repack", "loading", "let llama.cpp put weights in a faster order (the default)"),
    _switch("-nr --no-repack", "repack", "loading", "leave weights in the order of the file", const=False),
    _switch("--no-host", "no_host", "loading", "keep weights out of the accelerator's host buffers"),
    _flag("--numa", "numa", "loading", "TYPE", choice(*NUMA),
          "threads on several memory nodes: distribute, isolate or numactl", complete=tuple(NUMA)),
    _flag("--memory-budget", "memory_budget", "loading", "SIZE", parse_size,
          "most memory for all loaded models together, for example 8G"),
    _switch("--no-mmap", "use_mmap", "loading", "read the file instead of mapping it", const=False),
    _switch("--mlock", "use_mlock", "loading", "keep the model from being swapped out"),
    # prompt
    _flag("-p --prompt", "prompt", "prompt", "TEXT", str, r"prompt on the line; \n is a line end, as in llama-cli"),
    _flag("-f --file", "file", "prompt", "FILE", text_file,
          "prompt from a file; a cell's body comes after it", complete="file"),
    _flag("-sys --system --system-prompt", "system", "prompt", "TEXT", str, "system prompt"),
    _flag("-sysf --system-prompt-file", "system", "prompt", "FILE", text_file,
          "system prompt from a file", complete="file"),
    _switch("-no-cnv --no-conversation --complete", "complete", "prompt",
          "continue the text as it is, without the chat template"),
    _switch("--raw", "raw", "prompt", "leave every {name} as typed"),
    # conversation
    _switch("-cnv --conversation", "chat", "chat", "make the cell a turn of the current conversation", const=""),
    _flag("--chat", "chat", "chat", "NAME", str,
          "make the cell a turn of the conversation NAME", const="", optional=True, complete="chat"),
    _switch("--new", "new", "chat", "start the conversation over with this cell"),
    # comparing
    _flag("--compare", "compare", "compare", "LEVELS", names_of,
          "let quantization levels of the model answer side by side, for example Q8_0,Q4_0,Q2_K", joined=True,
          complete="ftype"),
    # sampling
    _flag("-n --predict --n-predict --max-tokens", "max_tokens", "sampling", "N", _LENGTH, "most tokens to generate"),
    _flag("-s --seed", "seed", "sampling", "N", _SEED, "seed; the same seed gives the same text"),
    _flag("--temp --temperature", "temperature", "sampling", "X", _ZERO_UP,
          "temperature; 0 always takes the likeliest token"),
    _flag("--dynatemp-range", "dynatemp_range", "sampling", "X", _ZERO_UP,
          "range of the dynamic temperature; 0 is off"),
    _flag("--dynatemp-exp", "dynatemp_exponent", "sampling", "X", _ANY, "exponent of the dynamic temperature"),
    _flag("--top-k", "top_k", "sampling", "N", integer(0, "a number, 0 or more (0 is off)"),
          "keep the N likeliest tokens; 0 is off"),
    _flag("--top-p", "top_p", "sampling", "X", _SHARE, "keep the likeliest tokens that make up X; 1 is off"),
    _flag("--min-p", "min_p", "sampling", "X", _SHARE,
          "keep tokens at least X times as likely as the likeliest; 0 is off"),
    _flag("--typical --typical-p", "typical_p", "sampling", "X", _SHARE, "locally typical sampling; 1 is off"),
    _flag("--top-nsigma --top-n-sigma", "top_n_sigma", "sampling", "X", _ANY,
          "keep logits within X standard deviations of the best; -1 is off"),
    _flag("--xtc-probability", "xtc_probability", "sampling", "X", _SHARE,
          "chance that XTC removes the top choices; 0 is off"),
    _flag("--xtc-threshold", "xtc_threshold", "sampling", "X", _SHARE, "least probability of what XTC may remove"),
    _flag("--repeat-penalty", "repeat_penalty", "sampling", "X", number("a number above 0 (1.0 is off)", 5e-324),
          "penalty on repeated tokens; 1 is off"),
    _flag("--repeat-last-n", "repeat_last_n", "sampling", "N", _PENALTY_WINDOW, "how far back the penalties look"),
    _flag("--presence-penalty", "presence_penalty", "sampling", "X", _ANY, "penalty on tokens that occurred; 0 is off"),
    _flag("--frequency-penalty", "frequency_penalty", "sampling", "X", _ANY,
          "penalty for each time a token occurred; 0 is off"),
    _flag("--dry-multiplier", "dry_multiplier", "sampling", "X", _ZERO_UP, "strength of the DRY penalty; 0 is off"),
    _flag("--dry-base", "dry_base", "sampling", "X", _ANY, "base of the DRY penalty"),
    _flag("--dry-allowed-length", "dry_allowed_length", "sampling", "N", integer(0, "a number of tokens, 0 or more"),
          "repetition that DRY allows"),
    _flag("--dry-penalty-last-n", "dry_penalty_last_n", "sampling", "N", _PENALTY_WINDOW, "how far back DRY looks"),
    _flag("--dry-sequence-breaker", "dry_sequence_breakers", "sampling", "TEXT", unescape,
          "text that ends a DRY sequence; none for no breakers", repeat=True),
    _flag("--adaptive-target", "adaptive_target", "sampling", "X", _TARGET,
          "probability that adaptive-p aims at"),
    _flag("--adaptive-decay", "adaptive_decay", "sampling", "X", number("a number between 0 and 0.99", 0, 0.99),
          "how slowly adaptive-p adapts"),
    _flag("--mirostat", "mirostat", "sampling", "N", _MIROSTAT, "Mirostat: 0 (off), 1 or 2", complete=("0", "1", "2")),
    _flag("--mirostat-lr", "mirostat_eta", "sampling", "X", _ANY, "Mirostat's learning rate, eta"),
    _flag("--mirostat-ent", "mirostat_tau", "sampling", "X", _ANY, "Mirostat's target entropy, tau"),
    _flag("--samplers", "samplers", "sampling", "NAMES", parse_samplers,
          "samplers in order, separated by ; or ,", complete=tuple(SAMPLERS)),
    _flag("--sampler-seq --sampling-seq", "samplers", "sampling", "LETTERS", parse_samplers,
          "samplers in order as letters, for example edskypmxt"),
    _flag("-l --logit-bias", "logit_bias", "sampling", "TOKEN+BIAS", logit_bias,
          "change a token's logit, for example 15043-1", repeat=True),
    _switch("--ignore-eos", "ignore_eos", "sampling", "go on after the model's end token"),
    _flag("-r --reverse-prompt --stop", "stop", "sampling", "TEXT", unescape, "end the text before TEXT", repeat=True),
    _flag("--grammar", "grammar", "sampling", "GBNF", str, "grammar that the text must match"),
    _flag("--grammar-file", "grammar", "sampling", "FILE", text_file, "grammar from a file", complete="file"),
    _flag("-j --json-schema --schema", "schema", "sampling", "SCHEMA", str,
          "JSON schema that the answer must match: JSON, a file, a dict or a pydantic model", complete="variable"),
    _flag("-jf --json-schema-file", "schema", "sampling", "FILE", Path, "JSON schema from a file", complete="file"),
    _flag("--samples", "samples", "sampling", "K", _SAMPLES, "decode K answers side by side"),
    _flag("--logprobs", "logprobs", "sampling", "N", _LOGPROBS, "show N alternatives for each token"),
    # output
    _flag("--format", "format", "output", "FORMAT", choice(*FORMATS),
          "markdown, text, html, json, code or math", complete=FORMATS),
    _flag("--out", "out", "output", "NAME", identifier,
          "put the completion into the variable NAME", complete="variable"),
    _flag("-o --output --output-file", "file_out", "output", "FILE", str, "write the text to a file", complete="file"),
    _switch("--no-stream", "stream", "output", "show the answer when it is finished", const=False),
)
# fmt: on
