"""What a model and a context take, by llama.cpp's own count, also where nothing was allocated (`no_alloc`)."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llama_magic.native.context import NativeContext
from llama_magic.native.library import dll

__all__ = ["Buffers", "breakdown", "logged_buffers"]

#: `llama_get_memory_breakdown` (llama-ext.h). It gives a `std::map`, so its name in the library is the compiler's.
_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"

_LOGGED = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes in the buffers of one type: weights, KV cache (or recurrent state), and what is computed in.

    Attributes
    ----------
    name
        The buffer type, such as "CPU", "CPU_REPACK" or "CUDA0".
    device
        Name of the device they belong to; empty where none is told.
    is_host
        They lie in main memory, as the processor's own do.
    """

    name: str
    device: str
    is_host: bool
    weights: int
    kv_cache: int
    compute: int


class _Node(ctypes.Structure):
    """A node of libstdc++'s red-black tree (stl_tree.h) with the map's key and value behind it."""

    _fields_ = (
        ("color", ctypes.c_int),
        ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("buffer_type", ctypes.c_void_p),
        ("model", ctypes.c_size_t),
        ("context", ctypes.c_size_t),
        ("compute", ctypes.c_size_t),
    )


class _Map(ctypes.Structure):
    """libstdc++'s `std::map`: the comparison, the tree's header, and the number of nodes."""

    _fields_ = (
        ("compare", ctypes.c_size_t),
        ("color", ctypes.c_int),
        ("root", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("last", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
    )


def _bind(name: str, restype: Any) -> Any:
    function = getattr(dll, name)
    function.restype, function.argtypes = restype, [ctypes.c_void_p]
    return function


_name = _bind("ggml_backend_buft_name", ctypes.c_char_p)
_is_host = _bind("ggml_backend_buft_is_host", ctypes.c_bool)
_device = _bind("ggml_backend_buft_get_device", ctypes.c_void_p)
_device_name = _bind("ggml_backend_dev_name", ctypes.c_char_p)


def breakdown(context: NativeContext) -> tuple[Buffers, ...] | None:
    """Return what model and context take, buffer type by buffer type; None where this build can not be asked.

    The map is read where its layout is known: libstdc++'s on Linux. Its nodes are left to the process,
    some hundred bytes a call.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = dll[_SYMBOL]
    except AttributeError:
        return None
    function.restype, function.argtypes = _Map, [ctypes.c_void_p]
    found = function(context.handle)
    if not 0 < found.count < 256:
        return None
    rows = tuple(_walk(found.root, found.count))
    return rows if len(rows) == found.count else None


def _walk(address: int | None, most: int) -> Iterator[Buffers]:
    todo, seen = [address], 0
    while todo and seen <= most:
        here = todo.pop()
        if not here:
            continue
        seen += 1
        node = _Node.from_address(here)
        todo += [node.right, node.left]
        device = _device(node.buffer_type)
        yield Buffers(
            name=_name(node.buffer_type).decode(),
            device=_device_name(device).decode() if device else "",
            is_host=bool(_is_host(node.buffer_type)),
            weights=node.model,
            kv_cache=node.context,
            compute=node.compute,
        )


def logged_buffers(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return the bytes of each buffer type and kind ("model", "KV", "compute", "output") that llama.cpp logged."""
    found: dict[str, dict[str, int]] = {}
    for line in lines:
        match = _LOGGED.search(line)
        if match:
            kinds = found.setdefault(match[1], {})
            kinds[match[2]] = kinds.get(match[2], 0) + round(float(match[3]) * 2**20)
    return found
