"""Converting: Hugging Face checkpoints and LoRA adapters become GGUF files, and smaller ones where types are given."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_magic.api.library import download_files
from llama_magic.api.quantize import quantize
from llama_magic.engine.jobs import run_job
from llama_magic.errors import DownloadError, InvalidRequestError, ModelNotFoundError
from llama_magic.models.hub_cache import snapshot_of
from llama_magic.models.references import (
    DEFAULT_MODEL,
    HubReference,
    expand_alias,
    explain_hub,
    from_address,
    parse_hub,
)
from llama_magic.progress import Report
from llama_magic.quantization.checkpoint import base_of, index_names, kind_of, read_config
from llama_magic.quantization.convert import (
    CheckRequest,
    Converted,
    ConvertRequest,
    ConvertResult,
    check_outtype,
)
from llama_magic.quantization.ftypes import OUTTYPES, find_ftype
from llama_magic.quantization.results import QuantizeResult
from llama_magic.quantization.sources import remove_stale, temporary_name
from llama_magic.suggest import did_you_mean

__all__ = ["convert", "convert_checkpoint"]

#: What a converter reads of a repository beside the weights. "!" leaves out again; the last that matches holds.
_SMALL = (
    "*.json", "*.txt", "*.model", "*.model.v*", "*.tiktoken", "*.jinja", "*.jsonl", "README.md", "LICENSE*",
    "!*/*", "?_*/config.json",
)  # fmt: skip
_WHAT = {"model": "", "mmproj": "mmproj-", "vocab": ""}
_FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def convert(
    ref: str | os.PathLike[str],
    outtype: str = "auto",
    *,
    out: str | os.PathLike[str] | None = None,
    mmproj: bool = False,
    vocab_only: bool = False,
    base: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    force: bool = False,
    progress: Report | None = None,
) -> Path:
    """Convert a Hugging Face checkpoint to a GGUF file with llama.cpp's own converter, and return the file.

    The converter is the one of the llama.cpp that the installed llama-cpp-python was built from; its source is
    fetched once. It needs the extra `convert` (torch, transformers). It runs in a process of its own without a
    network; nothing that a checkpoint brings is run.

    Parameters
    ----------
    ref
        A folder with config.json, a tokenizer and weights, or ``owner/repo[@revision]`` on the Hub. A folder or
        repository with a LoRA adapter (adapter_config.json) gives a file for `load(lora=…)`.
    outtype
        "f32", "f16", "bf16", "q8_0", or "auto": the checkpoint's own 16 bits (F32 for an adapter). Any other type of
        `ftypes` is made from these: "Q4_K_M" converts, quantizes and removes what was in between.
    out
        A file, or a folder. None: the current folder.
    mmproj
        Convert the projector for images or sound instead of the text model.
    vocab_only
        Convert only the vocabulary.
    base
        Folder or repository of the model that an adapter was trained on. None: what the adapter says.
    imatrix, n_threads
        As in `quantize`.
    force
        Overwrite files that are there.
    progress
        Called with every `Progress`.

    Raises
    ------
    MissingDependencyError
        The extra `convert` is not installed.
    ModelNotFoundError, InvalidModelError
        Something is missing in the checkpoint, or its architecture is unknown to this llama.cpp.
    DownloadError, DiskFullError, InvalidRequestError
    JobInterrupted
        It was stopped; nothing is there under the final name.
    """
    if outtype.lower() in OUTTYPES:
        types: tuple[str, ...] = ()
    else:
        types, outtype = (outtype,), "auto"
    return convert_checkpoint(
        ref,
        types,
        outtype=outtype,
        out=out,
        mmproj=mmproj,
        vocab_only=vocab_only,
        base=base,
        imatrix=imatrix,
        n_threads=n_threads,
        force=force,
        progress=progress,
    ).path


def convert_checkpoint(
    ref: str | os.PathLike[str],
    types: Sequence[str] = (),
    *,
    outtype: str = "auto",
    out: str | os.PathLike[str] | None = None,
    mmproj: bool = False,
    vocab_only: bool = False,
    base: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    force: bool = False,
    progress: Report | None = None,
) -> ConvertResult:
    """Do what `convert` does, to any number of types, and return all that is known of the files."""
    what = _what(mmproj=mmproj, vocab_only=vocab_only)
    names, outtype = _types(types, outtype, what)
    _check_matrix(names, imatrix)
    place = _Place(out, several=len(names) > 1)
    found = _find(os.fspath(ref))
    name = _name(found)
    folder = found if isinstance(found, Path) else _fetch(found, _SMALL, progress)
    adapter = kind_of(folder) == "adapter"
    taken = {} if force else place.taken(name, names, what, adapter=adapter)
    settings = None
    if adapter:
        if names:
            raise InvalidRequestError("a LoRA adapter is not quantized; --outtype f16, bf16 or q8_0 makes it smaller")
        settings = _base(base, folder, str(ref), progress)
    if isinstance(found, HubReference):
        # What is certain to fail fails before gigabytes are fetched.
        run_job(CheckRequest(str(folder), str(ref), what), progress)
        if what != "vocab":
            # of the same commit as what was checked
            folder = _fetch_weights(replace(found, revision=folder.name), folder, progress)
    remove_stale(place.folder)
    workspace = temporary_name(place.folder / f"{name}.gguf")
    workspace.mkdir()
    try:
        request = ConvertRequest(
            folder=str(folder),
            name=name,
            workspace=str(workspace),
            outtype=outtype,
            what=what,
            base=settings,
            room_bits=sum(find_ftype(one).bits for one in names),
            taken=taken,
        )
        made: Converted = run_job(request, progress)
        if not names:
            return _result(str(ref), made, place.give(made, name, force=force))
        temporary = Path(made.path).rename(workspace / f"{name}-{made.ftype}.gguf")
        options: dict[str, Any] = {"imatrix": imatrix, "n_threads": n_threads, "force": force, "progress": progress}
        quantized = (
            tuple(quantize(temporary, names, place.folder, **options))
            if place.file is None
            else (quantize(temporary, names[0], place.file, **options),)
        )
        quantized = tuple(replace(item, source=temporary.name) for item in quantized)
        return _result(str(ref), made, quantized[0].path, quantized)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _result(source: str, made: Converted, path: Path, quantized: tuple[QuantizeResult, ...] = ()) -> ConvertResult:
    return ConvertResult(
        source=source,
        kind=made.kind,
        architecture=made.architecture,
        path=path,
        ftype=made.ftype,
        size=made.size,
        source_size=made.source_size,
        n_params=made.n_weights,
        types=made.types,
        seconds=made.seconds,
        notes=made.notes,
        warnings=made.warnings,
        quantized=quantized,
    )


# -- what to make -----------------------------------------------------------------------------------------------------


def _what(*, mmproj: bool, vocab_only: bool) -> str:
    if mmproj and vocab_only:
        raise InvalidRequestError("--mmproj and --vocab-only make two different files; give one of them")
    return "mmproj" if mmproj else "vocab" if vocab_only else "model"


def _types(types: Sequence[str], outtype: str, what: str) -> tuple[tuple[str, ...], str]:
    """Return the types to quantize to, and the type to convert to."""
    outtype = check_outtype(outtype)
    names = tuple(dict.fromkeys(find_ftype(one).name for one in types))
    if names and what != "model":
        raise InvalidRequestError("a projector or a vocabulary is not quantized here; --outtype names its type")
    if len(names) == 1 and names[0] in _FLOATS and outtype in ("auto", _FLOATS[names[0]]):
        return (), _FLOATS[names[0]]
    if names and outtype == "q8_0":
        raise InvalidRequestError(f"{', '.join(names)} would be made of Q8_0, which lost something already; leave out "
                                  "--outtype, or take f16, bf16 or f32")  # fmt: skip
    if "F32" in names and outtype == "auto":
        outtype = "f32"  # 16 bits in between would lose what F32 is asked for
    return names, outtype


def _check_matrix(names: tuple[str, ...], imatrix: str | os.PathLike[str] | None) -> None:
    """Refuse before the long work what quantizing would refuse after it."""
    needy = [name for name in names if find_ftype(name).imatrix == "needed"]
    if needy and imatrix is None:
        raise InvalidRequestError(
            f"{', '.join(needy)} needs an importance matrix, and that needs a converted model: %llama convert without "
            "a type, %llama imatrix, then %llama quantize"
        )
    if imatrix is not None and not Path(imatrix).expanduser().is_file():
        raise ModelNotFoundError(f"there is no importance matrix {os.fspath(imatrix)}; %llama imatrix makes one")


def _name(found: Path | HubReference) -> str:
    """Return the name of what is made: the repository's or the folder's."""
    if isinstance(found, HubReference):
        return found.repo.split("/")[1]
    if found.parent.name == "snapshots" and found.parent.parent.name.startswith("models--"):
        return found.parent.parent.name.split("--")[-1]  # a folder in the Hub's cache is named by its commit
    return found.name or "model"


class _Place:
    """Where files go: a folder, or one file in it."""

    def __init__(self, out: str | os.PathLike[str] | None, *, several: bool) -> None:
        self.file: Path | None = None
        self.folder = Path.cwd() if out is None else Path(out).expanduser().absolute()
        if not self.folder.is_dir() and self.folder.suffix.lower() == ".gguf":
            self.file, self.folder = self.folder, self.folder.parent
            if several:
                raise InvalidRequestError(f"several types need a folder, not one file: {out}")
        if not self.folder.is_dir():
            raise InvalidRequestError(f"there is no folder {str(self.folder)!r}; make it first, or name a .gguf file")
        if not os.access(self.folder, os.W_OK):
            raise InvalidRequestError(f"{self.folder} can not be written to; name another folder (--out DIR)")

    def path(self, name: str, ftype: str, what: str, *, adapter: bool = False) -> Path:
        """Return the final name of a file."""
        if self.file is not None:
            return self.file
        if what == "vocab":
            return self.folder / f"{name}-vocab.gguf"
        middle = "-lora" if adapter and "lora" not in name.lower() else ""
        return self.folder / f"{_WHAT[what]}{name}{middle}-{ftype}.gguf"

    def taken(self, name: str, names: tuple[str, ...], what: str, *, adapter: bool) -> dict[str, str]:
        """Return what is there already, by type; raise where it is certain that it would be overwritten."""
        sure = self.file is not None or what == "vocab"
        for ftype in ("",) if sure else names:
            path = self.path(name, ftype, what)
            if path.exists():
                raise InvalidRequestError(f"{path} exists; --force (force=True) overwrites it")
        if sure or names:
            return {}
        paths = {ftype: self.path(name, ftype, what, adapter=adapter) for ftype in ("F32", "F16", "BF16", "Q8_0")}
        return {ftype: str(path) for ftype, path in paths.items() if path.exists()}

    def give(self, made: Converted, name: str, *, force: bool) -> Path:
        """Give the finished file its final name."""
        what = "model" if made.kind == "adapter" else made.kind
        path = self.path(name, made.ftype, what, adapter=made.kind == "adapter")
        if path.is_dir():
            raise InvalidRequestError(f"{path} is a folder; give the new file another name")
        if path.exists() and not force:
            raise InvalidRequestError(f"{path} has come into being meanwhile; --force overwrites it")
        return Path(made.path).replace(path)


# -- where it comes from ----------------------------------------------------------------------------------------------


def _find(ref: str) -> Path | HubReference:
    """Return the folder or the repository that a reference means."""
    word = expand_alias(ref.strip())
    path = Path(word).expanduser()
    if not word.startswith("hf:") and path.is_dir():
        return Path(os.path.abspath(path))  # noqa: PTH100 - a link's own name is the model's
    if word.lower() == DEFAULT_MODEL or path.is_file():
        raise InvalidRequestError(_no_checkpoint(word, path))
    hub = parse_hub(word)
    if hub is not None and hub.file is None and hub.quant is None:
        return hub
    if hub is not None:
        raise InvalidRequestError(f"{ref} names a GGUF file, which needs no converting; a checkpoint is {hub.repo}")
    address = from_address(word)
    if address is not None:
        raise ModelNotFoundError(f"there is no folder {ref!r}. For this page of the Hub type {address}")
    if word.startswith("hf:"):
        raise ModelNotFoundError(explain_hub(word))
    near = did_you_mean(path.name, [entry.name for entry in _folders(path.parent)])
    raise ModelNotFoundError(f"there is no folder {ref!r}.{near} Give a folder with a config.json, or owner/repo.")


def _no_checkpoint(word: str, path: Path) -> str:
    if word.lower() == DEFAULT_MODEL or path.suffix.lower() == ".gguf":
        return f"{word} is a GGUF file already; %llama quantize makes smaller ones of it"
    return f"{word} is a file; name the folder of the checkpoint: {path.parent}"


def _folders(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _fetch(reference: HubReference, patterns: tuple[str, ...], progress: Report | None) -> Path:
    """Bring files of a repository here; where the Hub can not be asked, what is in the cache has to do."""
    try:
        return download_files(reference.repo, patterns, revision=reference.revision, progress=progress)
    except DownloadError:
        snapshot = snapshot_of(reference.repo, reference.revision)
        if snapshot is None:
            raise
        return snapshot


def _fetch_weights(reference: HubReference, folder: Path, progress: Report | None) -> Path:
    """Bring the weights here: safetensors where there are any, and no copies of them in other formats."""
    if kind_of(folder) == "adapter":
        choices: list[tuple[str, ...]] = [("adapter_model.safetensors",), ("adapter_model.bin",)]
    else:
        choices = [("model*.safetensors", "!*/*"), ("pytorch_model*.bin", "!*/*")]
    listed = index_names(folder)
    if listed:
        choices = [tuple(glob.escape(name) for name in listed)]
    for choice in choices[:-1]:
        try:
            return _fetch(reference, choice, progress)
        except ModelNotFoundError:
            continue
    return _fetch(reference, choices[-1], progress)


def _base(given: str | os.PathLike[str] | None, folder: Path, adapter: str, progress: Report | None) -> str:
    """Return the folder with the settings of the model that an adapter was trained on."""
    told = base_of(read_config(folder, "adapter")) if given is None else os.fspath(given)
    if not told:
        raise InvalidRequestError(f"{adapter} does not say which model it was trained on: --base DIR_OR_REPO does")
    try:
        found = _find(told)
    except (ModelNotFoundError, InvalidRequestError) as exc:
        if given is not None:
            raise
        raise ModelNotFoundError(
            f"{adapter} was trained on {told!r}, which is not here; --base DIR_OR_REPO names it ({exc})"
        ) from None
    return str(found if isinstance(found, Path) else _fetch(found, _SMALL, progress))
