"""Tell whether a file with more bits was made from a quantized one: then it knows no more. Runs in the worker."""

from __future__ import annotations

import math

import numpy as np

from llama_magic.models.metadata import ModelMetadata
from llama_magic.quantization.ftypes import is_float
from llama_magic.quantization.tensor_file import TensorFile

__all__ = ["made_from"]

_TENSORS = 3
_WEIGHTS = 1 << 16
#: Relative difference that rounding once more makes at most; F16 gives 2e-4, Q8_0 about 5e-3. What a
#: quantization of 6 bits and fewer loses is above 1e-2, that of Q8_0 4e-3.
_FLOAT_ROUNDING, _Q8_ROUNDING = 1e-3, 8e-3


def made_from(larger: ModelMetadata, smaller: ModelMetadata) -> bool:
    """Tell whether `larger` holds the very weights of `smaller`, only in more bits.

    The first weights of some tensors that are quantized in `smaller` are compared.
    """
    compared = [tensor for tensor in smaller.tensors if not is_float(tensor.type)]
    step = max(1, len(compared) // _TENSORS)
    with TensorFile(larger.path) as ours, TensorFile(smaller.path) as theirs:
        for tensor in compared[::step][:_TENSORS]:
            stop = max(1, min(math.prod(tensor.shape[1:]), _WEIGHTS // tensor.shape[0]))
            twin = ours.find(tensor.name)
            a, b = ours.rows(twin, 0, stop), theirs.rows(tensor, 0, stop)
            norm = float(np.linalg.norm(b))
            limit = _FLOAT_ROUNDING if is_float(twin.type) else _Q8_ROUNDING
            if norm and float(np.linalg.norm(a - b)) / norm > limit:
                return False
    return bool(compared)
