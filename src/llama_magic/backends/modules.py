"""The backend modules that were built here: where they are, and which fit the llama.cpp in use.

``backends/COMMIT-ggmlVERSION-SYSTEM/NAME-HASH/`` under the data folder holds a module, and beside it
``module.json``. A llama.cpp of another commit looks into another folder, so it never loads a stale one.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_magic.backends.known import KNOWN
from llama_magic.models.places import data_folder

__all__ = [
    "MANIFEST",
    "Library",
    "Module",
    "compiled_in",
    "find_modules",
    "installed_library",
    "module_folder",
    "package_libraries",
    "remove_modules",
]

#: What is known of a module, beside it.
MANIFEST = "module.json"


@dataclass(frozen=True, slots=True)
class Library:
    """The llama.cpp of the installed llama-cpp-python: its commit, and the version of its ggml."""

    commit: str
    ggml_version: str

    @property
    def key(self) -> str:
        """What a module has to be built for."""
        return f"{self.commit}-ggml{self.ggml_version}-{sys.platform}-{platform.machine().lower()}"


@dataclass(frozen=True, slots=True)
class Module:
    """A module that was built here.

    Attributes
    ----------
    name
        The backend.
    path
        Its file.
    size, sha256
        Of the file, when it was installed.
    commit, ggml_version
        The llama.cpp that it was built for.
    options
        What was given to CMake.
    seconds
        How long that took.
    log
        The log of the build.
    problem
        Why it can not be used, empty where it can.
    """

    name: str
    path: str
    size: int
    sha256: str
    commit: str
    ggml_version: str
    options: tuple[str, ...] = ()
    seconds: float = 0.0
    log: str = ""
    problem: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict."""
        return asdict(self)


def package_libraries() -> Path | None:
    """Return the folder of the installed package's shared libraries, found without importing it."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    return folder if folder.is_dir() else None


def compiled_in() -> tuple[str, ...]:
    """Return the names of the backends beside the CPU's that llama-cpp-python was built with, by its libraries."""
    folder = package_libraries()
    files = [] if folder is None else [path.name for path in folder.iterdir()]
    found = {match[1] for name in files if (match := re.match(r"(?:lib)?ggml-([a-z]+)\.(?:so|dylib|dll)", name))}
    return tuple(backend.name for backend in KNOWN if backend.name in found and backend.name != "cpu")


def installed_library(ask: Callable[[], Library]) -> Library | None:
    """Return which llama.cpp is installed; None where there is none.

    Only a worker can be asked. The answer is kept under our folder as long as the library's file stays the same.
    """
    folder = package_libraries()
    if folder is None:
        return None
    base = next((path for path in sorted(folder.iterdir()) if "ggml-base" in path.name), None)
    if base is None:
        return ask()
    status = base.stat()
    stamp = [str(base), status.st_size, status.st_mtime_ns]
    cache = data_folder() / "backends" / "library.json"
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["stamp"] == stamp:
            return Library(kept["commit"], kept["ggml_version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    library = ask()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(".part")
        part.write_text(json.dumps({"stamp": stamp, **asdict(library)}), encoding="utf-8")
        part.replace(cache)
    except OSError:
        pass  # asked again the next time
    return library


def module_folder(library: Library) -> Path:
    """Return the folder of the modules for a llama.cpp."""
    return data_folder() / "backends" / library.key


def find_modules(library: Library) -> dict[str, Module]:
    """Return the modules that were built for this llama.cpp, by backend; damaged ones with their `problem`."""
    found: dict[str, tuple[float, Module]] = {}
    for manifest in sorted(module_folder(library).glob(f"*/{MANIFEST}")):
        module = _read(manifest, library)
        if module is None:
            continue
        when = manifest.stat().st_mtime
        if module.name not in found or found[module.name][0] <= when:
            found[module.name] = (when, module)
    return {name: module for name, (_, module) in found.items()}


def _read(manifest: Path, library: Library) -> Module | None:
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))
        path = manifest.parent / Path(values["path"]).name
        values |= {"path": str(path), "options": tuple(values["options"])}
        values.pop("problem", None)
        module = Module(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    problem = ""
    try:
        size = path.stat().st_size
        if size != module.size:
            problem = f"the file is damaged or cut off: {size:,} of {module.size:,} bytes"
    except OSError:
        problem = "the file is gone"
    if (module.commit, module.ggml_version) != (library.commit, library.ggml_version):
        problem = f"it was built for llama.cpp {module.commit} (ggml {module.ggml_version})"
    return Module(**{**asdict(module), "problem": problem})


def remove_modules(name: str, library: Library, keep: Path | None = None) -> None:
    """Remove the modules of a backend, but for the folder `keep`."""
    for folder in module_folder(library).glob(f"{name}-*"):
        if folder != keep and (folder / MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)
