"""Importance matrices: collect them, and add them up."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_magic.api.backends import setup_of
from llama_magic.api.files import check_writable
from llama_magic.api.locate import locate
from llama_magic.api.texts import TextLike, text_part
from llama_magic.engine.jobs import run_job
from llama_magic.errors import InvalidRequestError, JobInterrupted
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.progress import Report
from llama_magic.quantization.imatrix import (
    CALIBRATION,
    CALIBRATION_NAME,
    ImatrixRequest,
    ImatrixResult,
    ImatrixStopped,
    resume_path,
    temporary_paths,
)
from llama_magic.quantization.texts import TextPart

__all__ = ["TextLike", "collect_imatrix", "imatrix"]


def imatrix(
    ref: str | None,
    text: TextLike | Sequence[TextLike] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    n_ctx: int | None = None,
    chunks: int | None = None,
    from_chunk: int = 0,
    in_files: Sequence[str | os.PathLike[str]] = (),
    process_output: bool = False,
    parse_special: bool = False,
    perplexity: bool = True,
    output_frequency: int = 10,
    save_frequency: int = 0,
    force: bool = False,
    progress: Report | None = None,
    **loading: Any,
) -> Path:
    """Collect an importance matrix, as llama-imatrix does, and return its file.

    The model reads a text, and for each weight it is recorded how large the numbers are that its columns are
    multiplied with. Quantizing then spares the columns that matter; types below three bits need it.

    A call that was stopped, or died, can be made again: with the same model, text and settings it goes on where the
    other was. A file that the same call made before is returned at once.

    Parameters
    ----------
    ref
        The model, best with unquantized weights. None: only add up `in_files`.
    text
        What it reads: a string, a `Path`, or several of them. None: the calibration text that comes with llama_magic,
        60 kB of prose, dialogue, code, mathematics, tables and a dozen languages. It reaches all parts of a model and
        is a fair start; for a model with one trade, a few hundred kB of texts of that trade are better.
    out
        File to write. None: the model's name with ``.imatrix.gguf`` in the current folder.
    n_ctx
        Tokens in a chunk. None: 512.
    chunks, from_chunk
        Most chunks to read (None: all), and chunks to leave out at the start.
    in_files
        Matrices to start from, of the GGUF or the older .dat format.
    process_output
        Collect for the output matrix, too.
    parse_special
        Read texts such as ``<|im_start|>`` as the tokens they name.
    perplexity
        Compute the perplexity of the text on the way.
    output_frequency
        Chunks after which the state is kept that another call can go on from.
    save_frequency
        Chunks after which a copy is written as ``….at_N``; 0: never.
    force
        Overwrite a file that was made otherwise, and load a model that seems not to fit into memory.
    progress
        Called with every `Progress`.
    **loading
        Load options, such as `n_threads`, `n_batch` and `n_gpu_layers`.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, InvalidRequestError, OutOfMemoryError
    JobInterrupted
        It was stopped; nothing is there under the final name.
    """
    return collect_imatrix(
        ref,
        text,
        out=out,
        n_ctx=n_ctx,
        chunks=chunks,
        from_chunk=from_chunk,
        in_files=in_files,
        process_output=process_output,
        parse_special=parse_special,
        perplexity=perplexity,
        output_frequency=output_frequency,
        save_frequency=save_frequency,
        force=force,
        progress=progress,
        **loading,
    ).path


def collect_imatrix(
    ref: str | ModelSpec | None,
    text: TextLike | Sequence[TextLike] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    n_ctx: int | None = None,
    in_files: Sequence[str | os.PathLike[str]] = (),
    progress: Report | None = None,
    **keywords: Any,
) -> ImatrixResult:
    """Do what `imatrix` does, and return all that is known of the file, with what the matrix covers.

    A `ModelSpec` as `ref` brings its load options along; its context length does not count.
    """
    settings = {name: keywords.pop(name) for name in _SETTINGS if name in keywords}
    options = LoadOptions.from_keywords(**keywords)
    model: str | None = None
    name = ""
    if isinstance(ref, ModelSpec):
        model, name, options = ref.path, ref.ref, ref.options
    elif ref is not None:
        model, name = locate(ref, progress), ref
    options = options.replace(n_ctx=512 if n_ctx is None else n_ctx)
    target = _target(out, model)
    request = ImatrixRequest(
        model=model,
        ref=name,
        out=str(target),
        texts=() if model is None else _texts(text),
        options=options,
        n_ctx_given=n_ctx is not None,
        in_files=tuple(str(Path(path).expanduser().absolute()) for path in in_files),
        token=secrets.token_hex(4),
        **settings,
    )
    try:
        result = run_job(request, progress, partial=temporary_paths(request), setup=setup_of(options))
    except JobInterrupted as stopped:
        result = stopped.result
        if isinstance(result, ImatrixResult):
            raise JobInterrupted(result, f"it was done already: {target.name} is there.") from None
        if result is None and resume_path(target).exists():
            words = (
                f"stopped; what was kept last is in {resume_path(target).name}, and the same call goes on from there."
            )
            raise JobInterrupted(None, words) from None
        if result is None:
            raise
    if isinstance(result, ImatrixStopped):
        raise JobInterrupted(result, str(result))
    assert isinstance(result, ImatrixResult)
    return result


_SETTINGS = tuple(
    "chunks from_chunk process_output parse_special perplexity output_frequency save_frequency force".split()
)


def _target(out: str | os.PathLike[str] | None, model: str | None) -> Path:
    if out is None:
        if model is None:
            raise InvalidRequestError("adding matrices up needs a file to write: out='sum.gguf' (-o sum.gguf)")
        stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", Path(model).name)
        out = f"{stem}.imatrix.gguf"
    target = Path(out).expanduser().absolute()
    check_writable(target)
    if model is not None and target.exists() and target.samefile(model):
        raise InvalidRequestError(f"{target} is the model itself; give the matrix another name")
    return target


def _texts(text: TextLike | Sequence[TextLike] | None) -> tuple[TextPart, ...]:
    if text is None:
        return (TextPart(CALIBRATION_NAME, str(CALIBRATION)),)
    parts = [text] if isinstance(text, (str, os.PathLike)) else list(text)
    if not parts:
        raise InvalidRequestError("there is no text to read; text=None takes the calibration text of llama_magic")
    return tuple(map(text_part, parts))
