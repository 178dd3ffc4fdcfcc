"""What to load and how: the part of a request that names a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.suggest import reject_unknown

__all__ = ["CACHE_TYPES", "FLASH_ATTENTION", "LoadOptions", "ModelInfo", "ModelSpec"]

#: Types that llama.cpp takes for the KV cache (``-ctk``, ``-ctv``) and their ggml type numbers.
CACHE_TYPES: dict[str, int] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip

#: Values of ``-fa`` and their `llama_flash_attn_type`.
FLASH_ATTENTION: dict[str, int] = {"auto": -1, "off": 0, "on": 1}


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
    devices
        Names of ggml devices to use; empty means all.
    use_mmap, use_mlock
        Map the file instead of reading it; keep it from being swapped out.
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
    devices: tuple[str, ...] = ()
    use_mmap: bool = True
    use_mlock: bool = False

    def __post_init__(self) -> None:
        for name in ("n_ctx", "n_threads", "n_threads_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequestError(f"{name} must be at least 1; got {value}")
        for name in ("n_batch", "n_ubatch"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("cache_type_k", "cache_type_v"):
            value = getattr(self, name)
            if value not in CACHE_TYPES:
                raise InvalidRequestError(f"{name} {value!r} is not one of {', '.join(CACHE_TYPES)}")
        if self.flash_attn not in FLASH_ATTENTION:
            raise InvalidRequestError(f"flash_attn {self.flash_attn!r} is not one of {', '.join(FLASH_ATTENTION)}")
        layers = self.n_gpu_layers
        if isinstance(layers, str) and layers not in ("auto", "all"):
            raise InvalidRequestError(f'n_gpu_layers takes a number, "auto" or "all"; got {layers!r}')
        if self.cache_type_v.startswith(("q", "iq")) and self.flash_attn == "off":
            raise InvalidRequestError("a quantized V cache needs flash attention: leave out flash_attn='off'")

    @classmethod
    def from_keywords(cls, **keywords: Any) -> LoadOptions:
        """Build options from user keywords; an unknown one raises `TypeError` with the nearest name."""
        reject_unknown(keywords, [f.name for f in fields(cls)], "load option")
        if "devices" in keywords:
            keywords["devices"] = tuple(keywords["devices"] or ())
        return cls(**keywords)

    def replace(self, **changes: Any) -> LoadOptions:
        """Return a copy with some options changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a plain dict."""
        return asdict(self)


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
        return (self.path, self.options)


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

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return asdict(self)
