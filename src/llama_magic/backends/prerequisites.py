"""Look for what a build needs: compilers, tools, headers, libraries. Nothing here builds or starts anything long."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_magic.backends.known import KnownBackend
from llama_magic.backends.system_packages import install_command

__all__ = ["CHECKS", "Prerequisite", "check", "check_all", "find_tool", "missing", "run_tool", "vulkan_headers"]

#: The oldest CMake that llama.cpp's Vulkan and HIP parts take (ggml-vulkan/CMakeLists.txt, ggml-hip/CMakeLists.txt).
_CMAKE_LEAST = (3, 21)
#: `vk::LayerSettingEXT`, which ggml-vulkan uses, comes with this extension: Vulkan headers 1.3.272.
_VULKAN_EXTENSION, _VULKAN_LEAST = "VK_EXT_layer_settings", "1.3.272"


@dataclass(frozen=True, slots=True)
class Prerequisite:
    """One thing that a build needs.

    Attributes
    ----------
    key
        A key of `CHECKS`.
    name
        What people call it.
    ok
        It is here.
    evidence
        Where and which version, or what is wrong with it.
    fix
        The command that installs it on this system; empty where none is known, or nothing is missing.
    """

    key: str
    name: str
    ok: bool
    evidence: str
    fix: str = ""


def find_tool(*names: str, package: str = "") -> str:
    """Return the path of a program: on PATH, in this Python's environment, or in a pip package; empty if nowhere."""
    for name in names:
        found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
        if found:
            return found
        spec = importlib.util.find_spec(package) if package else None
        if spec is not None and spec.origin is not None:
            for folder in ("data/bin", "bin"):
                found = shutil.which(name, path=str(Path(spec.origin).parent / folder))
                if found:
                    return found
    return ""


def run_tool(*command: str) -> str:
    """Return what a program prints about itself, empty where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _include_folders() -> list[Path]:
    """Return where compilers look for headers here, the environment's first."""
    folders: list[str] = []
    for name in ("CPATH", "CPLUS_INCLUDE_PATH", "C_INCLUDE_PATH"):
        folders += os.environ.get(name, "").split(os.pathsep)
    roots = [os.environ.get("VULKAN_SDK", ""), *os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep)]
    folders += [str(Path(root) / "include") for root in roots if root]
    folders += ["/usr/local/include", "/usr/include", "/opt/homebrew/include", sysconfig.get_path("data") + "/include"]
    folders += sorted(glob.glob("/usr/include/*-linux-gnu"))  # noqa: PTH207 - a pattern with a root
    return [Path(folder) for folder in folders if folder]


def _header(*names: str, first: Iterable[Path] = ()) -> Path | None:
    return next(
        (p for folder in (*first, *_include_folders()) for name in names if (p := folder / name).is_file()), None
    )


def _library(*names: str) -> str:
    """Return the name of a shared library that programs here can be linked with, empty where there is none."""
    for name in names:
        for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib", *_library_paths()):
            for ending in (".so", ".dylib", ".lib"):
                file = Path(folder) / f"{'' if ending == '.lib' else 'lib'}{name}{ending}"
                if file.is_file():
                    return str(file)
    return ""


def _library_paths() -> list[str]:
    paths = [folder for name in ("LIBRARY_PATH", "LIB") for folder in os.environ.get(name, "").split(os.pathsep)]
    roots = [os.environ.get("VULKAN_SDK", ""), *os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep)]
    paths += [str(Path(root) / "lib") for root in roots if root]
    return [*filter(None, paths), *sorted(glob.glob("/usr/lib/*-linux-gnu"))]  # noqa: PTH207


# -- the checks: each returns whether it is here, and the evidence ---------------------------------------


def _compiler() -> tuple[bool, str]:
    if sys.platform == "win32":
        found = find_tool("cl", "clang-cl", "g++")
        return bool(found), found or "no C++ compiler on PATH (start from a Developer Command Prompt)"
    named = os.environ.get("CXX", "").split()
    found = find_tool(*named[:1]) if named else find_tool("c++", "g++", "clang++")
    if not found:
        return False, f"CXX names {named[0]}, which is not there" if named else "no C++ compiler (c++, g++, clang++)"
    return True, _first_line(run_tool(found, "--version")) or found


def _cmake() -> tuple[bool, str]:
    found = find_tool("cmake", package="cmake")
    text = run_tool(found, "--version") if found else ""
    match = re.search(r"version (\d+)\.(\d+)", text)
    if match is None:
        return False, "no cmake" if not found else f"{found} does not run"
    if (int(match[1]), int(match[2])) < _CMAKE_LEAST:
        return False, f"cmake {match[1]}.{match[2]} is too old: {_CMAKE_LEAST[0]}.{_CMAKE_LEAST[1]} is needed"
    return True, _first_line(text)


def _generator() -> tuple[bool, str]:
    ninja = find_tool("ninja", "ninja-build", package="ninja")
    if ninja:
        return True, f"ninja {_first_line(run_tool(ninja, '--version'))}"
    make = find_tool("make", "gmake") if sys.platform != "win32" else find_tool("nmake")
    return bool(make), _first_line(run_tool(make, "--version")) or make or "neither ninja nor make"


def _pkg_config() -> tuple[bool, str]:
    found = find_tool("pkg-config", "pkgconf")
    return bool(found), found or "no pkg-config"


def _openblas() -> tuple[bool, str]:
    header = _header("cblas.h", "openblas/cblas.h", "openblas-pthread/cblas.h", "x86_64-linux-gnu/cblas.h")
    pkg = find_tool("pkg-config", "pkgconf")
    version = run_tool(pkg, "--modversion", "openblas").strip() if pkg else ""
    if version:
        return True, f"OpenBLAS {version}"
    keg = Path("/opt/homebrew/opt/openblas/include/cblas.h")
    if keg.is_file() or (header is not None and _library("openblas")):
        return True, str(keg if keg.is_file() else header)
    return False, "no OpenBLAS with headers"


def vulkan_headers(folders: Iterable[Path] = ()) -> tuple[str, bool, Path] | None:
    """Return version of the Vulkan headers, whether ggml can use them, and where they are; None without any.

    Parameters
    ----------
    folders
        Folders to look into before those of the system.
    """
    header = _header("vulkan/vulkan_core.h", first=folders)
    if header is None:
        return None
    text = header.read_text(encoding="utf-8", errors="replace")
    complete = re.search(r"VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION\(0, (\d+), (\d+),", text)
    patch = re.search(r"#define VK_HEADER_VERSION (\d+)", text)
    version = f"{complete[1]}.{complete[2]}.{patch[1]}" if complete and patch else "of an unknown version"
    return version, _VULKAN_EXTENSION in text, header


def _vulkan_headers() -> tuple[bool, str]:
    found = vulkan_headers()
    if found is None:
        return False, "no Vulkan headers"
    version, new_enough, header = found
    if not new_enough:
        return False, (
            f"the Vulkan headers {version} ({header.parent.parent}) are too old for this ggml: "
            f"{_VULKAN_LEAST} is needed"
        )
    return True, f"Vulkan headers {version} ({header.parent.parent})"


def _vulkan_loader() -> tuple[bool, str]:
    found = _library("vulkan", "vulkan-1")
    return bool(found), found or "no Vulkan loader to link with"


def _glslc() -> tuple[bool, str]:
    found = find_tool("glslc")
    return bool(found), _first_line(run_tool(found, "--version")) if found else "no glslc"


def _spirv_headers() -> tuple[bool, str]:
    header = _header("spirv/unified1/spirv.hpp", "spirv/1.2/spirv.hpp", "spirv-headers/spirv.hpp")
    return header is not None, str(header) if header else "no SPIRV-Headers"


def _nvcc() -> tuple[bool, str]:
    root = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    found = find_tool("nvcc") or (shutil.which("nvcc", path=str(Path(root) / "bin")) or "")
    match = re.search(r"release (\S+),", run_tool(found, "--version")) if found else None
    return bool(found), f"CUDA toolkit {match[1]} ({found})" if match else found or "no CUDA toolkit (nvcc)"


def _rocm() -> tuple[bool, str]:
    root = os.environ.get("ROCM_PATH", "/opt/rocm")
    found = find_tool("hipcc") or (shutil.which("hipcc", path=str(Path(root) / "bin")) or "")
    return bool(found), found or "no ROCm (hipcc)"


def _opencl() -> tuple[bool, str]:
    header, library = _header("CL/cl.h"), _library("OpenCL")
    if sys.platform == "darwin":
        return True, "the system's OpenCL framework"
    if header is None or not library:
        return False, "no OpenCL headers" if header is None else "no OpenCL loader to link with"
    return True, f"{header}, {library}"


def _oneapi() -> tuple[bool, str]:
    found = find_tool("icpx")
    hint = "Intel's compiler icpx is not on PATH: source /opt/intel/oneapi/setvars.sh before Jupyter starts"
    return bool(found), found or hint


def _xcode() -> tuple[bool, str]:
    folder = run_tool("xcode-select", "-p").strip() if sys.platform == "darwin" else ""
    return bool(folder), folder or "no Xcode command line tools"


#: Name of each prerequisite, and the function that looks for it.
CHECKS: dict[str, tuple[str, Callable[[], tuple[bool, str]]]] = {
    "compiler": ("C++ compiler", _compiler),
    "cmake": ("CMake", _cmake),
    "generator": ("ninja or make", _generator),
    "pkg-config": ("pkg-config", _pkg_config),
    "openblas": ("OpenBLAS", _openblas),
    "vulkan-headers": ("Vulkan headers", _vulkan_headers),
    "vulkan-loader": ("Vulkan loader", _vulkan_loader),
    "glslc": ("glslc", _glslc),
    "spirv-headers": ("SPIRV-Headers", _spirv_headers),
    "nvcc": ("CUDA toolkit", _nvcc),
    "rocm": ("ROCm", _rocm),
    "opencl": ("OpenCL", _opencl),
    "oneapi": ("oneAPI compiler", _oneapi),
    "xcode": ("Xcode command line tools", _xcode),
}


def check(key: str) -> Prerequisite:
    """Look for one prerequisite, a key of `CHECKS`."""
    name, look = CHECKS[key]
    ok, evidence = look()
    fix = "" if ok else install_command(key)
    if not ok and key == "vulkan-headers" and "too old" in evidence:
        # The distribution has no newer ones, or they would be here: the makers' own SDK has.
        fix = "newer headers: the Vulkan SDK (vulkan.lunarg.com), or point CPATH at their folder"
    if not ok and key in ("cmake", "generator") and not fix:
        fix = f"{Path(sys.executable).name} -m pip install {'cmake' if key == 'cmake' else 'ninja'}"
    return Prerequisite(key, name, ok, evidence, fix)


def check_all(backend: KnownBackend) -> tuple[Prerequisite, ...]:
    """Look for everything that a backend's build needs."""
    return tuple(check(key) for key in backend.needs)


def missing(found: Iterable[Prerequisite]) -> tuple[str, str]:
    """Return what is missing in words, and the commands that help; both empty where nothing is."""
    gone = [row for row in found if not row.ok]
    packages = [row.key for row in gone if row.fix == install_command(row.key) and row.fix]
    commands = [install_command(*packages)] if packages else []
    commands += [row.fix for row in gone if row.key not in packages and row.fix]
    return "; ".join(row.evidence for row in gone), " && ".join(dict.fromkeys(commands))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()
