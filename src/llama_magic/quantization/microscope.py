"""What quantizing does to one block of weights, and to the tensor around it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llama_magic.quantization import microscope_view

__all__ = ["BlockField", "BlockGroup", "ErrorStats", "Histogram", "Microscope", "MicroscopeRequest"]


@dataclass(frozen=True, slots=True)
class MicroscopeRequest:
    """Quantize a tensor and look at one block; the result is a `Microscope`.

    Attributes
    ----------
    path
        The model's file.
    tensor
        Its name.
    type, asked
        Tensor type to quantize to, and what the user called it.
    block
        Which block, from 0; negative ones count from the end.
    imatrix
        Importance matrix to quantize with, or None.
    n_threads
        Threads, None: as many as this container may use.
    """

    path: str
    tensor: str
    type: str
    asked: str
    block: int = 0
    imatrix: str | None = None
    n_threads: int | None = None


@dataclass(frozen=True, slots=True)
class BlockField:
    """Some bytes of a block.

    Attributes
    ----------
    name
        As in ggml's ``block_…`` structure.
    offset, size
        In bytes.
    meaning
        What they hold.
    data
        The bytes in hexadecimal.
    """

    name: str
    offset: int
    size: int
    meaning: str
    data: str


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Neighbouring weights that share a scale and a minimum.

    Attributes
    ----------
    start, length
        Which weights of the block.
    scale, minimum
        A weight is ``scale * level + minimum``.
    """

    start: int
    length: int
    scale: float
    minimum: float


@dataclass(frozen=True, slots=True)
class ErrorStats:
    """How far quantized weights are from the original ones.

    Attributes
    ----------
    rmse
        Root of the mean squared error.
    relative
        Root of the sum of squared errors by that of the squared weights; 0 is exact, 1 as bad as zeros.
    cosine
        Cosine of the angle between both, as vectors; 1 is exact. Not a number where one is all zeros.
    max
        Largest error of any weight.
    mean
        Mean error: away from 0 where the type shifts weights to one side.
    """

    rmse: float
    relative: float
    cosine: float
    max: float
    mean: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Errors counted: `counts` bins of equal width from `low` to `high`; `outside` are beyond both."""

    low: float
    high: float
    counts: tuple[int, ...]
    outside: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Microscope:
    """One block of a tensor before and after quantizing, and the errors of the whole tensor.

    Attributes
    ----------
    path, tensor, shape, source_type
        What was looked at.
    type, asked, bits_per_weight
        The tensor type it was quantized to, what was asked for, and the bits a weight takes.
    block, n_blocks, row, column
        Which block of how many, and where in the tensor it begins.
    original, quantized
        Its weights before and after.
    codes, levels
        What the block stores for each weight, and what that stands for: ``quantized = scale * level + minimum``.
    steps
        All levels that a weight may have.
    code_bits, n_codes
        Bits of a code, and how many codes there are where that is no power of two.
    codebook
        Neighbouring weights that share one code, which is then the index of a vector; 1 where each has its own.
    groups
        Scale and minimum of each group of weights.
    fields
        The bytes of the block.
    formula
        What a weight is, in words.
    stats
        Errors of the whole tensor.
    histogram
        The same, counted.
    notes
        What is worth knowing, in sentences.
    """

    path: str
    tensor: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    asked: str
    bits_per_weight: float
    block: int
    n_blocks: int
    row: int
    column: int
    original: tuple[float, ...]
    quantized: tuple[float, ...]
    codes: tuple[int, ...]
    levels: tuple[float, ...]
    steps: tuple[float, ...]
    code_bits: int
    n_codes: int | None
    codebook: int
    groups: tuple[BlockGroup, ...]
    fields: tuple[BlockField, ...]
    formula: str
    stats: ErrorStats
    histogram: Histogram
    notes: tuple[str, ...] = field(default=())

    @property
    def errors(self) -> tuple[float, ...]:
        """Quantized minus original, for each weight of the block."""
        return tuple(after - before for before, after in zip(self.original, self.quantized, strict=True))

    def group_of(self, weight: int) -> BlockGroup:
        """Return the group that a weight of the block belongs to."""
        return self.groups[weight // self.groups[0].length]

    def __repr__(self) -> str:
        return microscope_view.text(self)

    def _repr_html_(self) -> str:
        return microscope_view.html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {**asdict(self), "errors": self.errors}
