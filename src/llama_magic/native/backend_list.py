"""ggml's registry: the backends that are loaded."""

from __future__ import annotations

import ctypes
from typing import Any

from llama_magic.native.library import dll, initialize

__all__ = ["backend_names"]


def _function(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(dll, name)
    function.restype = restype
    function.argtypes = list(argtypes)
    return function


_count = _function("ggml_backend_reg_count", ctypes.c_size_t)
_get = _function("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
_name = _function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
_devices = _function("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p)


def backend_names() -> list[tuple[str, int]]:
    """Return name and number of devices of each backend that is loaded."""
    initialize()
    handles = [_get(index) for index in range(_count())]
    return [(_name(handle).decode(), int(_devices(handle))) for handle in handles]
