# ruff: noqa: RUF001 - signs of multiplication and minus are meant for readers
"""The layouts of quantized blocks, from ggml-common.h: fields, groups, and what codes stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CODE_BITS", "FP4", "LAYOUTS", "LEVELS", "NL", "Layout"]

#: kvalues_iq4nl and kvalues_fp4 of ggml-common.h: what a 4-bit code stands for.
NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])


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
    "MXFP4": tuple(sorted(set(map(int, FP4)))), "NVFP4": tuple(sorted(set(map(int, FP4)))),
    "IQ4_NL": tuple(map(int, NL)), "IQ4_XS": tuple(map(int, NL)),
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
