"""Quantizing: the table of types, plans, and making the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from llama_magic.api.locate import locate
from llama_magic.engine.client import get_client
from llama_magic.engine.jobs import run_job
from llama_magic.engine.spare import prepare_spare
from llama_magic.errors import InvalidRequestError, JobInterrupted, ModelNotFoundError
from llama_magic.models.gguf import read_metadata
from llama_magic.models.metadata import ModelMetadata
from llama_magic.progress import Report
from llama_magic.quantization.ftypes import COPY, FtypeTable, find_ftype, find_tensor_type, is_float
from llama_magic.quantization.requests import (
    PlanRequest,
    QuantizeJob,
    QuantizeOptions,
    QuantizeRequest,
    part_paths,
)
from llama_magic.quantization.results import QuantizePlan, QuantizePlans, QuantizeResult, QuantizeResults
from llama_magic.quantization.sources import better_sources, output_name, remove_stale, temporary_name

__all__ = ["Overrides", "TensorTypes", "ftypes", "plan", "quantize"]

#: Types of tensors by a regular expression on their names, as a mapping or as ``"regex=type"``.
TensorTypes = Mapping[str, str] | Iterable[str]
#: Metadata to set, as a mapping or as ``"key=type:value"``.
Overrides = Mapping[str, int | float | bool | str] | Iterable[str]

_MOST_BYTES = 127  # of a key or a text: llama.h, `llama_model_kv_override`


def ftypes() -> FtypeTable:
    """Return the table of quantization types: bits per weight, family, need of a matrix, when to take which."""
    return FtypeTable()


@overload
def plan(
    src: str | os.PathLike[str],
    ftype: str,
    *,
    imatrix: str | os.PathLike[str] | None = ...,
    progress: Report | None = ...,
    **options: Any,
) -> QuantizePlan: ...
@overload
def plan(
    src: str | os.PathLike[str],
    ftype: Sequence[str],
    *,
    imatrix: str | os.PathLike[str] | None = ...,
    progress: Report | None = ...,
    **options: Any,
) -> QuantizePlans: ...
def plan(
    src: str | os.PathLike[str],
    ftype: str | Sequence[str],
    *,
    imatrix: str | os.PathLike[str] | None = None,
    progress: Report | None = None,
    **options: Any,
) -> QuantizePlan | QuantizePlans:
    """Tell what quantizing would give, without writing anything: llama.cpp's own dry run.

    Parameters
    ----------
    src
        The model: a file, ``owner/repo[:quant]`` on the Hub, or ``smollm2``.
    ftype
        A type, or several; with several the result is a sequence of plans.
    imatrix
        Importance matrix; some types choose other tensors with one.
    progress
        Called meanwhile.
    **options
        Settings of `quantize` that change the result: `pure`, `tensor_types` and so on.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, InvalidRequestError
    """
    source = locate(src, progress)
    metadata = read_metadata(source)
    checked = _options(metadata, imatrix, allow_requantize=True, **options)
    request: Any = PlanRequest(metadata, _names(ftype), checked)  # a job, but too short for a worker of its own
    found = get_client().request(request, progress)
    prepare_spare()  # what was planned is often done next
    return QuantizePlans(found) if not isinstance(ftype, str) else found[0]


@overload
def quantize(
    src: str | os.PathLike[str],
    ftype: str,
    dst: str | os.PathLike[str] | None = ...,
    imatrix: str | os.PathLike[str] | None = ...,
    **options: Any,
) -> QuantizeResult: ...
@overload
def quantize(
    src: str | os.PathLike[str],
    ftype: Sequence[str],
    dst: str | os.PathLike[str] | None = ...,
    imatrix: str | os.PathLike[str] | None = ...,
    **options: Any,
) -> QuantizeResults: ...
def quantize(
    src: str | os.PathLike[str],
    ftype: str | Sequence[str],
    dst: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    progress: Report | None = None,
    **options: Any,
) -> QuantizeResult | QuantizeResults:
    """Quantize a model as llama-quantize does, in a worker of its own.

    The new file is there as a whole or not at all. It is byte for byte what llama-quantize writes with the same
    settings.

    Parameters
    ----------
    src
        The model, best with unquantized weights: a file, ``owner/repo[:quant]`` on the Hub, or ``smollm2``.
    ftype
        A type (`ftypes` lists them), or several: then one worker makes all files.
    dst
        A file, or a folder. None: beside the source, or in the current folder where that is a cache or a package.
    imatrix
        Importance matrix, which `imatrix` makes. Types below three bits need one.
    force
        Overwrite files that are there.
    progress
        Called with every `Progress`.
    **options
        tensor_types
            Types of tensors by a regular expression on their names: ``{"attn_v": "Q8_0"}``.
        output_tensor_type, token_embedding_type
            Types of these tensors.
        leave_output_tensor
            Do not quantize ``output.weight``.
        pure
            All tensors in one type.
        prune_layers
            Numbers of layers to leave out.
        override_kv
            Metadata to set: ``{"general.name": "mine"}``.
        allow_requantize
            Quantize what is quantized already.
        keep_split
            As many files as the source has.
        n_threads
            Threads; None: as many as this container may use.

    Raises
    ------
    ModelNotFoundError, InvalidModelError
        The source can not be used.
    InvalidRequestError
        A setting can not be used, a file is there already, the source is quantized, or a matrix is needed.
    DiskFullError
        The files do not fit.
    EngineCrashed
        The worker died; nothing half-written is left.
    JobInterrupted
        The user stopped it; files that were finished are kept.
    """
    source = locate(src, progress)
    metadata = read_metadata(source)
    checked = _options(metadata, imatrix, **options)
    names = _names(ftype)
    targets = _targets(os.fspath(src), metadata, names, dst, several=not isinstance(ftype, str))
    parts = len(metadata.parts) if checked.keep_split else 0
    _check_targets(metadata, targets, parts, force=force)
    folder = targets[0].parent
    remove_stale(folder)
    jobs = tuple(
        QuantizeJob(name, str(target), str(temporary_name(target))) for name, target in zip(names, targets, strict=True)
    )
    request = QuantizeRequest(metadata, jobs, checked, _better(metadata, names, folder), force)
    made = _run(request, parts, progress)
    return QuantizeResults(made) if not isinstance(ftype, str) else made[0]


def _run(request: QuantizeRequest, parts: int, progress: Report | None) -> tuple[QuantizeResult, ...]:
    targets = {job.target: part_paths(job.target, parts)[0] for job in request.jobs}
    before = {name: _identity(path) for name, path in targets.items()}
    temporary = [path for job in request.jobs for path in part_paths(job.temporary, parts)]
    try:
        found: tuple[QuantizeResult, ...] = run_job(request, progress, partial=temporary)
    except JobInterrupted as stopped:
        made = stopped.result
        if made is not None and len(made) == len(request.jobs):
            raise JobInterrupted(QuantizeResults(made), "it was done already: what was asked for is there.") from None
        done = [path.name for name, path in targets.items() if _identity(path) != before[name]]
        if not done:
            raise
        result = None if made is None else QuantizeResults(made)
        raise JobInterrupted(result, f"stopped; {', '.join(done)} was finished, nothing half-done is left.") from None
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _names(ftype: str | Sequence[str]) -> tuple[str, ...]:
    words = [ftype] if isinstance(ftype, str) else list(ftype)
    if not words:
        raise InvalidRequestError("name a quantization type, for example Q4_K_M; %llama quantize --list shows all")
    return tuple(dict.fromkeys(find_ftype(word).name for word in words))


def _better(metadata: ModelMetadata, names: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    quantized = any(not is_float(tensor.type) for tensor in metadata.tensors)
    return better_sources(metadata, [folder, Path.cwd()]) if quantized and set(names) != {COPY} else ()


# -- where to --------------------------------------------------------------------------------------------


def _targets(
    given: str, metadata: ModelMetadata, names: tuple[str, ...], dst: str | os.PathLike[str] | None, *, several: bool
) -> list[Path]:
    if dst is not None:
        place = Path(dst).expanduser().absolute()
        if not place.is_dir() and place.suffix.lower() == ".gguf":
            if several:
                raise InvalidRequestError(f"several types need a folder, not one file: {dst}")
            return [place]
        if not place.is_dir():
            raise InvalidRequestError(f"there is no folder {dst}; make it first, or give a name that ends in .gguf")
    elif Path(given).expanduser().exists():
        place = Path(metadata.path).parent
    else:
        place = Path.cwd()  # the Hub's cache and packages are no place for new files
    return [place / output_name(metadata.path, name) for name in names]


def _check_targets(metadata: ModelMetadata, targets: list[Path], parts: int, *, force: bool) -> None:
    folder = targets[0].parent
    if not folder.is_dir():
        raise InvalidRequestError(f"there is no folder {str(folder)!r} to write {targets[0].name!r} to")
    if not os.access(folder, os.W_OK):
        raise InvalidRequestError(f"{folder} can not be written to; name another folder (--out DIR)")
    sources = [Path(path) for path in metadata.parts or (metadata.path,)]
    for target in targets:
        for path in part_paths(str(target), parts):
            if any(path.exists() and path.samefile(source) for source in sources):
                raise InvalidRequestError(f"{path} is the source itself; give the new file another name")
            if path.is_dir():
                raise InvalidRequestError(f"{path} is a folder; give the new file another name")
            if path.exists() and not force:
                raise InvalidRequestError(f"{path} exists; --force (force=True) overwrites it")


# -- options ---------------------------------------------------------------------------------------------


def _options(
    metadata: ModelMetadata,
    imatrix: str | os.PathLike[str] | None,
    *,
    tensor_types: TensorTypes = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    prune_layers: Iterable[int] = (),
    override_kv: Overrides = (),
    allow_requantize: bool = False,
    keep_split: bool = False,
    n_threads: int | None = None,
) -> QuantizeOptions:
    """Check the settings; unknown ones raise `TypeError` by themselves."""
    matrix = None if imatrix is None else Path(imatrix).expanduser().absolute()
    if matrix is not None and not matrix.is_file():
        raise ModelNotFoundError(f"there is no importance matrix {imatrix}; %llama imatrix MODEL makes one")
    if n_threads is not None and n_threads < 1:
        raise InvalidRequestError(f"n_threads is a number of 1 or more, or None; got {n_threads}")
    return QuantizeOptions(
        imatrix=None if matrix is None else str(matrix),
        imatrix_name="" if imatrix is None else os.fspath(imatrix),
        tensor_types=_tensor_types(tensor_types),
        output_tensor_type=None if output_tensor_type is None else find_tensor_type(output_tensor_type),
        token_embedding_type=None if token_embedding_type is None else find_tensor_type(token_embedding_type),
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        prune_layers=tuple(sorted(set(prune_layers))),
        override_kv=_overrides(override_kv),
        allow_requantize=allow_requantize,
        keep_split=keep_split and bool(metadata.parts),
        n_threads=n_threads,
    )


def _tensor_types(given: TensorTypes) -> tuple[tuple[str, str], ...]:
    pairs = given.items() if isinstance(given, Mapping) else [_pair(entry) for entry in _listed(given)]
    # llama-quantize reads patterns in small letters, too
    return tuple((pattern.lower(), find_tensor_type(name)) for pattern, name in pairs)


def _listed(given: Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _pair(entry: str) -> tuple[str, str]:
    pattern, equals, name = entry.partition("=")
    if not (pattern and equals and name):
        raise InvalidRequestError(f"--tensor-type takes REGEX=TYPE, for example attn_v=Q8_0; got {entry!r}")
    return pattern, name


def _overrides(given: Overrides) -> tuple[tuple[str, str, Any], ...]:
    if isinstance(given, Mapping):
        found: list[tuple[str, str, Any]] = [(key, _kind(value), value) for key, value in given.items()]
    else:
        found = [_parsed(entry) for entry in _listed(given)]
    for key, kind, value in found:
        if not key or len(key.encode()) > _MOST_BYTES:
            raise InvalidRequestError(f"--override-kv: the key {key[:40]!r} has to have 1 to {_MOST_BYTES} bytes")
        if kind == "str" and len(value.encode()) > _MOST_BYTES:
            raise InvalidRequestError(f"--override-kv: the text of {key} has more than {_MOST_BYTES} bytes")
        if kind == "int" and not 0 <= value < 1 << 32:
            raise InvalidRequestError(f"--override-kv: {key} is stored in 32 bits without a sign; {value} does not fit")
    return tuple(found)


def _kind(value: object) -> str:
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    found = kinds.get(type(value))
    if found is None:
        raise InvalidRequestError(f"metadata are numbers, texts and booleans; got {value!r}")
    return found


def _parsed(entry: str) -> tuple[str, str, Any]:
    """Read ``KEY=TYPE:VALUE`` as llama-quantize does."""
    key, _, rest = entry.partition("=")
    kind, colon, text = rest.partition(":")
    readers: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": {"true": True, "false": False}.get}
    try:
        value = readers[kind](text) if colon else None
    except (KeyError, ValueError):
        value = None
    if value is None:
        raise InvalidRequestError(
            f"--override-kv takes KEY=TYPE:VALUE with type int, float, bool or str, for example "
            f"general.name=str:mine; got {entry!r}"
        )
    return key, kind, value
