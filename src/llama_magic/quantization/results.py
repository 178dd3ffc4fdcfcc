"""What planning and quantizing give: sizes, real bits per weight, the type of every tensor, what fell back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from llama_magic.quantization import views
from llama_magic.several import Several, Views

__all__ = ["QuantizePlan", "QuantizePlans", "QuantizeResult", "QuantizeResults", "TensorChoice"]


@dataclass(frozen=True, slots=True)
class TensorChoice:
    """What becomes of one tensor.

    Attributes
    ----------
    name, shape
        In the new file; ggml's order, rows last.
    source_type, type
        Before and after.
    source_size, size
        Bytes before and after.
    wanted
        The type that its shape did not allow; empty where the tensor did not fall back.
    reason
        Why it fell back.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    source_size: int
    size: int
    wanted: str = ""
    reason: str = ""

    @property
    def n_weights(self) -> int:
        """Weights in it."""
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a plan and a result have in common.

    Attributes
    ----------
    source
        The file that is quantized.
    ftype
        Name of the type.
    size
        Bytes of the new file (of all its parts), exactly.
    source_size
        Bytes of the source (of all its parts).
    tensors
        Every tensor, in llama.cpp's order.
    notes
        What is worth knowing, in sentences.
    warnings
        What speaks against it.
    """

    source: str
    ftype: str
    size: int
    source_size: int
    tensors: tuple[TensorChoice, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def n_params(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def tensor_size(self) -> int:
        """Bytes of all tensors: the file without its metadata."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Real bits per weight: bytes of all tensors times 8 by their weights."""
        return 8 * self.tensor_size / self.n_params if self.tensors else 0.0

    @property
    def fallbacks(self) -> tuple[TensorChoice, ...]:
        """The tensors whose shape did not allow the type they should have had."""
        return tuple(tensor for tensor in self.tensors if tensor.wanted)

    @property
    def types(self) -> Mapping[str, int]:
        """How many tensors there are of each type, the most frequent first."""
        return dict(Counter(tensor.type for tensor in self.tensors).most_common())

    def _repr_html_(self) -> str:
        return views.html_of((self,))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict, with the computed figures."""
        values = asdict(self)
        values.update(
            n_params=self.n_params,
            bits_per_weight=self.bits_per_weight,
            types=self.types,
            fallbacks=[tensor.name for tensor in self.fallbacks],
        )
        return values


@dataclass(frozen=True, slots=True, repr=False)
class QuantizePlan(_Outcome):
    """What quantizing would give, before anything is written.

    Attributes
    ----------
    needs_imatrix
        It would be refused without an importance matrix, and none was given.
    requantizes
        The source is quantized already, and some of its tensors would be quantized again.
    """

    needs_imatrix: bool = False
    requantizes: bool = False

    def __repr__(self) -> str:
        return views.text_of((self,))


@dataclass(frozen=True, slots=True, repr=False)
class QuantizeResult(_Outcome):
    """What quantizing gave.

    Attributes
    ----------
    path
        The new file; the first of its parts where it was kept split.
    paths
        All files.
    seconds
        Time that llama.cpp took.
    n_threads
        Threads it used.
    imatrix
        The importance matrix, None without one.
    provenance
        Keys that were set in the new file's metadata about how it was made.
    """

    path: Path = field(default_factory=Path)
    paths: tuple[Path, ...] = ()
    seconds: float = 0.0
    n_threads: int = 0
    imatrix: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return views.text_of((self,))

    def __fspath__(self) -> str:
        return str(self.path)


class _Several(Several):
    __slots__ = ()
    _views: ClassVar[Views] = views

    @staticmethod
    def _names(item: Any) -> tuple[str, ...]:
        return (item.ftype,)


@dataclass(frozen=True, slots=True, repr=False)
class QuantizePlans(_Several):
    """Plans of several types for one source."""

    items: tuple[QuantizePlan, ...]


@dataclass(frozen=True, slots=True, repr=False)
class QuantizeResults(_Several):
    """The files that were made of one source."""

    items: tuple[QuantizeResult, ...]
