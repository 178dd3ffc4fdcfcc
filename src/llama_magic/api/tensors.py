"""Looking at single tensors: the microscope, and errors of a quantized file against its source."""

from __future__ import annotations

import os
from pathlib import Path

from llama_magic.api.locate import locate
from llama_magic.engine.jobs import run_job
from llama_magic.errors import InvalidRequestError
from llama_magic.progress import Report
from llama_magic.quantization.ftypes import find_tensor_type
from llama_magic.quantization.microscope import Microscope, MicroscopeRequest
from llama_magic.quantization.tensor_errors import TensorErrors, TensorErrorsRequest

__all__ = ["microscope", "tensor_errors"]


def microscope(
    ref: str | os.PathLike[str],
    tensor: str,
    ftype: str,
    *,
    block: int = 0,
    imatrix: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    progress: Report | None = None,
) -> Microscope:
    """Quantize one tensor and look closely at one of its blocks.

    Nothing is written. llama.cpp's own functions quantize and decode; the block is taken apart by its layout.

    Parameters
    ----------
    ref
        The model, best with unquantized weights.
    tensor
        Its name, such as ``"blk.0.ffn_down.weight"``; ``.weight`` may be left out.
    ftype
        A tensor type, such as "Q4_K", or a file's, such as "Q4_K_M": then the type that most tensors get.
    block
        Which block, from 0; negative numbers count from the end.
    imatrix
        Importance matrix to quantize with.
    n_threads
        Threads; None: as many as this container may use.
    progress
        Called with every `Progress`.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, InvalidRequestError
    JobInterrupted
        It was stopped.
    """
    matrix = None
    if imatrix is not None:
        path = Path(imatrix).expanduser().absolute()
        if not path.is_file():
            raise InvalidRequestError(f"there is no importance matrix {str(imatrix)!r}; %llama imatrix makes one")
        matrix = str(path)
    request = MicroscopeRequest(
        locate(ref, progress), tensor, find_tensor_type(ftype), ftype.strip().upper(), block, matrix, n_threads
    )
    seen = run_job(request, progress)
    assert isinstance(seen, Microscope)
    return seen


def tensor_errors(
    quantized: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    n_threads: int | None = None,
    progress: Report | None = None,
) -> TensorErrors:
    """Return how far each tensor of a quantized file is from its source.

    Both files are read in pieces; neither is ever in memory as a whole.

    Parameters
    ----------
    quantized, source
        The two models. Tensors are paired by name.
    n_threads
        Threads; None: as many as this container may use.
    progress
        Called with every `Progress`.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, InvalidRequestError
    JobInterrupted
        It was stopped.
    """
    request = TensorErrorsRequest(locate(quantized, progress), locate(source, progress), n_threads)
    found = run_job(request, progress)
    assert isinstance(found, TensorErrors)
    return found
