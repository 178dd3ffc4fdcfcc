"""llama.cpp's own tools, built from the source that the installed llama-cpp-python was built from.

Its source distribution holds llama.cpp with all tools. The flags are those of the Makefile's build (Release,
no AMX, everything else as llama.cpp has it), so both sides compute with the same code. The build takes
about ten minutes on two cores, once. ``python -m benchmarks.tools`` makes it and prints the folder, for
``LLAMA_MAGIC_TOOLS``; ``LLAMA_MAGIC_BUILD`` names another place for it than this clone.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.runner import BUILD
from llama_magic.models.source import llama_cpp_source

__all__ = ["build", "tool"]

_PACKAGE = "llama-cpp-python"
_TARGETS = ("llama-bench", "llama-gguf-split", "llama-imatrix", "llama-perplexity", "llama-quantize")
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_C_FLAGS=-U__AMX_INT8__",
    "-DCMAKE_CXX_FLAGS=-U__AMX_INT8__",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_MTMD=OFF",
    "-DLLAMA_CURL=OFF",
)


def tool(name: str, folder: Path | None = None) -> Path:
    """Return the path of a tool.

    Parameters
    ----------
    folder
        Where it is; None: in ``$LLAMA_MAGIC_TOOLS``, else in the folder that `build` makes.

    Raises
    ------
    FileNotFoundError
        It is not in the folder that was named.
    """
    named = folder or (Path(os.environ["LLAMA_MAGIC_TOOLS"]) if os.environ.get("LLAMA_MAGIC_TOOLS") else None)
    path = _path(named or _built_folder(), name)
    if not path.exists():
        if named is not None:
            raise FileNotFoundError(f"{path} does not exist")
        build()
    return path


def build() -> Path:
    """Configure and compile the tools where they are not there yet; returns their folder."""
    folder = _built_folder()
    if all(_path(folder, name).exists() for name in _TARGETS):
        return folder
    cmake = shutil.which("cmake")
    if cmake is None:
        raise FileNotFoundError("building llama-bench needs cmake and a C++ compiler (Debian: apt install cmake g++)")
    target = folder.parent
    said = f"Building {', '.join(_TARGETS)} in {target}: about ten minutes on two cores, once."
    print(said, file=sys.stderr, flush=True)
    source = llama_cpp_source()
    target.mkdir(parents=True, exist_ok=True)
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with (target / "build.log").open("w") as log:
        for command in (
            [cmake, "-S", str(source), "-B", str(target), *_FLAGS],
            [cmake, "--build", str(target), "--config", "Release", "--parallel", jobs, "--target", *_TARGETS],
        ):
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return folder


def _path(folder: Path, name: str) -> Path:
    return folder / (f"{name}.exe" if sys.platform == "win32" else name)


def _built_folder() -> Path:
    return BUILD / f"tools-{importlib.metadata.version(_PACKAGE)}" / "bin"


if __name__ == "__main__":
    print(build())
