"""Quantize a file to one or more types. Runs in the worker.

What is written has a temporary name in the folder of the target, and gets its final name when it is whole.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_magic.errors import DiskFullError, InvalidRequestError, JobInterrupted, NativeError
from llama_magic.models.gguf import read_metadata
from llama_magic.models.metadata import TENSOR_TYPES, ModelMetadata
from llama_magic.native.gguf_size import stored_types
from llama_magic.native.quantize import TensorLog, quantize
from llama_magic.native.tools import WorkerTools
from llama_magic.progress import Progress, Report
from llama_magic.quantization.failures import disk_failure, failure, refused_requantizing
from llama_magic.quantization.ftypes import COPY, is_float
from llama_magic.quantization.plan import planned, requantized
from llama_magic.quantization.requests import QuantizeJob, QuantizeRequest, part_paths
from llama_magic.quantization.results import QuantizeResult, TensorChoice
from llama_magic.quantization.settings import Prepared, choices, prepare, size_notes
from llama_magic.units import format_bytes

__all__ = ["run"]

#: Seconds between two reports.
_REPORT_S = 0.05
#: Bytes per weight of the largest type, and room for metadata that grow.
_LARGEST = 4
_ROOM = 1 << 20


def run(request: QuantizeRequest, tools: WorkerTools) -> tuple[QuantizeResult, ...]:
    """Make every file of the request."""
    metadata = request.source
    prepared = prepare(request.options, metadata)
    warnings = _check_source(request, metadata, prepared, tools)
    _check_disk(request, metadata, prepared, tools)
    made: list[QuantizeResult] = []
    try:
        for place, job in enumerate(request.jobs):
            if tools.cancelled():
                raise JobInterrupted(tuple(made) or None)
            report = _share(tools.report, place, len(request.jobs))
            made.append(_make(request, job, metadata, prepared, warnings, tools, report))
    finally:
        _remove(request)
    return tuple(made)


def _share(report: Report, place: int, count: int) -> Report:
    def part(progress: Progress) -> None:
        report(Progress(progress.stage, (place + (progress.fraction or 0.0)) / count, progress.message))

    return part


# -- before anything is written ---------------------------------------------------------------------------------------


def _check_source(
    request: QuantizeRequest, metadata: ModelMetadata, prepared: Prepared, tools: WorkerTools
) -> tuple[str, ...]:
    """Refuse to quantize again what is quantized already, as llama.cpp does, but before it began; or warn."""
    if all(is_float(tensor.type) for tensor in metadata.tensors):
        return ()
    for job in request.jobs:
        again = None
        if job.ftype != COPY:
            again = requantized(planned(metadata, job.ftype, prepared, request.options, tools).tensors)
        if again is None:
            continue
        from llama_magic.quantization.origin import made_from

        better = next((path for path in request.better if not made_from(read_metadata(path), metadata)), None)
        if not request.options.allow_requantize:
            raise refused_requantizing(metadata.ftype, job.ftype, better)
        offer = f" {better} has more bits and would be a better source." if better else ""
        return (f"The source was quantized already ({metadata.ftype}): what it lost stays lost.{offer}",)
    return ()


def _check_disk(request: QuantizeRequest, metadata: ModelMetadata, prepared: Prepared, tools: WorkerTools) -> None:
    """Refuse what will not fit; sizes are computed only where space is short."""
    folder = Path(request.jobs[0].target).parent
    free = shutil.disk_usage(folder).free
    most = metadata.n_params * _LARGEST + metadata.data_offset + _ROOM
    if free > most * len(request.jobs):
        return
    need = sum(planned(metadata, job.ftype, prepared, request.options, tools).size for job in request.jobs)
    if need > free:
        types = ", ".join(job.ftype for job in request.jobs)
        raise DiskFullError(
            f"{types} takes {format_bytes(need)}, but {folder} has {format_bytes(free)} free: "
            f"{format_bytes(need - free)} more are needed. Free some space, or name another folder (--out DIR)."
        )


# -- one file ---------------------------------------------------------------------------------------------------------


def _make(
    request: QuantizeRequest,
    job: QuantizeJob,
    metadata: ModelMetadata,
    prepared: Prepared,
    warnings: tuple[str, ...],
    tools: WorkerTools,
    report: Report,
) -> QuantizeResult:
    parts = len(metadata.parts) if request.options.keep_split else 0
    temporary, target = part_paths(job.temporary, parts), part_paths(job.target, parts)
    told = TensorLog(_progress(job.ftype, metadata, report))
    settings = prepared.of(job.ftype)
    tools.log.clear()
    report(Progress("quantize", 0.0, f"{job.ftype}: reading {Path(metadata.path).name}"))
    started = time.perf_counter()
    worked = quantize(metadata.path, job.temporary, settings, tools.log, told)
    seconds = time.perf_counter() - started
    if not worked:
        raise failure(tools.log, job.ftype, target[0], metadata.ftype)
    size = sum(path.stat().st_size for path in temporary)
    tensors = choices(told)
    if sum(tensor.size for tensor in tensors) > size:
        raise disk_failure(target[0])  # llama.cpp has not noticed that its last write failed
    _verify(temporary, tensors)
    _rename(temporary, target, force=request.force)
    return QuantizeResult(
        source=metadata.path,
        ftype=job.ftype,
        size=size,
        source_size=metadata.file_size,
        tensors=tensors,
        notes=(*size_notes(job.ftype, tensors, request.options), *prepared.notes),
        warnings=warnings,
        path=target[0],
        paths=tuple(target),
        seconds=seconds,
        n_threads=settings.n_threads,
        imatrix=request.options.imatrix_name or None,
        provenance=prepared.provenance,
    )


def _progress(ftype: str, metadata: ModelMetadata, report: Report) -> Callable[[int, int, str], None]:
    """Return what is called before each tensor: the fraction is that of the weights that are done."""
    weights = {tensor.name: tensor.n_params for tensor in metadata.tensors}
    total = max(1, sum(weights.values()))
    done = 0
    current = 0
    last = 0.0

    def on_tensor(at: int, count: int, name: str) -> None:
        nonlocal done, current, last
        done += current
        # a pruned model's layers have new numbers: then the tensor's place has to do
        current = weights.get(name, total // max(1, count))
        now = time.perf_counter()
        if now - last >= _REPORT_S or at in (1, count):
            last = now
            report(Progress("quantize", min(done / total, 1.0), f"{ftype}: tensor {at} of {count}, {name}"))

    return on_tensor


def _verify(paths: Sequence[Path], tensors: Sequence[TensorChoice]) -> None:
    """Read the new file's header: it has to hold what the log told."""
    numbers = {name: kind for path in paths for name, kind in stored_types(str(path)).items()}
    written = {name: TENSOR_TYPES[kind][0] for name, kind in numbers.items()}
    if written != {tensor.name: tensor.type for tensor in tensors}:
        raise NativeError("the file that llama.cpp wrote differs from what its log tells; please report this")


def _rename(temporary: Sequence[Path], target: Sequence[Path], *, force: bool) -> None:
    """Give the files their final names, the first part last: a model is looked for by that one."""
    for path in target:
        if path.exists() and not force:
            raise InvalidRequestError(f"{path} has come into being meanwhile; --force overwrites it")
    for old, new in reversed(list(zip(temporary, target, strict=True))):
        os.replace(old, new)  # noqa: PTH105 - the name says that it replaces


def _remove(request: QuantizeRequest) -> None:
    """Remove what has a temporary name."""
    for job in request.jobs:
        for path in Path(job.temporary).parent.glob(f"{_escaped(Path(job.temporary).name)}*"):
            path.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)
