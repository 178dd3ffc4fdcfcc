"""Headers by llama.cpp's own GGUF functions: their size before a file is written, and what a written one holds."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama_magic.errors import InvalidModelError, NativeError
from llama_magic.native.library import dll
from llama_magic.native.quantize import KvOverride

__all__ = ["header_sizes", "stored_types"]

_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
#: Enough for a `ggml_tensor` with its object header (368 bytes in this version).
_TENSOR_ROOM = 1024

#: Name and shape of a tensor.
Outline = tuple[str, Sequence[int]]


class _InitParams(ctypes.Structure):
    """``struct gguf_init_params`` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class _MemoryParams(ctypes.Structure):
    """``struct ggml_init_params`` of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _bind(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    # A prototype of its own: attributes of `dll`'s functions are shared with other users of them.
    try:
        return ctypes.CFUNCTYPE(result, *arguments)((name, dll))
    except AttributeError:
        raise NativeError(f"this llama-cpp-python has no {name}; install a version that llama_magic knows") from None


def header_sizes(source: str, parts: Sequence[Sequence[Outline]], overrides: Sequence[KvOverride]) -> list[int]:
    """Return the bytes before the tensor data of each new file.

    Parameters
    ----------
    source
        Where the metadata come from; the first part of a split model.
    parts
        Tensors of each new file; one entry where it is not kept split.
    overrides
        What is set in the new metadata, the keys of importance matrices included.
    """
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    number, unsigned = ctypes.c_int64, ctypes.c_uint32
    set_u32 = _bind("gguf_set_val_u32", None, pointer, text, unsigned)
    set_u16 = _bind("gguf_set_val_u16", None, pointer, text, ctypes.c_uint16)
    set_i32 = _bind("gguf_set_val_i32", None, pointer, text, ctypes.c_int32)
    remove = _bind("gguf_remove_key", number, pointer, text)
    meta_size = _bind("gguf_get_meta_size", ctypes.c_size_t, pointer)
    total = sum(map(len, parts))
    sizes = []
    for place, tensors in enumerate(parts):
        with _empty() as target:
            if place == 0:
                with _opened(source) as old:
                    _bind("gguf_set_kv", None, pointer, pointer)(target, old)
                set_u32(target, b"general.quantization_version", 2)
                set_u32(target, b"general.file_type", 0)
                for key in _SPLIT_KEYS:
                    remove(target, key.encode())
                for override in overrides:
                    _set(target, override)
            if len(parts) > 1:
                set_u16(target, b"split.no", place)
                set_u16(target, b"split.count", len(parts))
                set_i32(target, b"split.tensors.count", total)
            with _memory(len(tensors)) as memory:
                _add(target, memory, tensors)
                sizes.append(int(meta_size(target)))
    return sizes


def stored_types(path: str) -> dict[str, int]:
    """Return the number of each tensor's type as a file's header tells it, without reading the vocabulary in Python."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    name = _bind("gguf_get_tensor_name", ctypes.c_char_p, pointer, number)
    kind = _bind("gguf_get_tensor_type", ctypes.c_int, pointer, number)
    with _opened(path) as context:
        count = _bind("gguf_get_n_tensors", number, pointer)(context)
        return {
            name(context, place).decode("utf-8", "surrogateescape"): int(kind(context, place)) for place in range(count)
        }


def _set(target: int, override: KvOverride) -> None:
    """Set a value as llama-quant.cpp does: whole numbers as u32, real ones as f32."""
    kinds: dict[str, tuple[str, Any]] = {
        "int": ("gguf_set_val_u32", ctypes.c_uint32),
        "float": ("gguf_set_val_f32", ctypes.c_float),
        "bool": ("gguf_set_val_bool", ctypes.c_bool),
        "str": ("gguf_set_val_str", ctypes.c_char_p),
    }
    name, kind = kinds[override.kind]
    value = override.c_text if override.kind == "str" else override.value
    _bind(name, None, ctypes.c_void_p, ctypes.c_char_p, kind)(target, override.key.encode(), value)


def _add(target: int, memory: int, tensors: Sequence[Outline]) -> None:
    lengths = ctypes.POINTER(ctypes.c_int64)
    new = _bind("ggml_new_tensor", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, lengths)
    name_it = _bind("ggml_set_name", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
    add = _bind("gguf_add_tensor", None, ctypes.c_void_p, ctypes.c_void_p)
    for name, shape in tensors:
        shape = tuple(shape) or (1,)
        tensor = new(memory, 0, len(shape), (ctypes.c_int64 * len(shape))(*shape))
        name_it(tensor, name.encode("utf-8", "surrogateescape"))
        add(target, tensor)


@contextlib.contextmanager
def _empty() -> Iterator[int]:
    context = _bind("gguf_init_empty", ctypes.c_void_p)()
    try:
        yield context
    finally:
        _bind("gguf_free", None, ctypes.c_void_p)(context)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    init = _bind("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _InitParams)
    context = init(os.fsencode(path), _InitParams(no_alloc=True, ctx=None))
    if not context:
        raise InvalidModelError(f"{path} can not be read by llama.cpp; download or convert it again")
    try:
        yield context
    finally:
        _bind("gguf_free", None, ctypes.c_void_p)(context)


@contextlib.contextmanager
def _memory(tensors: int) -> Iterator[int]:
    init = _bind("ggml_init", ctypes.c_void_p, _MemoryParams)
    memory = init(_MemoryParams(mem_size=_TENSOR_ROOM * (tensors + 1), mem_buffer=None, no_alloc=True))
    try:
        yield memory
    finally:
        _bind("ggml_free", None, ctypes.c_void_p)(memory)
