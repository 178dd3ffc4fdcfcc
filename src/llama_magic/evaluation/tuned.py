"""Tuned settings, kept per model file, machine and backends in a small JSON file in llama_magic's folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llama_magic.backends.host import cpu_quota, default_threads
from llama_magic.backends.setup import selected
from llama_magic.evaluation.tune import FLAGS
from llama_magic.models.json_file import write_json
from llama_magic.models.options import LoadOptions
from llama_magic.models.places import tuned_file

__all__ = [
    "backend_label",
    "forget_tuned",
    "machine_name",
    "settings_for",
    "store_tuned",
    "tuned_for",
    "tuned_settings",
    "with_companions",
]

_VERSION = 1
#: Settings that belong together: where a person chose one, no tuned value of the others is used.
_TOGETHER = (
    {"n_threads", "n_threads_batch"},
    {"n_batch", "n_ubatch"},
    {"flash_attn", "cache_type_k", "cache_type_v"},
    {
        "n_gpu_layers", "devices", "backend", "tensor_split", "split_mode", "main_gpu", "override_tensor", "cpu_moe",
        "n_cpu_moe", "n_cpu_ffn", "offload_kqv",
    },
)  # fmt: skip


@functools.lru_cache(maxsize=64)
def _file_identity(path: str, size: int, _mtime_ns: int) -> str:
    """Name a model file by its size and the start of its header, which names model, shape and types."""
    digest = hashlib.sha256(str(size).encode())
    with Path(path).open("rb") as file:
        digest.update(file.read(1 << 16))
    return digest.hexdigest()[:24]


def _model(path: str) -> str:
    stat = os.stat(path)  # noqa: PTH116 - a path may be a link into the Hub's cache: the file counts
    return _file_identity(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _processor() -> str:
    """Return the processor's name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


@functools.cache
def _graphics() -> tuple[str, ...]:
    """Return the names of NVIDIA's devices, as their driver tells them."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = re.search(r"^Model:\s*(.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            names.append(found[1].strip() if found else file.parent.name)
    return tuple(names)


def machine_name() -> str:
    """Return the machine in words: processor, threads that may be used, graphics."""
    quota = cpu_quota()
    threads = f"{default_threads()} of {os.cpu_count() or 1} threads" + (f", quota {quota:g}" if quota else "")
    return ", ".join([_processor(), threads, *_graphics()])


def _machine() -> str:
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    words = f"{platform.system()}|{platform.machine()}|{machine_name()}|{version}"
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _key(path: str, backend: str) -> str:
    return f"{_model(path)}-{_machine()}-{backend or 'default'}"


def _read() -> dict[str, Any]:
    """Return all entries; a file that can not be read counts as empty."""
    try:
        found = json.loads(tuned_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("version") != _VERSION or not isinstance(found.get("tuned"), dict):
        return {}
    return dict(found["tuned"])


def tuned_settings(path: str, backend: str = "") -> dict[str, Any]:
    """Return the load options that were found for a model file on this machine, empty where there are none.

    Parameters
    ----------
    backend
        Names of the backends; empty for those compiled in.
    """
    try:
        if not tuned_file().is_file():
            return {}
        entry = _read().get(_key(path, backend))
        settings = entry["settings"] if isinstance(entry, dict) else {}
        LoadOptions.from_keywords(**settings)
    except (OSError, KeyError, TypeError, ValueError):
        return {}  # of another version, or damaged: the defaults do
    return {name: value for name, value in settings.items() if name in FLAGS}


def settings_for(path: str, backend: str, said: Collection[str]) -> dict[str, Any]:
    """Return the tuned load options for a model file without those that a person has decided already.

    Parameters
    ----------
    said
        Names of load options that were chosen, on the line, in the call or as defaults.
    """
    decided = with_companions(said)
    return {name: value for name, value in tuned_settings(path, backend).items() if name not in decided}


def with_companions(said: Collection[str]) -> set[str]:
    """Return names of load options with those that belong to them: who chose one has chosen the others."""
    return set(said).union(*(group for group in _TOGETHER if group & set(said)))


def backend_label(options: LoadOptions) -> str:
    """Return the names of the backends that options lead to, empty for those compiled in."""
    if options.backend is not None:
        return options.backend
    chosen = selected()
    return "" if chosen.is_stock else chosen.name


def tuned_for(path: str, options: LoadOptions, said: Collection[str]) -> dict[str, Any]:
    """Return the tuned settings for a model file that nothing said decides otherwise."""
    return settings_for(path, backend_label(options), said)


def store_tuned(path: str, backend: str, settings: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Keep settings for a model file on this machine, in place of earlier ones; returns the file.

    Parameters
    ----------
    about
        What people want to know of it: the reference, the gain, the day.

    Raises
    ------
    InvalidRequestError
        The file can not be written.
    """
    entries = _read()
    entries[_key(path, backend)] = {
        "model": Path(path).name, "machine": machine_name(), "backend": backend or "default",
        "settings": dict(settings), **about,
    }  # fmt: skip
    _write(entries)
    return tuned_file()


def forget_tuned(path: str, backend: str | None = None) -> int:
    """Forget what was found for a model file on this machine; returns how many entries there were.

    Parameters
    ----------
    backend
        Only that for these backends; None: all.
    """
    start = f"{_model(path)}-{_machine()}-"
    entries = _read()
    gone = [key for key in entries if key.startswith(start) and backend in (None, key.removeprefix(start))]
    if gone:
        _write({key: entry for key, entry in entries.items() if key not in gone})
    return len(gone)


def _write(entries: Mapping[str, Any]) -> None:
    write_json(tuned_file(), {"version": _VERSION, "tuned": dict(entries)})
