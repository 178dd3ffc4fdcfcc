"""What the kernel asks a worker to do about quantizing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_magic.models.metadata import ModelMetadata

__all__ = ["PlanRequest", "QuantizeJob", "QuantizeOptions", "QuantizeRequest", "part_paths"]


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """The settings of llama-quantize, checked.

    Attributes
    ----------
    imatrix
        Importance matrix: absolute path; None without one.
    imatrix_name
        The path as it was given; llama-quantize writes it into the file.
    tensor_types
        Regular expressions on tensor names, each with the type of those that match; the first that matches holds.
    output_tensor_type, token_embedding_type
        Types of these tensors; None leaves them to the mixture.
    leave_output_tensor
        Do not quantize ``output.weight``.
    pure
        All tensors in one type, no mixture.
    prune_layers
        Layers to leave out.
    override_kv
        Metadata to set: key, kind ("int", "float", "bool" or "str") and value.
    allow_requantize
        Quantize what is quantized already.
    keep_split
        Write as many parts as the source has.
    n_threads
        Threads; None: as many as this container may use.
    """

    imatrix: str | None = None
    imatrix_name: str = ""
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    prune_layers: tuple[int, ...] = ()
    override_kv: tuple[tuple[str, str, Any], ...] = ()
    allow_requantize: bool = False
    keep_split: bool = False
    n_threads: int | None = None


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Tell what quantizing would give; the result is a tuple of `QuantizePlan`.

    Attributes
    ----------
    source
        The model's metadata: the kernel has read them, and reading goes past every word of the vocabulary.
    """

    source: ModelMetadata
    ftypes: tuple[str, ...]
    options: QuantizeOptions = QuantizeOptions()


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """One file to make.

    Attributes
    ----------
    ftype
        A name of the table.
    target
        Final name. With `keep_split`, that without the numbers of the parts.
    temporary
        Name while it is written, in the same folder.
    """

    ftype: str
    target: str
    temporary: str


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """Quantize one source to one or more types; the result is a tuple of `QuantizeResult`.

    Attributes
    ----------
    source
        The model's metadata, as in `PlanRequest`.
    better
        Files of the same model with more bits, which the kernel found, the best first; named in refusals and warnings.
    force
        Replace targets that are there.
    """

    source: ModelMetadata
    jobs: tuple[QuantizeJob, ...]
    options: QuantizeOptions = QuantizeOptions()
    better: tuple[str, ...] = ()
    force: bool = False


def part_paths(name: str, parts: int) -> list[Path]:
    """Return the files of a name: itself, or those that llama.cpp writes for so many parts (`llama_split_path`)."""
    if not parts:
        return [Path(name)]
    stem = name.removesuffix(".gguf")
    return [Path(f"{stem}-{number:05}-of-{parts:05}.gguf") for number in range(1, parts + 1)]
