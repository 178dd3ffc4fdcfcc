"""What to load and how: the part of a request that names a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.models import overrides
from llama_magic.models.overrides import Adapter, KeyValue, TensorPlace
from llama_magic.suggest import reject_unknown

__all__ = [
    "CACHE_TYPES",
    "FLASH_ATTENTION",
    "LAZY_MODES",
    "NUMA",
    "ROPE_SCALING",
    "SPLIT_MODES",
    "DeviceUse",
    "LoadOptions",
    "ModelInfo",
    "ModelSpec",
]

#: Types that llama.cpp takes for the KV cache (``-ctk``, ``-ctv``) and their ggml type numbers.
CACHE_TYPES: dict[str, int] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip

#: Values of ``-fa`` and their `llama_flash_attn_type`.
FLASH_ATTENTION: dict[str, int] = {"auto": -1, "off": 0, "on": 1}

#: Values of ``-sm``, ``--rope-scaling``, ``--numa`` and ``-lzm``, and their numbers (llama.h, ggml-cpu.h).
SPLIT_MODES: dict[str, int] = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
ROPE_SCALING: dict[str, int] = {"none": 0, "linear": 1, "yarn": 2}
NUMA: dict[str, int] = {"distribute": 1, "isolate": 2, "numactl": 3}
LAZY_MODES: dict[str, int] = {"off": 0, "auto": 1, "on": 2}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded; None leaves the choice to llama_magic.

    Attributes
    ----------
    n_ctx
        Tokens that the context holds. None: the model's own length, at most 4,096.
    n_batch, n_ubatch
        Most tokens submitted at once, and computed at once.
    n_gpu_layers
        Layers to keep on the accelerator: a number, "auto" or "all".
    n_threads, n_threads_batch
        Threads for generation and for prompt processing. None: what the container may use.
    flash_attn
        "auto", "on" or "off".
    cache_type_k, cache_type_v
        Types of the KV cache, from `CACHE_TYPES`.
    backend
        Names of the backends to run on, such as "blas" or "vulkan,rpc"; None: those that are selected.
    devices
        Names of ggml devices to use; empty means all.
    use_mmap, use_mlock, direct_io
        Map the file instead of reading it; keep it from being swapped out; read it past the system's cache.
    lazy_mode
        "on", "off" or "auto": leave rows of tensors that the architecture marks on the disk until they are needed.
    lora
        LoRA adapters as (path, scale) pairs. They change without loading the model again.
    override_tensor
        (pattern, buffer type) pairs: where tensors go whose names match a regular expression.
    cpu_moe, n_cpu_moe, n_cpu_ffn
        Keep all expert weights on the processor; those of the first layers; the dense FFN weights of the first layers.
    split_mode, tensor_split, main_gpu
        How several accelerators share the model ("none", "layer", "row" or "tensor"), in which shares, and which of
        them is the main one.
    offload_kqv, op_offload
        Keep the KV cache on the accelerator; let it compute with weights that lie in main memory.
    rope_scaling, rope_freq_base, rope_freq_scale
        RoPE scaling ("none", "linear", "yarn"), base frequency and frequency factor. None: the model's.
    yarn_orig_ctx, yarn_ext_factor, yarn_attn_factor, yarn_beta_slow, yarn_beta_fast
        YaRN's parameters. None: the model's.
    override_kv
        (key, value) pairs of metadata that take the place of the file's.
    swa_full
        Keep a cache of full length for layers that only look at a window: what the cache holds can then be used
        again after any cut. False saves memory, and processes more prompts from their start.
    check_tensors
        Look for values in the weights that are no numbers.
    repack
        Let llama.cpp keep weights in another order that its processor code is faster with.
    no_host
        Keep weights out of the accelerator's host buffers, which lets more of them be repacked.
    numa
        "distribute", "isolate" or "numactl", for machines with several memory nodes. It holds for the whole worker.
    memory_budget
        Bytes that all loaded models may take together, or a text such as "8G". None: what is free.
    """

    n_ctx: int | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    n_gpu_layers: int | str = "auto"
    n_threads: int | None = None
    n_threads_batch: int | None = None
    flash_attn: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    backend: str | None = None
    devices: tuple[str, ...] = ()
    use_mmap: bool = True
    use_mlock: bool = False
    direct_io: bool = False
    lazy_mode: str = "auto"
    lora: tuple[Adapter, ...] = ()
    override_tensor: tuple[TensorPlace, ...] = ()
    cpu_moe: bool = False
    n_cpu_moe: int = 0
    n_cpu_ffn: int = 0
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    offload_kqv: bool = True
    op_offload: bool = True
    rope_scaling: str | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None
    override_kv: tuple[KeyValue, ...] = ()
    swa_full: bool = True
    check_tensors: bool = False
    repack: bool = True
    no_host: bool = False
    numa: str | None = None
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        choices: dict[str, dict[str, int]] = {
            "cache_type_k": CACHE_TYPES, "cache_type_v": CACHE_TYPES, "flash_attn": FLASH_ATTENTION,
            "split_mode": SPLIT_MODES, "rope_scaling": ROPE_SCALING, "numa": NUMA, "lazy_mode": LAZY_MODES,
        }  # fmt: skip
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known and not (value is None and name in ("rope_scaling", "numa")):
                raise InvalidRequestError(f"{name} {value!r} is not one of {', '.join(known)}")
        layers = self.n_gpu_layers
        if isinstance(layers, str) and layers not in ("auto", "all"):
            raise InvalidRequestError(f'n_gpu_layers takes a number, "auto" or "all"; got {layers!r}')
        if self.cache_type_v.startswith(("q", "iq")) and self.flash_attn == "off":
            raise InvalidRequestError("a quantized V cache needs flash attention: leave out flash_attn='off'")
        if self.direct_io and self.use_mlock:
            raise InvalidRequestError("direct_io and use_mlock exclude each other: give one of them")

    def _check_numbers(self) -> None:
        least: dict[str, float] = {
            "n_ctx": 1, "n_threads": 1, "n_threads_batch": 1, "n_batch": 1, "n_ubatch": 1, "n_cpu_moe": 0,
            "n_cpu_ffn": 0, "main_gpu": 0, "yarn_orig_ctx": 0, "memory_budget": 1,
        }  # fmt: skip
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InvalidRequestError(f"{name} must be at least {smallest}; got {value}")
        for name in ("rope_freq_base", "rope_freq_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidRequestError(f"{name} must be above 0; got {value}")

    @classmethod
    def from_keywords(cls, **keywords: Any) -> LoadOptions:
        """Build options from user keywords; an unknown one raises `TypeError` with the nearest name."""
        reject_unknown(keywords, [f.name for f in fields(cls)], "load option")
        for name, read in _READERS.items():
            if name in keywords:
                keywords[name] = read(keywords[name])
        return cls(**keywords)

    @property
    def as_loaded(self) -> LoadOptions:
        """These options without those that load nothing again when they change."""
        if not self.lora and self.memory_budget is None and self.backend is None:
            return self
        return replace(self, lora=(), memory_budget=None, backend=None)

    def replace(self, **changes: Any) -> LoadOptions:
        """Return a copy with some options changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a plain dict."""
        return {name: getattr(self, name) for name in OPTION_NAMES}  # the values are plain already


#: The keys of `LoadOptions.to_dict`, in its order.
OPTION_NAMES = tuple(each.name for each in fields(LoadOptions))


def _words(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _shares(value: Any) -> tuple[float, ...]:
    try:
        return overrides.parse_tensor_split(value) if isinstance(value, str) else tuple(map(float, value or ()))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"tensor_split takes numbers, one for each device; got {value!r}") from error


def _amount(value: Any) -> Any:
    try:
        return overrides.parse_size(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InvalidRequestError(f"memory_budget takes {error}; got {value!r}") from error


#: What turns a person's values into those of the fields.
_READERS: dict[str, Callable[[Any], Any]] = {
    "devices": _words,
    "lora": overrides.adapters,
    "override_tensor": overrides.tensor_places,
    "override_kv": overrides.key_values,
    "tensor_split": _shares,
    "memory_budget": _amount,
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A resolved model: an existing file and how to load it. Hashable: it is the key of what is loaded.

    Attributes
    ----------
    path
        Absolute path of the GGUF file (of the first part, when split).
    ref
        What the user typed.
    options
        How to load it.
    """

    path: str
    ref: str
    options: LoadOptions = LoadOptions()

    @property
    def key(self) -> tuple[str, LoadOptions]:
        """What makes two specs the same loaded model."""
        return (self.path, self.options.as_loaded)


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What a device does for a loaded model, as llama.cpp reported it.

    Attributes
    ----------
    device, type
        As `Device` has them.
    layers
        Layers that it computes, the output layer included.
    weights
        Bytes of weights that it holds.
    """

    device: str
    type: str
    layers: int
    weights: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is, as the worker found it.

    Attributes
    ----------
    ref, path, name
        What was typed, the file, and a short name for people (the file's stem).
    architecture, description, ftype
        As llama.cpp reports them.
    n_params, size
        Parameters, and bytes of the tensors.
    n_ctx, n_ctx_train, n_vocab, n_layer, n_embd
        Tokens of context, tokens trained for, vocabulary entries, layers, embedding width.
    has_chat_template
        False for a base model: prompts are then completed, not answered.
    devices
        Names of the devices that hold the weights.
    uses
        What each device does for it; accelerators compute and hold nothing.
    n_threads, n_threads_batch
        Threads in use.
    sha256
        ``sha256:…`` of the file, or ``sha256-header:…`` of metadata and tensor table for large files.
    load_s
        Seconds the load took (0.0 when it was loaded already).
    memory
        Bytes the weights, KV cache and compute buffers were estimated to take.
    llama_cpp_python, llama_cpp_commit
        Versions of the binding and of the library under it.
    """

    ref: str
    path: str
    name: str
    architecture: str
    description: str
    ftype: str
    n_params: int
    size: int
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_layer: int
    n_embd: int
    has_chat_template: bool
    devices: tuple[str, ...]
    n_threads: int
    n_threads_batch: int
    sha256: str
    load_s: float
    memory: int
    llama_cpp_python: str
    llama_cpp_commit: str
    uses: tuple[DeviceUse, ...] = ()

    @property
    def place(self) -> str:
        """Where it computes, in words: "CPU", "CPU with BLAS", "RPC0", "CUDA0 20 of 31 layers, CPU"."""
        total = sum(use.layers for use in self.uses)
        rows = [use for use in self.uses if use.layers]
        if not rows:
            return ", ".join(self.devices) or "CPU"
        names = [use.device if use.layers == total else f"{use.device} {use.layers} of {total} layers" for use in rows]
        helpers = [use.device for use in self.uses if use.type == "accelerator"]
        if helpers and any(use.type == "cpu" for use in rows):
            names[-1] += f" with {' and '.join(helpers)}"
        return ", ".join(names)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self)
