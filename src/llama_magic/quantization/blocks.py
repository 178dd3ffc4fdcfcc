# ruff: noqa: RUF001 - signs of multiplication and minus are meant for readers
"""What the bytes of a quantized block say: codes, scales and minima, by the layouts of ggml-common.h.

A weight is ``scale * level + minimum``, where its level follows from its code. Worked out here apart
from ggml's own decoding, so that each checks the other. Types with a codebook of vectors (IQ1, IQ2, IQ3)
hold an index and signs for several weights at once; there, levels are read off what ggml decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_magic.native.ggml_types import Bytes, Floats, TypeTraits

__all__ = ["CODE_BITS", "LAYOUTS", "LEVELS", "Blocks", "Layout", "unpack"]

Ints = npt.NDArray[np.int64]

#: kvalues_iq4nl and kvalues_fp4 of ggml-common.h: what a 4-bit code stands for.
_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])
#: IQ1S_DELTA
_DELTA = 0.125


@dataclass(frozen=True, slots=True)
class Layout:
    """How a type lays out a block.

    Attributes
    ----------
    fields
        Names, numpy types and meanings, in the order of the bytes.
    group
        Weights that share a scale.
    formula
        What a weight is, in words.
    codebook
        Weights that share one index into a codebook of vectors; 1 where each weight has a code of its own.
    """

    fields: tuple[tuple[str, str, str], ...]
    group: int
    formula: str
    codebook: int = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The fields as numpy reads them, packed."""
        return np.dtype([(name, kind) for name, kind, _ in self.fields])


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


_D = ("d", "<f2", "scale")
_M = ("m", "<f2", "minimum")
_SUPER = (("d", "<f2", "scale of the scales"), ("dmin", "<f2", "scale of the minima"))
_NIBBLES = ("qs", "16u1", "codes, two in a byte")
_LINEAR = "weight = scale × code + minimum"
_CENTRED = "weight = scale × (code − {})"
_TABLE = "weight = scale × table[code]"
_BOOK = "weight = scale × codebook[index], with a sign"

LAYOUTS: dict[str, Layout] = {
    "Q1_0": Layout(
        (_D, ("qs", "16u1", "codes, eight in a byte")), 128, "weight = +scale where the bit is 1, else −scale"
    ),
    "Q2_0": Layout((_D, ("qs", "16u1", "codes, four in a byte")), 64, _CENTRED.format(1)),
    "Q4_0": Layout((_D, _NIBBLES), 32, _CENTRED.format(8)),
    "Q4_1": Layout((_D, _M, _NIBBLES), 32, _LINEAR),
    "Q5_0": Layout(
        (_D, ("qh", "<u4", "the codes' fifth bits"), ("qs", "16u1", "the codes' low four bits")),
        32,
        _CENTRED.format(16),
    ),
    "Q5_1": Layout(
        (_D, _M, ("qh", "<u4", "the codes' fifth bits"), ("qs", "16u1", "the codes' low four bits")), 32, _LINEAR
    ),
    "Q8_0": Layout((_D, ("qs", "32i1", "codes, one in a byte")), 32, "weight = scale × code"),
    "MXFP4": Layout((("e", "u1", "scale, a power of two"), _NIBBLES), 32, _TABLE),
    "NVFP4": Layout((("d", "4u1", "scales, 8-bit floats"), ("qs", "32u1", "codes, two in a byte")), 16, _TABLE),
    "Q2_K": Layout(
        (
            ("scales", "16u1", "scale and minimum of each group, 4 bits each"),
            ("qs", "64u1", "codes, four in a byte"),
            *_SUPER,
        ),
        16,
        _LINEAR,
    ),
    "Q3_K": Layout(
        (
            ("hmask", "32u1", "the codes' high bits"),
            ("qs", "64u1", "the codes' low two bits"),
            ("scales", "12u1", "scales of the groups, 6 bits each"),
            ("d", "<f2", "scale of the scales"),
        ),
        16,
        _CENTRED.format(4),
    ),
    "Q4_K": Layout(
        (
            *_SUPER,
            ("scales", "12u1", "scale and minimum of each group, 6 bits each"),
            ("qs", "128u1", "codes, two in a byte"),
        ),
        32,
        _LINEAR,
    ),
    "Q5_K": Layout(
        (
            *_SUPER,
            ("scales", "12u1", "scale and minimum of each group, 6 bits each"),
            ("qh", "32u1", "the codes' high bits"),
            ("qs", "128u1", "the codes' low four bits"),
        ),
        32,
        _LINEAR,
    ),
    "Q6_K": Layout(
        (
            ("ql", "128u1", "the codes' low four bits"),
            ("qh", "64u1", "the codes' high two bits"),
            ("scales", "16i1", "scales of the groups, 8 bits each"),
            ("d", "<f2", "scale of the scales"),
        ),
        16,
        _CENTRED.format(32),
    ),
    "TQ1_0": Layout(
        (("qs", "48u1", "codes, five in a byte (base 3)"), ("qh", "4u1", "codes, four in a byte (base 3)"), _D),
        256,
        _CENTRED.format(1),
    ),
    "TQ2_0": Layout((("qs", "64u1", "codes, four in a byte"), _D), 256, _CENTRED.format(1)),
    "IQ4_NL": Layout((_D, _NIBBLES), 32, _TABLE),
    "IQ4_XS": Layout(
        (
            ("d", "<f2", "scale of the scales"),
            ("scales_h", "<u2", "the scales' high two bits"),
            ("scales_l", "4u1", "the scales' low four bits"),
            ("qs", "128u1", "codes, two in a byte"),
        ),
        32,
        _TABLE,
    ),
    "IQ2_XXS": Layout(
        (("d", "<f2", "scale of the scales"), ("qs", "32<u2", "indices of 8 bits, signs of 7 bits, scales of 4 bits")),
        32,
        _BOOK,
        8,
    ),
    "IQ2_XS": Layout(
        (
            ("d", "<f2", "scale of the scales"),
            ("qs", "32<u2", "indices of 9 bits, signs of 7 bits"),
            ("scales", "8u1", "scales of the groups, 4 bits each"),
        ),
        16,
        _BOOK,
        8,
    ),
    "IQ2_S": Layout(
        (
            ("d", "<f2", "scale of the scales"),
            ("qs", "32u1", "the indices' low eight bits"),
            ("signs", "32u1", "signs"),
            ("qh", "8u1", "the indices' high two bits"),
            ("scales", "8u1", "scales of the groups, 4 bits each"),
        ),
        16,
        _BOOK,
        8,
    ),
    "IQ3_XXS": Layout(
        (
            ("d", "<f2", "scale of the scales"),
            ("qs", "64u1", "indices of 8 bits"),
            ("aux", "8<u4", "signs of 7 bits, scales of 4 bits"),
        ),
        32,
        _BOOK,
        4,
    ),
    "IQ3_S": Layout(
        (
            ("d", "<f2", "scale of the scales"),
            ("qs", "64u1", "the indices' low eight bits"),
            ("qh", "8u1", "the indices' high bits"),
            ("signs", "32u1", "signs"),
            ("scales", "4u1", "scales of the groups, 4 bits each"),
        ),
        32,
        _BOOK,
        4,
    ),
    "IQ1_S": Layout(
        (
            ("d", "<f2", "scale of the scales"),
            ("qs", "32u1", "the indices' low eight bits"),
            ("qh", "8<u2", "the indices' high bits, scale of 3 bits, shift"),
        ),
        32,
        "weight = scale × (codebook[index] ± 1/8)",
        8,
    ),
    "IQ1_M": Layout(
        (
            ("qs", "32u1", "the indices' low eight bits"),
            ("qh", "16u1", "the indices' high bits, shifts"),
            ("scales", "4<u2", "scales of the groups, 3 bits each, and the scale of the scales"),
        ),
        8,
        "weight = scale × (codebook[index] ± 1/8)",
        8,
    ),
}

_SIGNED = {"IQ2": (8, 25, 43), "IQ3_XXS": (4, 12, 20, 28, 36, 44, 52, 62), "IQ3_S": range(1, 16, 2)}


def _signed(sizes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(sign * size for size in sizes for sign in (-1, 1)))


#: All levels that a weight of each type may have.
LEVELS: dict[str, Sequence[int]] = {
    "Q1_0": (-1, 1), "Q2_0": range(-1, 3), "Q4_0": range(-8, 8), "Q4_1": range(16), "Q5_0": range(-16, 16),
    "Q5_1": range(32), "Q8_0": range(-128, 128), "Q2_K": range(4), "Q3_K": range(-4, 4), "Q4_K": range(16),
    "Q5_K": range(32), "Q6_K": range(-32, 32), "TQ1_0": range(-1, 2), "TQ2_0": range(-1, 2),
    "MXFP4": tuple(sorted(set(map(int, _FP4)))), "NVFP4": tuple(sorted(set(map(int, _FP4)))),
    "IQ4_NL": tuple(map(int, _NL)), "IQ4_XS": tuple(map(int, _NL)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S"), _signed(_SIGNED["IQ2"])),
    "IQ3_XXS": _signed(_SIGNED["IQ3_XXS"]), "IQ3_S": _signed(_SIGNED["IQ3_S"]),
    **dict.fromkeys(("IQ1_S", "IQ1_M"), (-1, 0, 1)),
}  # fmt: skip

#: Bits of a code; of types with a codebook, those of an index.
CODE_BITS: dict[str, int] = {
    "Q1_0": 1, "Q2_0": 2, "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q2_K": 2, "Q3_K": 3, "Q4_K": 4,
    "Q5_K": 5, "Q6_K": 6, "TQ1_0": 2, "TQ2_0": 2, "MXFP4": 4, "NVFP4": 4, "IQ4_NL": 4, "IQ4_XS": 4, "IQ2_XXS": 8,
    "IQ2_XS": 9, "IQ2_S": 10, "IQ3_XXS": 8, "IQ3_S": 9, "IQ1_S": 11, "IQ1_M": 11,
}  # fmt: skip


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
    return codes, _FP4[codes], np.ldexp(np.float32(1), fields["e"].astype(np.int64) - 128)[:, None], 0.0


def _nvfp4(fields: Any) -> _Unpacked:
    codes = _nibbles(fields["qs"], 8)
    byte = fields["d"].astype(np.int64)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    # ggml_ue4m3_to_fp32, half of it
    normal = np.ldexp(1 + mantissa / 8, exponent - 8)
    scales = np.where(exponent == 0, np.ldexp(mantissa.astype(float), -10), normal)
    return codes, _FP4[codes], _f32(np.where(byte == 0x7F, 0, scales)), 0.0


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
    return codes, _NL[codes], _one(fields), 0.0


def _iq4_xs(fields: Any) -> _Unpacked:
    codes = _nibbles(fields["qs"], 16)
    low = (fields["scales_l"][..., None] >> np.array([0, 4], np.uint8) & 15).reshape(len(fields), -1)
    high = fields["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    return codes, _NL[codes], _one(fields) * (_f32(low | high << 4) - 32), 0.0


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
