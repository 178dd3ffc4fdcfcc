"""ggml's devices: what hardware the loaded library can use."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.native.library import dll, initialize
from llama_magic.suggest import did_you_mean

__all__ = ["Device", "device_array", "device_handles", "list_devices", "read_device"]

#: ggml_backend_dev_type
_TYPES = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator", 4: "meta"}


@dataclass(frozen=True, slots=True)
class Device:
    """A device of ggml: its name, kind, and bytes of memory (0 where it does not tell)."""

    name: str
    description: str
    type: str
    memory_free: int
    memory_total: int


def _function(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(dll, name)
    function.restype = restype
    function.argtypes = list(argtypes)
    return function


_count = _function("ggml_backend_dev_count", ctypes.c_size_t)
_get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_name = _function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
_description = _function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
_type = _function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
_memory = _function(
    "ggml_backend_dev_memory", None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)


def list_devices() -> list[Device]:
    """Return every device of the loaded backends."""
    initialize()
    return [read_device(_get(index)) for index in range(_count())]


def read_device(handle: int) -> Device:
    """Return what a device says of itself."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _memory(handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name=_name(handle).decode(),
        description=_description(handle).decode("utf-8", "replace"),
        type=_TYPES.get(_type(handle), "other"),
        memory_free=free.value,
        memory_total=total.value,
    )


def device_array(names: Sequence[str]) -> ctypes.Array[ctypes.c_void_p]:
    """Return the NULL-terminated device list that `llama_model_params.devices` takes.

    The CPU is always used and never part of that list: ``["CPU"]`` gives an empty one.
    """
    chosen = device_handles([name for name in names if name.lower() not in ("cpu", "none")])
    return (ctypes.c_void_p * (len(chosen) + 1))(*chosen, None)


def device_handles(names: Sequence[str]) -> list[int]:
    """Return the handles of devices; `InvalidRequestError` where there is no such device."""
    initialize()
    known = {_name(_get(index)).decode(): _get(index) for index in range(_count())}
    handles = {name.lower(): handle for name, handle in known.items()}
    for name in names:
        if name.lower() not in handles:
            raise InvalidRequestError(
                f"there is no device {name!r}; there is {', '.join(known)}.{did_you_mean(name, known)} "
                "%llama backends lists what could give more"
            )
    return [handles[name.lower()] for name in names]
