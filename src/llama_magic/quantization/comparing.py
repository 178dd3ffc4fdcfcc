# ruff: noqa: RUF001 - the sign of multiplication is meant
"""The worker's side of comparing a quantized file with its source, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

from llama_magic.backends.host import default_threads
from llama_magic.errors import InvalidRequestError, JobInterrupted
from llama_magic.models.metadata import TensorInfo
from llama_magic.native.tools import WorkerTools
from llama_magic.progress import Progress
from llama_magic.quantization.error_sums import ErrorSums
from llama_magic.quantization.tensor_errors import TensorError, TensorErrors, TensorErrorsRequest
from llama_magic.quantization.tensor_file import TensorFile, map_ahead, row_pieces

__all__ = ["run"]


def run(request: TensorErrorsRequest, tools: WorkerTools) -> TensorErrors:
    """Read both files in pieces, and add up the errors of each tensor."""
    with TensorFile(request.quantized) as target, TensorFile(request.source) as source:
        both = [name for name in target.tensors if name in source.tensors]
        _check(target, source, both)
        pieces = [(name, *piece) for name in both for piece in row_pieces(target.tensors[name])]

        def work(piece: tuple[str, int, int]) -> tuple[str, ErrorSums] | None:
            if tools.cancelled():
                return None
            name, start, stop = piece
            before = source.rows(source.tensors[name], start, stop)
            return name, ErrorSums.of(before, target.rows(target.tensors[name], start, stop))

        sums = {name: ErrorSums() for name in both}
        total = ErrorSums()
        weights = sum(target.tensors[name].n_params for name in both)
        for done in map_ahead(work, pieces, request.n_threads or default_threads()):
            if done is None or tools.cancelled():
                raise JobInterrupted(None, "stopped; nothing was written.")
            name, piece_sums = done
            sums[name].add(piece_sums)
            total.add(piece_sums)
            tools.report(Progress("errors", total.count / max(weights, 1), f"comparing {name}"))
        return TensorErrors(
            request.quantized,
            request.source,
            tuple(_entry(target.tensors[name], source.tensors[name], sums[name]) for name in both),
            total.stats(),
            tuple(name for name in source.tensors if name not in target.tensors),
            tuple(name for name in target.tensors if name not in source.tensors),
        )


def _entry(target: TensorInfo, source: TensorInfo, sums: ErrorSums) -> TensorError:
    return TensorError(target.name, target.shape, source.type, target.type, target.size, sums.stats())


def _check(target: TensorFile, source: TensorFile, both: list[str]) -> None:
    names = Path(target.metadata.path).name, Path(source.metadata.path).name
    if not both:
        raise InvalidRequestError(f"{names[0]} and {names[1]} have no tensor in common: these are different models")
    for name in both:
        shapes = target.tensors[name].shape, source.tensors[name].shape
        if shapes[0] != shapes[1]:
            raise InvalidRequestError(
                f"{name} is {' × '.join(map(str, shapes[0]))} in {names[0]} and {' × '.join(map(str, shapes[1]))} in "
                f"{names[1]}: these are different models"
            )
