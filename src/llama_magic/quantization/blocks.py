"""What the bytes of a quantized block say: codes, scales and minima, by the layouts of ggml-common.h.

A weight is ``scale * level + minimum``, where its level follows from its code. Worked out here apart
from ggml's own decoding, so that each checks the other. Types with a codebook of vectors (IQ1, IQ2, IQ3)
hold an index and signs for several weights at once; there, levels are read off what ggml decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_magic.native.ggml_types import Bytes, Floats, TypeTraits
from llama_magic.quantization.layouts import FP4, LAYOUTS, NL

__all__ = ["Blocks", "unpack"]

Ints = npt.NDArray[np.int64]

#: IQ1S_DELTA
_DELTA = 0.125


@dataclass(frozen=True, slots=True)
class Blocks:
    """Unpacked blocks: arrays of blocks by weights, and blocks by groups."""

    codes: Ints
    levels: Floats
    scales: Floats
    minima: Floats

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def values(self) -> Floats:
        """Return ``scale * level + minimum`` of every weight, in single precision as ggml computes."""
        repeat = self.group
        scale, minimum = np.repeat(self.scales, repeat, 1), np.repeat(self.minima, repeat, 1)
        made: Floats = scale * self.levels + minimum
        return made


def unpack(traits: TypeTraits, data: Bytes, decoded: Floats) -> Blocks:
    """Take blocks apart.

    Parameters
    ----------
    data
        Bytes of whole blocks.
    decoded
        What ggml made of them; read for types with a codebook of vectors only.
    """
    layout = LAYOUTS[traits.name]
    fields = np.ascontiguousarray(data).view(layout.dtype)
    if layout.codebook == 1:
        codes, levels, scales, minima = _CODED[traits.name](fields)
    else:
        codes, scales, minima = _BOOKS[traits.name](fields)
        groups = decoded.reshape(*scales.shape, -1)
        # A group whose scale is 0 says nothing of its levels.
        with np.errstate(divide="ignore", invalid="ignore"):
            levels = np.rint((groups - minima[..., None]) / scales[..., None])
        levels = np.where(scales[..., None] == 0, 0, levels).reshape(codes.shape)
    scales = np.asarray(scales, np.float32)
    minima = np.broadcast_to(np.asarray(minima, np.float32), scales.shape)
    return Blocks(np.asarray(codes, np.int64), np.asarray(levels, np.float32), scales, minima)


# -- pieces ------------------------------------------------------------------------------------


def _f32(values: Any) -> Floats:
    return np.asarray(values, np.float32)


def _nibbles(qs: Any, width: int) -> Any:
    """Low halves of `width` bytes, then their high halves."""
    parts = qs.reshape(len(qs), -1, width)
    return np.concatenate([parts & 15, parts >> 4], -1).reshape(len(qs), -1)


def _pairs(qs: Any, shifts: tuple[int, ...], mask: int, width: int = 32) -> Any:
    """Every `width` bytes at the first shift, then at the next, and so on."""
    parts = qs.reshape(len(qs), -1, 1, width)
    return ((parts >> np.array(shifts, np.uint8)[:, None]) & mask).reshape(len(qs), -1)


def _bits(words: Any, count: int) -> Any:
    return (words[..., None] >> np.arange(count, dtype=words.dtype)) & 1


def _scales_6bit(packed: Any) -> tuple[Any, Any]:
    """``get_scale_min_k4`` of ggml-quants.c: eight scales and eight minima of 6 bits."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], 1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], 1)
    return _f32(scales), _f32(minima)


_Unpacked = tuple[Any, Any, Any, Any]


def _centred(codes: Any, zero: int, scales: Any) -> _Unpacked:
    codes = codes.astype(np.int64)
    return codes, codes - zero, _f32(scales), 0.0


def _one(fields: Any, name: str = "d") -> Floats:
    return _f32(fields[name])[:, None]


def _fifth(fields: Any) -> Any:
    return _nibbles(fields["qs"], 16) | _bits(fields["qh"], 32).astype(np.uint8) << 4


def _with_minimum(codes: Any, fields: Any) -> _Unpacked:
    return codes, codes, _one(fields), _one(fields, "m")


# -- types with a code for each weight ---------------------------------------------------------


def _q1_0(fields: Any) -> _Unpacked:
    codes = _bits(fields["qs"], 8).reshape(len(fields), -1).astype(np.int64)
    return codes, 2 * codes - 1, _one(fields), 0.0


def _q2_0(fields: Any) -> _Unpacked:
    codes = ((fields["qs"][..., None] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3).reshape(len(fields), -1)
    return _centred(codes, 1, _one(fields))


def _mxfp4(fields: Any) -> _Unpacked:
    codes = _nibbles(fields["qs"], 16)
    # GGML_E8M0_TO_FP32_HALF: 2^(e - 128), also below the normal numbers
    return codes, FP4[codes], np.ldexp(np.float32(1), fields["e"].astype(np.int64) - 128)[:, None], 0.0


def _nvfp4(fields: Any) -> _Unpacked:
    codes = _nibbles(fields["qs"], 8)
    byte = fields["d"].astype(np.int64)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    # ggml_ue4m3_to_fp32, half of it
    normal = np.ldexp(1 + mantissa / 8, exponent - 8)
    scales = np.where(exponent == 0, np.ldexp(mantissa.astype(float), -10), normal)
    return codes, FP4[codes], _f32(np.where(byte == 0x7F, 0, scales)), 0.0


def _q2_k(fields: Any) -> _Unpacked:
    codes = _pairs(fields["qs"], (0, 2, 4, 6), 3)
    packed = fields["scales"]
    return codes, codes, _one(fields) * _f32(packed & 15), -(_one(fields, "dmin") * _f32(packed >> 4))


def _q3_k(fields: Any) -> _Unpacked:
    high = _pairs(fields["hmask"], tuple(range(8)), 1)
    codes = _pairs(fields["qs"], (0, 2, 4, 6), 3) | high << 2
    low, top = fields["scales"][:, :8], fields["scales"][:, 8:]
    packed = np.concatenate([low & 15, low >> 4], 1) | _pairs(top, (0, 2, 4, 6), 3, 4) << 4
    return _centred(codes, 4, _one(fields) * (_f32(packed) - 32))


def _q4_k(fields: Any) -> _Unpacked:
    codes = _pairs(fields["qs"], (0, 4), 15)
    scales, minima = _scales_6bit(fields["scales"])
    return codes, codes, _one(fields) * scales, -(_one(fields, "dmin") * minima)


def _q5_k(fields: Any) -> _Unpacked:
    codes = _pairs(fields["qs"], (0, 4), 15) | _pairs(fields["qh"], tuple(range(8)), 1) << 4
    scales, minima = _scales_6bit(fields["scales"])
    return codes, codes, _one(fields) * scales, -(_one(fields, "dmin") * minima)


def _q6_k(fields: Any) -> _Unpacked:
    codes = _pairs(fields["ql"], (0, 4), 15, 64) | _pairs(fields["qh"], (0, 2, 4, 6), 3) << 4
    return _centred(codes, 32, _one(fields) * _f32(fields["scales"]))


def _tq1_0(fields: Any) -> _Unpacked:
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]

    def digits(part: Any, count: int) -> Any:
        scaled = part[:, None, :] * powers[:count]  # wraps around at 256, as in ggml
        return ((scaled.astype(np.uint16) * 3) >> 8).reshape(len(part), -1)

    qs = fields["qs"]
    codes = np.concatenate([digits(qs[:, :32], 5), digits(qs[:, 32:], 5), digits(fields["qh"], 4)], 1)
    return _centred(codes, 1, _one(fields))


def _tq2_0(fields: Any) -> _Unpacked:
    return _centred(_pairs(fields["qs"], (0, 2, 4, 6), 3), 1, _one(fields))


def _iq4_nl(fields: Any) -> _Unpacked:
    codes = _nibbles(fields["qs"], 16)
    return codes, NL[codes], _one(fields), 0.0


def _iq4_xs(fields: Any) -> _Unpacked:
    codes = _nibbles(fields["qs"], 16)
    low = (fields["scales_l"][..., None] >> np.array([0, 4], np.uint8) & 15).reshape(len(fields), -1)
    high = fields["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    return codes, NL[codes], _one(fields) * (_f32(low | high << 4) - 32), 0.0


_CODED: dict[str, Callable[[Any], _Unpacked]] = {
    "Q1_0": _q1_0, "Q2_0": _q2_0, "MXFP4": _mxfp4, "NVFP4": _nvfp4, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0,
    "Q4_0": lambda fields: _centred(_nibbles(fields["qs"], 16), 8, _one(fields)),
    "Q4_1": lambda fields: _with_minimum(_nibbles(fields["qs"], 16), fields),
    "Q5_0": lambda fields: _centred(_fifth(fields), 16, _one(fields)),
    "Q5_1": lambda fields: _with_minimum(_fifth(fields), fields),
    "Q8_0": lambda fields: _centred(fields["qs"], 0, _one(fields)),
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip


# -- types with a codebook of vectors: an index for several weights ------------------------------


_Booked = tuple[Any, Any, Any]


def _spread(index: Any, weights: int) -> Any:
    return np.repeat(index.reshape(len(index), -1).astype(np.int64), weights, 1)


def _halves(packed: Any) -> Any:
    return (packed[..., None] >> np.array([0, 4], np.uint8) & 15).reshape(len(packed), -1)


def _no_minima(scales: Any) -> tuple[Any, Any]:
    return _f32(scales), np.zeros_like(scales, np.float32)


def _iq2_xxs(fields: Any) -> _Booked:
    words = np.ascontiguousarray(fields["qs"]).view("<u4").reshape(len(fields), 8, 2)
    index = words[..., 0, None] >> np.arange(0, 32, 8, dtype=np.uint32) & 255
    return _spread(index, 8), *_no_minima(
        _one(fields) * (np.float32(0.5) + _f32(words[..., 1] >> 28)) * np.float32(0.25)
    )


def _iq2_xs(fields: Any) -> _Booked:
    scales = _one(fields) * (np.float32(0.5) + _f32(_halves(fields["scales"]))) * np.float32(0.25)
    return _spread(fields["qs"] & 511, 8), *_no_minima(scales)


def _iq2_s(fields: Any) -> _Booked:
    high = fields["qh"].astype(np.int64)[..., None] << np.array([8, 6, 4, 2]) & 0x300
    index = fields["qs"].astype(np.int64).reshape(high.shape) | high
    scales = _one(fields) * (np.float32(0.5) + _f32(_halves(fields["scales"]))) * np.float32(0.25)
    return _spread(index, 8), *_no_minima(scales)


def _iq3_xxs(fields: Any) -> _Booked:
    scales = _one(fields) * (np.float32(0.5) + _f32(fields["aux"] >> 28)) * np.float32(0.5)
    return _spread(fields["qs"], 4), *_no_minima(scales)


def _iq3_s(fields: Any) -> _Booked:
    index = fields["qs"].astype(np.int64).reshape(len(fields), 8, 8) | _bits(fields["qh"], 8).astype(np.int64) << 8
    return _spread(index, 4), *_no_minima(_one(fields) * (1 + 2 * _f32(_halves(fields["scales"]))))


def _iq1_s(fields: Any) -> _Booked:
    high = fields["qh"].astype(np.int64)
    index = fields["qs"].reshape(len(fields), 8, 4) | (high[..., None] >> np.arange(0, 12, 3) & 7) << 8
    scales = _one(fields) * _f32(2 * (high >> 12 & 7) + 1)
    return _spread(index, 8), scales, scales * _f32(np.where(high & 0x8000, -_DELTA, _DELTA))


def _iq1_m(fields: Any) -> _Booked:
    packed = fields["scales"].astype(np.uint16)
    top = packed >> 12 << np.array([0, 4, 8, 12], np.uint16)
    scale = np.bitwise_or.reduce(top, 1).astype(np.uint16).view(np.float16)
    each = packed[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    # a scale for 16 weights, a shift for 8
    scales = np.repeat(_f32(scale)[:, None] * _f32(2 * each.reshape(len(fields), -1) + 1), 2, 1)
    high = _halves(fields["qh"]).astype(np.int64)
    index = fields["qs"] | (high & 7) << 8
    return _spread(index, 8), scales, scales * _f32(np.where(high & 8, -_DELTA, _DELTA))


_BOOKS: dict[str, Callable[[Any], _Booked]] = {
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s, "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
}  # fmt: skip
