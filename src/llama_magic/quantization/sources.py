"""Files to quantize from, and names for what is made of them. The kernel uses it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from llama_magic.errors import LlamaMagicError
from llama_magic.models.gguf import read_metadata
from llama_magic.models.metadata import ModelMetadata
from llama_magic.models.places import models_folder
from llama_magic.quantization.ftypes import FTYPES

__all__ = ["better_sources", "output_name", "remove_stale", "temporary_name"]

#: What is worth quantizing from: the more, the better.
_WORTH = {"F32": 4, "BF16": 3, "F16": 3, "Q8_0": 2}
#: Files of a folder that are looked at.
_MOST_FILES = 64
_PARTS = re.compile(r"-\d{5}-of-\d{5}$")
_NAMES = "|".join(sorted((ftype.name for ftype in FTYPES), key=len, reverse=True))
_SUFFIX = re.compile(rf"(?P<mark>[.\-_])(?:{_NAMES})$", re.IGNORECASE)
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}\.part(?:-\d{5}-of-\d{5}\.gguf)?"
)


def output_name(source: str, ftype: str) -> str:
    """Return the name of a new file: ``model-F16.gguf`` becomes ``model-Q4_K_M.gguf``."""
    stem = _PARTS.sub("", Path(source).name.removesuffix(".gguf"))
    found = _SUFFIX.search(stem)
    mark = found["mark"] if found else "-"
    return f"{_SUFFIX.sub('', stem)}{mark}{ftype}.gguf"


def better_sources(metadata: ModelMetadata, folders: Iterable[Path]) -> tuple[str, ...]:
    """Return files of the same model with more bits: beside the source, or in these folders or llama_magic's own.

    The same model has the same architecture, name and tensors. The best comes first.
    """
    own, worth = _outline(metadata), _WORTH.get(metadata.ftype, 1)
    better: list[tuple[int, str]] = []
    places = dict.fromkeys([Path(metadata.path).parent, *folders, models_folder()])
    for folder in places:
        for path in _candidates(folder):
            with contextlib.suppress(LlamaMagicError, OSError):
                found = read_metadata(path)
                value = _WORTH.get(found.ftype, 1)
                if value > worth and _outline(found) == own:
                    better.append((value, str(path)))
    return tuple(path for _, path in sorted(better, key=lambda entry: -entry[0]))


def _candidates(folder: Path) -> list[Path]:
    try:
        names = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith("."))
    except OSError:
        return []
    return [path for path in names if not (found := _PARTS.search(path.stem)) or found[0].startswith("-00001-")][
        :_MOST_FILES
    ]


def _outline(metadata: ModelMetadata) -> tuple[object, ...]:
    tensors = frozenset((tensor.name, tensor.shape) for tensor in metadata.tensors)
    return metadata.architecture, metadata.values.get("general.name"), tensors


# -- names while a file is written ------------------------------------------------------------------------------------


def temporary_name(target: Path) -> Path:
    """Return a name beside the target that tells which process of which machine writes it."""
    return target.with_name(f".{target.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def remove_stale(folder: Path) -> list[Path]:
    """Remove what processes left that were killed while they wrote to a folder; returns what went."""
    gone = []
    try:
        entries = [entry for entry in folder.iterdir() if entry.name.startswith(".")]
    except OSError:
        return []
    for path in entries:
        found = _TEMPORARY.fullmatch(path.name)
        # A machine that shares the folder may be at work on its own; only it can tell.
        if found is None or found["host"] != _host() or _writes(int(found["pid"]), path):
            continue
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            gone.append(path)
    return gone


def _writes(pid: int, path: Path) -> bool:
    """Tell whether the process that a name tells of still is the one that writes."""
    import psutil

    try:
        # A process that began after the last write has only got the number of the one that wrote.
        return bool(psutil.Process(pid).create_time() <= path.stat().st_mtime + 1)
    except (psutil.Error, OSError):
        return False
