"""How llama.cpp loads a model: settings in plain values, and the structures they become."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.native.devices import device_array
from llama_magic.native.library import dll, initialize, lib
from llama_magic.suggest import did_you_mean

__all__ = ["ModelSettings", "buffer_types", "device_buffer_types", "init_numa", "load_mode", "model_params"]

#: Tensors of experts and of dense feed-forward layers (llama.cpp, common/common.h).
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_DENSE = r"\.ffn_(up|down|gate)\."

#: `GGML_BACKEND_DEVICE_TYPE_ACCEL`.
_ACCELERATOR = 3

#: `llama_load_mode`: automatic, none, mmap, mlock, mmap and mlock, direct I/O.
_AUTO, _NONE, _MLOCK, _MMAP_MLOCK, _DIRECT = -1, 0, 2, 3, 4


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a model is loaded.

    Attributes
    ----------
    n_gpu_layers
        Layers to offload; negative for all.
    devices
        Names of the devices to offload to; None for all there are.
    use_mmap, use_mlock, direct_io
        Map the file instead of reading it; keep it from being swapped out; read it past the system's cache.
    lazy_mode, split_mode
        A `llama_lazy_mode`; a `llama_split_mode`.
    tensor_split, main_gpu
        Shares of the devices, and the main one among them.
    tensor_places
        (pattern, buffer type) pairs.
    cpu_moe, n_cpu_moe, n_cpu_ffn
        Keep the weights of experts on the processor: all, or those of the first layers; the same for dense layers.
    kv_overrides
        (key, value) pairs of metadata.
    check_tensors, repack, no_host
        Look for invalid values; let weights be repacked; keep weights out of host buffers.
    vocab_only
        Load no weights.
    no_alloc
        Load no weights either, but tell what they would take: for `NativeContext.breakdown`.
    """

    n_gpu_layers: int = -1
    devices: tuple[str, ...] | None = None
    use_mmap: bool = True
    use_mlock: bool = False
    direct_io: bool = False
    lazy_mode: int = 1
    split_mode: int = 1
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    tensor_places: tuple[tuple[str, str], ...] = ()
    cpu_moe: bool = False
    n_cpu_moe: int = 0
    n_cpu_ffn: int = 0
    kv_overrides: tuple[tuple[str, int | float | bool | str], ...] = ()
    check_tensors: bool = False
    repack: bool = True
    no_host: bool = False
    vocab_only: bool = False
    no_alloc: bool = False


def model_params(settings: ModelSettings) -> tuple[Any, list[Any]]:
    """Return `llama_model_params`, and what must live as long as they are used.

    Raises
    ------
    InvalidRequestError
        A device or a buffer type is not there.
    """
    initialize()
    params = lib.llama_model_default_params()
    keep: list[Any] = []
    params.n_gpu_layers = settings.n_gpu_layers
    params.load_mode = load_mode(settings)
    params.lazy_mode = settings.lazy_mode
    params.split_mode = settings.split_mode
    params.main_gpu = settings.main_gpu
    params.check_tensors = settings.check_tensors
    params.use_extra_bufts = settings.repack
    params.no_host = settings.no_host
    params.vocab_only = settings.vocab_only
    params.no_alloc = settings.no_alloc
    if settings.devices is not None:
        params.devices = _hold(keep, device_array(settings.devices))
    if settings.tensor_split:
        shares = _tensor_split(settings.tensor_split)
        params.tensor_split = shares
        keep.append(shares)
    places = _places(settings)
    if places:
        params.tensor_buft_overrides = _hold(keep, _place_array(places, keep))
    if settings.kv_overrides:
        overrides = _override_array(settings.kv_overrides)
        params.kv_overrides = overrides
        keep.append(overrides)
    return params, keep


def _hold(keep: list[Any], array: Any) -> Any:
    keep.append(array)
    return ctypes.cast(array, ctypes.c_void_p)


def load_mode(settings: ModelSettings) -> int:
    """Return the `llama_load_mode`. A dry run maps nothing, as in llama.cpp's own (common/fit.cpp)."""
    if settings.no_alloc:
        return _NONE
    if settings.direct_io:
        return _DIRECT
    modes = {(True, False): _AUTO, (True, True): _MMAP_MLOCK, (False, False): _NONE, (False, True): _MLOCK}
    return modes[settings.use_mmap, settings.use_mlock]


def _tensor_split(shares: Sequence[float]) -> Any:
    most = lib.llama_max_devices()
    if len(shares) >= most:
        raise InvalidRequestError(f"tensor_split names {len(shares)} devices; this build has room for {most - 1}")
    return (ctypes.c_float * most)(*shares)


# where tensors go


class _Place(ctypes.Structure):
    """`llama_model_tensor_buft_override`."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def _bind(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(dll, name)
    function.restype = restype
    function.argtypes = list(argtypes)
    return function


_device_count = _bind("ggml_backend_dev_count", ctypes.c_size_t)
_device = _bind("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_device_buffer_type = _bind("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)
_buffer_type_name = _bind("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
_device_type = _bind("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
_device_name = _bind("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
_cpu_buffer_type = _bind("ggml_backend_cpu_buffer_type", ctypes.c_void_p)


def buffer_types() -> dict[str, int]:
    """Return the buffer types that tensors can be put into, by name."""
    initialize()
    found = {}
    for index in range(_device_count()):
        handle = _device_buffer_type(_device(index))
        if handle:
            found[_buffer_type_name(handle).decode()] = int(handle)
    return found


def device_buffer_types() -> dict[str, str]:
    """Return the device of each buffer type that belongs to one; an RPC host's is named after its address."""
    initialize()
    found: dict[str, str] = {}
    for index in range(_device_count()):
        device = _device(index)
        handle = _device_buffer_type(device)
        if handle and _device_type(device) != _ACCELERATOR:  # BLAS calls the CPU's buffers its own
            found[_buffer_type_name(handle).decode()] = _device_name(device).decode()
    return found


def _places(settings: ModelSettings) -> list[tuple[str, int]]:
    """Return pattern and buffer type of each override; the first that matches a tensor's name holds."""
    known = buffer_types() if settings.tensor_places else {}
    places = []
    for pattern, name in settings.tensor_places:
        if name not in known:
            raise InvalidRequestError(
                f"there is no buffer type {name!r} (-ot); this build has {', '.join(known)}.{did_you_mean(name, known)}"
            )
        places.append((pattern, known[name]))
    cpu = int(_cpu_buffer_type())
    if settings.cpu_moe:
        places.append((_EXPERTS, cpu))
    for count, tensors in ((settings.n_cpu_moe, _EXPERTS), (settings.n_cpu_ffn, _DENSE)):
        places += [(rf"blk\.{layer}{tensors}", cpu) for layer in range(count)]
    return places[: lib.llama_max_tensor_buft_overrides() - 1]


def _place_array(places: Sequence[tuple[str, int]], keep: list[Any]) -> Any:
    patterns = [ctypes.create_string_buffer(pattern.encode()) for pattern, _ in places]
    keep.extend(patterns)
    array = (_Place * (len(places) + 1))()
    for item, text, (_, buffer_type) in zip(array, patterns, places, strict=False):
        item.pattern = ctypes.cast(text, ctypes.c_char_p)
        item.buft = buffer_type
    return array


# metadata


def _override_array(pairs: Sequence[tuple[str, int | float | bool | str]]) -> Any:
    array = (lib.llama_model_kv_override * (len(pairs) + 1))()  # an empty key ends it
    for item, (key, value) in zip(array, pairs, strict=False):
        item.key = key.encode()
        if isinstance(value, bool):
            item.tag, item.value.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            item.tag, item.value.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
        elif isinstance(value, float):
            item.tag, item.value.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        else:
            item.tag, item.value.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    return array


_numa: list[int] = []


def init_numa(strategy: int) -> None:
    """Let ggml spread its threads over memory nodes; 0 for not. It can be chosen once per process.

    Raises
    ------
    InvalidRequestError
        Another strategy is in force already.
    """
    if _numa and _numa[0] != strategy and strategy:
        raise InvalidRequestError("numa is chosen once, by the first model that asks for it: restart the kernel first")
    if strategy and not _numa:
        initialize()
        _numa.append(strategy)
        lib.llama_numa_init(strategy)
