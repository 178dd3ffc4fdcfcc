"""llama.cpp's own tools, built from the source that the installed llama-cpp-python was built from.

Its source distribution holds llama.cpp with all tools. The flags are those of the Makefile's build (Release,
no AMX, everything else as llama.cpp has it), so both sides compute with the same code. The build takes
about ten minutes on two cores, once.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.runner import BUILD

__all__ = ["tool"]

_PACKAGE = "llama-cpp-python"
_TARGETS = ("llama-bench", "llama-imatrix", "llama-quantize")
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
    path = (named or _built_folder()) / (f"{name}.exe" if sys.platform == "win32" else name)
    if not path.exists():
        if named is not None:
            raise FileNotFoundError(f"{path} does not exist")
        build()
    return path


def build() -> None:
    """Download the source distribution, configure and compile the tools."""
    cmake = shutil.which("cmake")
    if cmake is None:
        raise FileNotFoundError("building llama-bench needs cmake and a C++ compiler (Debian: apt install cmake g++)")
    source, target = download() / "vendor" / "llama.cpp", _built_folder().parent
    print(f"Building {', '.join(_TARGETS)} in {target}: about ten minutes on two cores, once.", flush=True)
    target.mkdir(parents=True, exist_ok=True)
    with (target / "build.log").open("w") as log:
        for command in (
            [cmake, "-S", str(source), "-B", str(target), *_FLAGS],
            [cmake, "--build", str(target), "--config", "Release", "--parallel", "--target", *_TARGETS],
        ):
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def download() -> Path:
    """Fetch and unpack the source of the installed llama-cpp-python; returns its folder."""
    version = importlib.metadata.version(_PACKAGE)
    folder = BUILD / f"llama_cpp_python-{version}"
    if folder.exists():
        return folder
    BUILD.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", _PACKAGE, "--dest", str(BUILD), f"{_PACKAGE}=={version}"]
    subprocess.run(command, check=True)
    (archive,) = BUILD.glob(f"llama_cpp_python-{version}*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(BUILD / "unpacked", filter="data")
    (BUILD / "unpacked" / folder.name).replace(folder)
    (BUILD / "unpacked").rmdir()
    archive.unlink()
    return folder


def _built_folder() -> Path:
    return BUILD / f"tools-{importlib.metadata.version(_PACKAGE)}" / "bin"
