"""ggml's tensor types: what a block holds, and rows to and from float through ggml's own functions."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_magic.errors import InvalidRequestError, NativeError
from llama_magic.native.library import dll

__all__ = ["Bytes", "Floats", "TypeTraits", "dequantize", "needs_matrix", "quantize", "type_traits"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_F32 = 0
_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class TypeTraits:
    """One tensor type.

    Attributes
    ----------
    id
        ``ggml_type``.
    name
        In capitals, as in llama.cpp's tables.
    block
        Weights in a block.
    size
        Bytes of a block.
    quantized
        False for floats and integers.
    """

    id: int
    name: str
    block: int
    size: int
    quantized: bool

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales included."""
        return 8 * self.size / self.block

    def row_bytes(self, length: int) -> int:
        """Return the bytes of a row of this many weights."""
        if length % self.block:
            raise InvalidRequestError(
                f"{self.name} stores blocks of {self.block} weights; a row of {length:,} can not be cut into them"
            )
        return length // self.block * self.size


def _bind(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(dll, name, None)
    if function is None:
        raise NativeError(f"this llama-cpp-python has no {name}; install a version that llama_magic was tested with")
    # A handle of our own: llama_cpp may give the shared one other types.
    return ctypes.CFUNCTYPE(result, *arguments)((name, dll))


@functools.cache
def _raw(kind: int) -> _Traits:
    traits: _Traits = _bind("ggml_get_type_traits", ctypes.POINTER(_Traits), ctypes.c_int)(kind).contents
    return traits


@functools.cache
def type_traits(kind: int, name: str) -> TypeTraits:
    """Return what ggml says of a type.

    Parameters
    ----------
    kind, name
        Its number and the name expected for it, which is checked: numbers without a type are not asked for.

    Raises
    ------
    NativeError
        ggml has another type, or none, under this number.
    """
    raw = _raw(kind)
    found = (raw.type_name or b"").decode("ascii", "replace").upper()
    if found != name.upper() or raw.blck_size <= 0 or not raw.type_size:
        raise NativeError(f"tensor type {kind} is {found or 'unknown'} in this llama.cpp, not {name}")
    return TypeTraits(kind, found, raw.blck_size, raw.type_size, bool(raw.is_quantized))


def dequantize(traits: TypeTraits, data: Bytes) -> Floats:
    """Return the weights that whole blocks stand for, as ggml decodes them.

    Parameters
    ----------
    data
        Bytes of any number of blocks, contiguous.

    Raises
    ------
    InvalidRequestError
        The type can not be decoded, or these are not whole blocks.
    """
    if data.size % traits.size:
        raise InvalidRequestError(f"{data.size} bytes are not whole blocks of {traits.name} ({traits.size} bytes each)")
    data = np.ascontiguousarray(data)
    if traits.id == _F32:
        copied: Floats = data.view(np.float32).copy()
        return copied
    address = _raw(traits.id).to_float
    if not address:
        raise InvalidRequestError(f"llama.cpp can not turn {traits.name} into numbers")
    count = data.size // traits.size * traits.block
    out = np.empty(count, np.float32)
    _TO_FLOAT(address)(data.ctypes.data, out.ctypes.data, count)
    return out


def needs_matrix(traits: TypeTraits) -> bool:
    """Tell whether ggml quantizes to this type with importances only."""
    return bool(_bind("ggml_quantize_requires_imatrix", ctypes.c_bool, ctypes.c_int)(traits.id))


def quantize(traits: TypeTraits, rows: Floats, importance: Floats | None = None) -> Bytes:
    """Return rows as blocks of a type, quantized by ggml.

    Parameters
    ----------
    rows
        Two dimensions: rows and their weights.
    importance
        A positive number for each column; equal ones are used where the type needs them and none are given.
    """
    n_rows, length = rows.shape
    row_bytes = traits.row_bytes(length)
    if _raw(traits.id).from_float_ref is None and traits.id != _F32 and not traits.quantized:
        raise InvalidRequestError(f"llama.cpp does not quantize to {traits.name}")
    if not np.isfinite(rows).all():
        raise InvalidRequestError("the tensor holds values that are no numbers (NaN or infinite); it can not be read")
    if importance is None and needs_matrix(traits):
        importance = np.ones(length, np.float32)
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.zeros(n_rows * row_bytes, np.uint8)
    chunk = _bind(
        "ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    )  # fmt: skip
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != (length,):
        raise InvalidRequestError(f"the importance has {weights.size:,} values for rows of {length:,} weights")
    chunk(
        traits.id, rows.ctypes.data, out.ctypes.data, 0, n_rows, length,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
    return out
