"""Subcommands that measure speed, and find the settings that are fastest."""

from __future__ import annotations

from llama_magic.models.options import CACHE_TYPES
from llama_magic.notebook.converters import choice, integer, layers, numbers, several
from llama_magic.notebook.flags import own_flag, own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.measure"
_WHEN = choice(
    "on", "off", "auto", **{"1": "on", "true": "on", "enabled": "on", "0": "off", "false": "off", "disabled": "off"}
)
_FORMATS = ("md", "csv", "json")
_REPETITIONS = integer(1, "a number of repetitions, 1 or more")


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``-pg 512,128``; several pairs with a slash between them, or the flag several times."""
    found = []
    for part in text.split("/"):
        values = part.split(",")
        if len(values) != 2 or not all(value.strip().isdecimal() for value in values):
            raise ValueError("two numbers of tokens: prompt,generated")
        found.append((int(values[0]), int(values[1])))
    return tuple(found)


def _devices(text: str) -> tuple[tuple[str, ...], ...]:
    """Read ``-dev CUDA0/CUDA1,CUDA0``: commas between what is compared, slashes between devices used together."""
    found = [tuple(name.strip() for name in part.split("/") if name.strip()) for part in text.split(",")]
    if not all(found):
        raise ValueError("names of devices; a/b uses both, a,b compares them (see %llama devices)")
    return tuple(() if names == ("auto",) else ("CPU",) if names == ("none",) else names for names in found)


def _backends(text: str) -> tuple[str, ...]:
    """Read ``--backends cpu,blas``: commas between what is compared, slashes between backends used together."""
    found = tuple(part.strip().replace("/", ",") for part in text.split(","))
    if not all(found):
        raise ValueError("names of backends; a/b uses both, a,b compares them (see %llama backends)")
    return found


_SINGLE = (
    "out load_mode lazy_mode override_tensor cpu_moe n_cpu_ffn split_mode tensor_split main_gpu offload_kqv op_offload "
    "check_tensors repack no_host numa use_mmap use_mlock rope_scaling rope_freq_base rope_freq_scale override_kv force"
).split()

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("bench", "bench [REF …] [--backends a,b] [-p N] [-n N] [-d N] [-pg P,G] [-r N] [flags]",
           "measure tokens per second as llama-bench does; lists of values give a row each",
           only=("ref", *_SINGLE), words=99, complete="model",
           own=(
               own_flag("-p --n-prompt", "n_prompt", "N,…", numbers,
                        "tokens of a prompt to process (512); 0: no such test", joined=True),
               own_flag("-n --n-gen", "n_gen", "N,…", numbers,
                        "tokens to generate (128); 0: no such test", joined=True),
               own_flag("-pg", "pg", "P,G", _pairs,
                        "process P tokens and generate G then; may be repeated", joined=True),
               own_flag("-d --n-depth", "n_depth", "N,…", numbers, "tokens in the cache before (0)", joined=True),
               own_flag("-r --repetitions", "repetitions", "N", _REPETITIONS, "time each test N times (5)"),
               own_flag("--backends --backend", "backends", "NAMES", _backends,
                        "compare backends: cpu,blas,vulkan; a/b uses both together", joined=True),
               own_flag("-dev --device", "devices", "NAMES", _devices,
                        "compare devices: a,b; a/b uses both together; none: only the CPU", joined=True),
               own_flag("-t --threads", "n_threads", "N,…", numbers, "threads", joined=True),
               own_flag("-b --batch-size", "n_batch", "N,…", numbers,
                        "most tokens submitted at once (2048)", joined=True),
               own_flag("-ub --ubatch-size", "n_ubatch", "N,…", numbers, "most tokens computed at once (512)",
                        joined=True),
               own_flag("-ngl --gpu-layers --n-gpu-layers", "n_gpu_layers", "N,…", several(layers),
                        "layers on the accelerator (all)", joined=True),
               own_flag("-ncmoe --n-cpu-moe", "n_cpu_moe", "N,…", numbers,
                        "keep the experts of the first N layers on the CPU", joined=True),
               own_flag("-fa --flash-attn", "flash_attn", "WHEN,…", several(_WHEN), "flash attention: on, off or auto",
                        joined=True, complete=("on", "off", "auto", "on,off")),
               own_flag("-ctk --cache-type-k", "cache_type_k", "TYPE,…", several(choice(*CACHE_TYPES)),
                        "types of the KV cache's keys", joined=True, complete=tuple(CACHE_TYPES)),
               own_flag("-ctv --cache-type-v", "cache_type_v", "TYPE,…", several(choice(*CACHE_TYPES)),
                        "types of the KV cache's values", joined=True, complete=tuple(CACHE_TYPES)),
               own_switch("--no-warmup", "warmup", "time from the first run on", const=False),
               own_flag("--format -o --output", "format", "FORMAT", choice(*_FORMATS),
                        "md, csv or json, as llama-bench prints them", complete=_FORMATS),
           ),
           examples=("%llama bench", "%llama bench smollm2 -t 1,2 -fa on,off -r 3",
                     "%llama bench model-Q4_K_M.gguf model-Q8_0.gguf --backends cpu,blas",
                     "%llama bench smollm2 -p 0 -n 64 -d 0,1024 --format md"),
           run=f"{_HERE}:bench"),
    Parser("tune", "tune [REF] [--quick] [--reset] [flags]",
           "find the settings with which a model is fastest on this machine; load uses them from then on",
           ("loading",), only=("ref", "out"), words=1, complete="model",
           own=(
               own_switch("--quick", "quick", "fewer candidates and repetitions: about a minute"),
               own_switch("--reset", "reset", "forget what was found for this model on this machine"),
               own_switch("--allow-kv-quant", "allow_kv_quant",
                          "try types of the KV cache that lose accuracy, too (q8_0, q4_0)"),
               own_flag("--backends", "backends", "NAMES", _backends,
                        "compare backends first: cpu,blas,vulkan; a/b uses both together", joined=True),
           ),
           examples=("%llama tune smollm2", "%llama tune smollm2 --quick -c 2048", "%llama tune smollm2 --reset"),
           run=f"{_HERE}:tune"),
)
# fmt: on
