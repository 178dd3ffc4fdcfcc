"""Convert a checkpoint with llama.cpp's own converter. Runs in the worker; the converter in a process below it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_magic.errors import DiskFullError, InvalidModelError, InvalidRequestError, NativeError
from llama_magic.models.gguf import read_metadata
from llama_magic.models.metadata import FTYPES
from llama_magic.models.source import CONVERTER, llama_cpp_source
from llama_magic.native.tools import WorkerTools
from llama_magic.progress import Progress
from llama_magic.quantization.checkpoint import (
    ADAPTER_CONFIG,
    Checkpoint,
    architectures_of,
    base_of,
    has_tokenizer,
    kind_of,
    read_checkpoint,
    read_config,
)
from llama_magic.quantization.convert import CheckRequest, Converted, ConvertRequest
from llama_magic.quantization.convert_failures import converter_failure, no_tokenizer, unsupported
from llama_magic.quantization.converter import ConverterError, check_installed, known_architectures, run_converter
from llama_magic.units import format_bytes

__all__ = ["check", "run"]

#: The first torch whose ``weights_only`` holds (CVE-2025-32434).
_SAFE_TORCH = (2, 6)
#: Room for the metadata: a vocabulary takes a few MB.
_ROOM = 16 << 20
#: Warnings that are shown, and characters of each.
_MOST_WARNINGS, _LONGEST = 5, 200
#: Most of what the converter warns of is of no consequence ("Unknown RoPE type: default"); this is.
_WORTH = re.compile(r"falling back|not recognized|may be (?:wrong|incorrect|degraded)")
#: Seconds between two reports.
_REPORT_S = 0.05


def check(request: CheckRequest, tools: WorkerTools) -> None:
    """Look whether a checkpoint can be converted, before its weights are fetched."""
    source = _prepare(tools)
    _architecture(read_checkpoint(Path(request.folder), weights=False), source, request.name, request.what)


def _prepare(tools: WorkerTools) -> Path:
    check_installed()
    return llama_cpp_source(CONVERTER, tools.report, tools.cancelled)


def _architecture(checkpoint: Checkpoint, source: Path, name: str, what: str) -> str:
    """Return the architecture by which the converter knows a checkpoint; empty for an adapter."""
    if checkpoint.kind == "adapter":
        if what != "model":
            raise InvalidRequestError(f"{name} is a LoRA adapter: it has neither a projector nor a vocabulary")
        base_of(checkpoint.config)  # refuses other kinds of adapters
        return ""
    known = known_architectures(source)
    kind = "mmproj" if what == "mmproj" else "model"
    names = checkpoint.projectors if kind == "mmproj" else checkpoint.architectures
    found = next((one for one in names if one in known[kind]), None)
    if found is None:
        own = names[-1] if names else ""
        if kind == "model" and not known["mmproj"].isdisjoint(names):
            raise InvalidModelError(f"of {own} only the projector can be converted: add --mmproj")
        if kind == "mmproj" and not known["model"].isdisjoint(names):
            raise InvalidModelError(
                f"{own} has no projector for images or sound that llama.cpp knows: leave --mmproj out"
            )
        raise unsupported(own, known[kind], kind)
    if kind == "model" and not has_tokenizer(checkpoint.folder, names):
        raise no_tokenizer(name)
    return found


# -- converting -------------------------------------------------------------------------------------------------------


def run(request: ConvertRequest, tools: WorkerTools) -> Converted:
    """Convert a checkpoint into a file in the workspace."""
    source = _prepare(tools)
    folder = Path(request.folder)
    checkpoint = read_checkpoint(folder, weights=request.what != "vocab")
    architecture = _architecture(checkpoint, source, request.name, request.what)
    if checkpoint.kind == "adapter":
        architecture = _base_architecture(request, source)
    _check_pickle(checkpoint)
    _check_taken(request, checkpoint.likely_type() if request.outtype == "auto" else request.outtype)
    outtype = _outtype(request, checkpoint)
    if request.what != "vocab":
        _check_disk(request, checkpoint, checkpoint.estimate(outtype, projector=request.what == "mmproj"))
    target = Path(request.workspace) / "converted.gguf"
    script, arguments = _arguments(request, checkpoint, target, outtype)
    heard = _Hearing(request, checkpoint, tools)
    began = time.monotonic()
    try:
        run_converter(source, script, arguments, Path(request.workspace), heard, tools.cancelled)
    except ConverterError as failed:
        tokenizer = checkpoint.kind == "adapter" or has_tokenizer(folder, checkpoint.architectures)
        raise converter_failure(failed, name=request.name, target=target, tokenizer=tokenizer) from failed
    return _converted(request, checkpoint, architecture, target, heard.warnings, time.monotonic() - began)


def _base_architecture(request: ConvertRequest, source: Path) -> str:
    """Return the architecture of the model that an adapter was trained on."""
    if request.base is None:
        raise InvalidRequestError(f"{request.name} is an adapter: its base is needed")
    names = architectures_of(read_config(Path(request.base)))[0]
    known = known_architectures(source)["model"]
    found = next((one for one in names if one in known), None)
    if found is None:
        raise unsupported(names[-1] if names else "", known)
    return found


def _check_pickle(checkpoint: Checkpoint) -> None:
    if not checkpoint.pickled:
        return
    version = importlib.metadata.version("torch")
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if numbers < _SAFE_TORCH:
        raise InvalidModelError(
            f"{checkpoint.files[0]} is a pickled file, which torch {version} can not read safely: take 2.6 or newer, "
            "or a version of the checkpoint in safetensors"
        )


def _outtype(request: ConvertRequest, checkpoint: Checkpoint) -> str:
    """Return the type; "auto" is F32 for adapters, as their converter has it: they are small."""
    return "f32" if request.outtype == "auto" and checkpoint.kind == "adapter" else request.outtype


def _check_taken(request: ConvertRequest, outtype: str) -> None:
    taken = request.taken.get(outtype.upper())
    if taken is not None:
        raise InvalidRequestError(f"{taken} exists; --force (force=True) overwrites it")


def _check_disk(request: ConvertRequest, checkpoint: Checkpoint, need: int) -> None:
    free = shutil.disk_usage(request.workspace).free
    need += _ROOM + int(checkpoint.n_params * request.room_bits / 8)
    if need > free:
        also = " and what is made of it" if request.room_bits else ""
        raise DiskFullError(
            f"the converted file{also} takes {format_bytes(need)}, but {Path(request.workspace).parent} has "
            f"{format_bytes(free)} free: {format_bytes(need - free)} more are needed. Free some space, or name another "
            "folder (--out DIR)."
        )


def _arguments(request: ConvertRequest, checkpoint: Checkpoint, target: Path, outtype: str) -> tuple[str, list[str]]:
    """Return the script and what it is called with."""
    workspace = Path(request.workspace)
    common = ["--outfile", str(target), "--outtype", outtype]
    if checkpoint.kind == "adapter":
        base = _stage(Path(request.base or ""), workspace / "base", weights=False)
        _forget_quantization(base / "config.json")
        adapter = _stage(checkpoint.folder, workspace / "named" / request.name, weights=True)
        return "convert_lora_to_gguf.py", [*common, "--base", str(base), str(adapter)]
    own = {"mmproj": ["--mmproj"], "vocab": ["--vocab-only"]}.get(request.what, [])
    # The converter takes the folder's name for the model's where nothing else tells it.
    folder = _stage(checkpoint.folder, workspace / "named" / request.name, weights=request.what != "vocab")
    return "convert_hf_to_gguf.py", [*common, *own, str(folder)]


def _stage(folder: Path, copy: Path, *, weights: bool) -> Path:
    """Make a folder with the name that is wanted and links to what the converter may read; no Python code is in it.

    Parameters
    ----------
    weights
        Also link the weights and their index.
    """
    copy.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix in {".py", ".pyc", ".gguf"}:
            continue
        if not weights and (path.is_dir() or path.suffix in {".safetensors", ".bin"} or ".index." in path.name):
            continue
        try:
            (copy / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
        except OSError:  # no links here (Windows without developer mode)
            if path.is_file():
                shutil.copyfile(path, copy / path.name)
            else:
                shutil.copytree(path, copy / path.name)
    return copy


def _forget_quantization(path: Path) -> None:
    """Take from a base's settings how its weights are quantized: the converter would look for such an adapter."""
    config = read_config(path.parent)
    if config.pop("quantization_config", None) is not None:
        path.unlink()
        path.write_text(json.dumps(config), "utf-8")


class _Hearing:
    """Takes what the converter tells: hands progress on, keeps warnings, and looks at the type before it writes."""

    def __init__(self, request: ConvertRequest, checkpoint: Checkpoint, tools: WorkerTools) -> None:
        self.warnings: list[str] = []
        self._last = 0.0
        self._checkpoint = checkpoint
        self._request = request
        self._report = tools.report

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind in {"stage", "tensor"}:
            self._progress(event)
        elif kind == "file_type":
            _check_taken(self._request, FTYPES.get(event["number"], ""))
            _check_disk(self._request, self._checkpoint, event["bytes"])
        elif kind == "warning":
            self.warnings.append(event["text"])

    def _progress(self, event: Mapping[str, Any]) -> None:
        now, at = time.monotonic(), event.get("at")
        last = at is not None and at in {1, event["count"]}
        if now - self._last < _REPORT_S and not last:
            return
        self._last = now
        told = event["text"] if at is None else f"tensor {at} of {event['count']}, {event['name']}"
        self._report(Progress("convert", event.get("fraction"), f"{self._request.name}: {told}"))


def _converted(
    request: ConvertRequest,
    checkpoint: Checkpoint,
    architecture: str,
    path: Path,
    warnings: Sequence[str],
    seconds: float,
) -> Converted:
    if not path.is_file():
        raise NativeError("llama.cpp's converter ended without an error, but wrote no file; please report this")
    metadata = read_metadata(path)
    notes = []
    if checkpoint.pickled:
        notes.append("The weights came from a pickled .bin file, of which only tensors were loaded.")
    types = Counter(tensor.type for tensor in metadata.tensors)
    ftype = metadata.ftype
    if checkpoint.kind == "adapter" and types:  # such a file does not name its type
        ftype = types.most_common(1)[0][0]
    own = checkpoint.main_type()
    if own == "F32" and metadata.ftype in {"F16", "BF16"}:
        notes.append(
            f"The checkpoint's weights are in F32; {metadata.ftype} rounds them to half the size. --outtype f32 keeps "
            "them as they are."
        )
    if (checkpoint.folder / ADAPTER_CONFIG).is_file() and kind_of(checkpoint.folder) == "model":
        notes.append(f"The folder also holds an adapter ({ADAPTER_CONFIG}), which was left out.")
    return Converted(
        path=str(path),
        kind="adapter" if checkpoint.kind == "adapter" else request.what,
        architecture=architecture,
        ftype=ftype,
        size=path.stat().st_size,
        source_size=checkpoint.size,
        n_weights=metadata.n_params,
        types=dict(types.most_common()),
        seconds=seconds,
        notes=tuple(notes),
        warnings=_telling(warnings),
    )


def _telling(warnings: Sequence[str]) -> tuple[str, ...]:
    """Return what of the converter's warnings a person should know, each once."""
    lines = [" ".join(text.split())[:_LONGEST] for text in warnings if _WORTH.search(text)]
    return tuple(f"llama.cpp's converter warns: {line}" for line in list(dict.fromkeys(lines))[:_MOST_WARNINGS])
