"""The microscope's work in the worker: quantize a tensor through ggml, take one block apart, count the errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llama_magic.backends.host import default_threads
from llama_magic.errors import InvalidRequestError, JobInterrupted
from llama_magic.models.metadata import TensorInfo
from llama_magic.native.ggml_types import Bytes, Floats, TypeTraits, dequantize, needs_matrix, quantize
from llama_magic.native.tools import WorkerTools
from llama_magic.progress import Progress
from llama_magic.quantization.blocks import unpack
from llama_magic.quantization.error_sums import ErrorHistogram, ErrorSums
from llama_magic.quantization.imatrix_file import read_imatrix
from llama_magic.quantization.layouts import CODE_BITS, LAYOUTS, LEVELS
from llama_magic.quantization.microscope import BlockField, BlockGroup, Microscope, MicroscopeRequest
from llama_magic.quantization.tensor_file import CHUNK_WEIGHTS, TensorFile, map_ahead, row_pieces, traits_of

__all__ = ["fallback", "run"]

#: What llama.cpp takes where rows can not be cut into a type's blocks (`tensor_type_fallback`, src/llama-quant.cpp).
_FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

#: Of four 2-bit codes, these use three.
_TERNARY = ("TQ1_0", "TQ2_0")

#: Slow types take minutes for a large tensor: pieces small enough that a cancel is quick.
_SLOW_WEIGHTS = 1 << 15


def fallback(wanted: str, length: int) -> str:
    """Return the type that llama.cpp gives a tensor with rows of `length` weights where `wanted` was asked for."""
    if length % traits_of(wanted).block == 0:
        return wanted
    other = _FALLBACKS.get(wanted, wanted)
    return other if length % traits_of(other).block == 0 else "F16"


def run(request: MicroscopeRequest, tools: WorkerTools) -> Microscope:
    """Quantize the whole tensor, and show one block of it."""
    with TensorFile(request.path) as file:
        tensor = file.find(request.tensor)
        name = fallback(request.type, tensor.shape[0] if tensor.shape else 1)
        if name not in LAYOUTS:
            raise InvalidRequestError(_unblocked(request, tensor, name))
        traits = traits_of(name)
        importance = _importance(request.imatrix, tensor)
        n_blocks = tensor.n_params // traits.block
        block = request.block + n_blocks if request.block < 0 else request.block
        if not 0 <= block < n_blocks:
            raise InvalidRequestError(
                f"{tensor.name} has {n_blocks:,} blocks of {traits.block} weights: --block takes 0 to {n_blocks - 1:,}"
            )
        row, column = divmod(block * traits.block, tensor.shape[0])
        original = file.rows(tensor, row, row + 1)
        data = quantize(traits, original, _for_row(importance, tensor, row))
        sums, histogram = _measure(file, tensor, traits, importance, request, tools)
    at = column // traits.block
    one = data[at * traits.size : (at + 1) * traits.size]
    after = dequantize(traits, one)
    blocks = unpack(traits, one, after)
    layout = LAYOUTS[name]
    return Microscope(
        path=request.path, tensor=tensor.name, shape=tensor.shape, source_type=tensor.type, type=name,
        asked=request.asked, bits_per_weight=traits.bits_per_weight, block=block, n_blocks=n_blocks, row=row,
        column=column, original=_plain(original[0, column : column + traits.block]), quantized=_plain(after),
        codes=tuple(map(int, blocks.codes[0])), levels=_plain(blocks.levels[0]), steps=tuple(map(float, LEVELS[name])),
        code_bits=CODE_BITS[name], n_codes=3 if name in _TERNARY else None, codebook=layout.codebook,
        groups=tuple(
            BlockGroup(number * blocks.group, blocks.group, float(scale), float(minimum))
            for number, (scale, minimum) in enumerate(zip(blocks.scales[0], blocks.minima[0], strict=True))
        ),
        fields=_fields(traits, one), formula=layout.formula, stats=sums.stats(), histogram=histogram.result(),
        notes=_notes(request, tensor, traits),
    )  # fmt: skip


def _plain(values: Floats) -> tuple[float, ...]:
    return tuple(map(float, values))


def _unblocked(request: MicroscopeRequest, tensor: TensorInfo, name: str) -> str:
    if name == request.type:
        return f"{name} keeps each weight by itself: there is no block to look at. Try Q8_0, Q4_0 or Q4_K."
    return (
        f"rows of {tensor.name} have {tensor.shape[0] if tensor.shape else 1} weights, which no quantized block "
        f"divides; llama.cpp keeps such a tensor as {name}"
    )


def _importance(path: str | None, tensor: TensorInfo) -> Floats | None:
    if path is None:
        return None
    matrix = read_imatrix(path)
    entry = matrix.entries.get(tensor.name)
    if entry is None:
        raise InvalidRequestError(f"the importance matrix {Path(path).name} has no entry for {tensor.name}")
    values = entry.importance()
    if values.size not in (tensor.shape[0], tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)):
        raise InvalidRequestError(
            f"the importance matrix {Path(path).name} is of another model: it has {values.size:,} values for "
            f"{tensor.name}, whose rows have {tensor.shape[0]:,}"
        )
    return values


def _for_row(importance: Floats | None, tensor: TensorInfo, row: int) -> Floats | None:
    """Return the values for a row: experts have their own."""
    if importance is None or importance.size == tensor.shape[0]:
        return importance
    expert = row // tensor.shape[1]
    return importance[expert * tensor.shape[0] : (expert + 1) * tensor.shape[0]]


def _measure(
    file: TensorFile,
    tensor: TensorInfo,
    traits: TypeTraits,
    importance: Floats | None,
    request: MicroscopeRequest,
    tools: WorkerTools,
) -> tuple[ErrorSums, ErrorHistogram]:
    """Quantize the whole tensor piece by piece, on several threads: ggml's functions run beside Python."""
    most = _SLOW_WEIGHTS if traits.name.startswith("IQ") else CHUNK_WEIGHTS
    if importance is not None and importance.size != tensor.shape[0]:
        # no piece may reach from one expert into the next
        most = min(most, tensor.shape[0])
    pieces = list(row_pieces(tensor, most))
    sums, histogram = ErrorSums(), ErrorHistogram()

    def work(piece: tuple[int, int]) -> tuple[ErrorSums, Floats] | None:
        if tools.cancelled():
            return None
        source = file.rows(tensor, *piece)
        target = dequantize(traits, quantize(traits, source, _for_row(importance, tensor, piece[0])))
        target = target.reshape(source.shape)
        return ErrorSums.of(source, target), target - source

    n_threads = request.n_threads or default_threads()
    for number, done in enumerate(map_ahead(work, pieces, n_threads), 1):
        if done is None or tools.cancelled():
            raise JobInterrupted(None, "stopped; nothing was written.")
        sums.add(done[0])
        histogram.add(done[1])
        tools.report(Progress("microscope", number / len(pieces), f"quantizing {tensor.name} to {traits.name}"))
    return sums, histogram


def _fields(traits: TypeTraits, data: Bytes) -> tuple[BlockField, ...]:
    layout = LAYOUTS[traits.name]
    found = []
    for name, _, meaning in layout.fields:
        kind, offset = layout.dtype.fields[name][:2]  # type: ignore[index]
        size = np.dtype(kind).itemsize
        found.append(BlockField(name, offset, size, meaning, data[offset : offset + size].tobytes().hex(" ")))
    return tuple(found)


def _notes(request: MicroscopeRequest, tensor: TensorInfo, traits: TypeTraits) -> tuple[str, ...]:
    notes = []
    if request.asked != request.type:
        notes.append(f"A {request.asked} file keeps most of its tensors as {request.type}; that is shown here.")
    if traits.name != request.type:
        notes.append(
            f"Rows of {tensor.shape[0]:,} weights can not be cut into {request.type}'s blocks of "
            f"{traits_of(request.type).block}: llama.cpp falls back to {traits.name} here."
        )
    if traits_of(tensor.type).quantized:
        notes.append(f"The file holds this tensor as {tensor.type}: the original values are what that decodes to.")
    if len(tensor.shape) == 1:
        notes.append("llama.cpp leaves tensors of one dimension as they are; this one would not be quantized.")
    if request.imatrix:
        notes.append(f"Errors were weighed with the importance matrix {Path(request.imatrix).name}.")
    elif needs_matrix(traits):
        notes.append("This type needs an importance matrix; without one, all columns were taken as equally important.")
    return tuple(notes)
