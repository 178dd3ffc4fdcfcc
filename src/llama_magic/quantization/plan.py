"""Tell what quantizing would give, from llama.cpp's dry run. Runs in the worker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llama_magic.models.metadata import ModelMetadata
from llama_magic.native.gguf_size import header_sizes
from llama_magic.native.quantize import TensorLog, quantize
from llama_magic.native.tools import WorkerTools
from llama_magic.progress import Progress
from llama_magic.quantization.failures import failure
from llama_magic.quantization.ftypes import COPY, is_float
from llama_magic.quantization.requests import PlanRequest, QuantizeOptions
from llama_magic.quantization.results import QuantizePlan, TensorChoice
from llama_magic.quantization.settings import Prepared, choices, prepare, size_notes

__all__ = ["planned", "requantized", "run"]

_ALIGNMENT = 32


def run(request: PlanRequest, tools: WorkerTools) -> tuple[QuantizePlan, ...]:
    """Plan every type of the request."""
    metadata = request.source
    prepared = prepare(request.options, metadata)
    plans = []
    for place, ftype in enumerate(request.ftypes):
        tools.report(Progress("plan", place / len(request.ftypes), f"planning {ftype}"))
        plans.append(planned(metadata, ftype, prepared, request.options, tools))
    return tuple(plans)


def planned(
    metadata: ModelMetadata, ftype: str, prepared: Prepared, options: QuantizeOptions, tools: WorkerTools
) -> QuantizePlan:
    """Let llama.cpp choose the type of every tensor, and add up what the file would take.

    Raises
    ------
    LlamaMagicError
        llama.cpp refuses.
    """
    told = TensorLog()
    tools.log.clear()
    if not quantize(metadata.path, "", prepared.of(ftype, dry_run=True), tools.log, told):
        raise failure(tools.log, ftype, Path(metadata.path), metadata.ftype)
    tensors = choices(told)
    return QuantizePlan(
        source=metadata.path,
        ftype=ftype,
        size=_file_size(metadata, tensors, prepared, options),
        source_size=metadata.file_size,
        tensors=tensors,
        notes=(*size_notes(ftype, tensors, options), *prepared.notes),
        needs_imatrix=told.requires_imatrix,
        requantizes=ftype != COPY and requantized(tensors) is not None,
    )


def requantized(tensors: Iterable[TensorChoice]) -> TensorChoice | None:
    """Return a tensor that is quantized in the source and would be again, None where there is none."""
    return next((t for t in tensors if t.type != t.source_type and not is_float(t.source_type)), None)


def _file_size(
    metadata: ModelMetadata, tensors: tuple[TensorChoice, ...], prepared: Prepared, options: QuantizeOptions
) -> int:
    """Return the bytes of the new file, all its parts together: llama.cpp's own header, and the padded tensors."""
    parts: list[list[TensorChoice]] = [[]]
    if options.keep_split and metadata.parts:
        # llama.cpp goes through the parts in their order; pruning changes names, so places are counted
        homes = _homes(metadata, options)
        parts = [[] for _ in metadata.parts]
        for tensor, home in zip(tensors, homes, strict=True):
            parts[home].append(tensor)
    else:
        parts[0] = list(tensors)
    outlines = [[(tensor.name, tensor.shape) for tensor in part] for part in parts]
    headers = header_sizes(metadata.path, outlines, prepared.settings.kv_overrides)
    return sum(headers) + sum(-(-tensor.size // _ALIGNMENT) * _ALIGNMENT for tensor in tensors)


def _homes(metadata: ModelMetadata, options: QuantizeOptions) -> list[int]:
    pruned = tuple(f"blk.{layer}." for layer in options.prune_layers)
    kept = [tensor for tensor in metadata.tensors if not (pruned and tensor.name.startswith(pruned))]
    return [tensor.part for tensor in sorted(kept, key=lambda tensor: (tensor.part, tensor.offset))]
