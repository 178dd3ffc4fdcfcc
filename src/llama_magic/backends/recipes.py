"""How backends are built: requests, and the commands that do it. Nothing here runs one.

The whole of llama.cpp is configured, since its ``ggml`` folder does not configure by itself, and only the
modules are built. They have no rpath: their ``libggml-base`` is then the one that is loaded already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llama_magic.backends.known import AMX_FLAGS, KnownBackend
from llama_magic.errors import InvalidRequestError

__all__ = [
    "HOOK",
    "SOURCE_PARTS",
    "BuildRequest",
    "StagedModule",
    "build_command",
    "configure_command",
    "options_of",
    "parse_defines",
    "wheel_arguments",
]

#: The parts of llama.cpp that are needed to build a backend.
SOURCE_PARTS = ("CMakeLists.txt", "LICENSE", "licenses/", "cmake/", "ggml/", "include/", "src/", "vendor/")

_OFF = ("TESTS", "EXAMPLES", "TOOLS", "SERVER", "COMMON", "APP", "UI")
_BASE = (
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_CPU=OFF",
    "-DCMAKE_SKIP_RPATH=ON",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in _OFF),
)
#: On by default on some systems: what is not asked for is not built.
_UNASKED = ("BLAS", "METAL", "ACCELERATE")
_DEFINE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?::[A-Z]+)?=.*", re.DOTALL)


#: Modules are linked against ggml-base, which is loaded already where they are used. So this one is made quickly.
HOOK = """if(NOT MSVC)
  cmake_language(DEFER CALL target_compile_options ggml-base PRIVATE -O0 -g0)
endif()
"""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """Build backends as modules; the result is a tuple of `StagedModule`.

    Attributes
    ----------
    backends
        Names of `KNOWN`.
    folder
        An empty folder for the build and its result; the kernel removes it.
    log
        The file that everything said is written to.
    defines
        What CMake gets beside the recipe: ``("GGML_CUDA_FA=OFF",)``.
    jobs
        Compilers at once; None: what processors and memory allow.
    debug
        Build with assertions and debugging symbols.
    """

    backends: tuple[str, ...]
    folder: str
    log: str
    defines: tuple[str, ...] = ()
    jobs: int | None = None
    debug: bool = False


@dataclass(frozen=True, slots=True)
class StagedModule:
    """A module that was built and is not installed yet."""

    name: str
    path: str
    options: tuple[str, ...]
    seconds: float


def parse_defines(words: Sequence[str]) -> tuple[str, ...]:
    """Return CMake definitions ``NAME=VALUE``, also of ``-DNAME=VALUE``.

    Raises
    ------
    InvalidRequestError
        One is no definition.
    """
    found = []
    for word in words:
        text = word.removeprefix("-D")
        if not _DEFINE.fullmatch(text):
            raise InvalidRequestError(f"-D takes NAME=VALUE, for example -DGGML_CUDA_FA=OFF; got {word!r}")
        found.append(text)
    return tuple(found)


def options_of(backends: Sequence[KnownBackend], defines: Sequence[str], *, debug: bool) -> tuple[str, ...]:
    """Return what CMake is given beyond what is the same for all backends; the user's definitions come last."""
    asked = {option.split("=")[0] for backend in backends for option in backend.options}
    unasked = [f"-DGGML_{name}=OFF" for name in _UNASKED if f"-DGGML_{name}" not in asked]
    options = [option for backend in backends for option in backend.options]
    kind = "Debug" if debug else "Release"
    return (*unasked, *dict.fromkeys(options), f"-DCMAKE_BUILD_TYPE={kind}", *(f"-D{define}" for define in defines))


def configure_command(cmake: str, ninja: str, source: str, build: str, hook: str, options: Sequence[str]) -> list[str]:
    """Return the command that configures a build.

    Parameters
    ----------
    hook
        A file with `HOOK`.
    options
        Those of `options_of`.
    """
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    hooked = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={hook}"
    return [cmake, "-S", source, "-B", build, *generator, *_BASE, hooked, *options]


def build_command(cmake: str, ninja: str, build: str, backends: Sequence[KnownBackend], jobs: int) -> list[str]:
    """Return the command that builds the modules. ninja is called by itself: a signal then reaches its compilers."""
    targets = [backend.target for backend in backends]
    if ninja:
        return [ninja, "-C", build, "-j", str(jobs), *targets]
    return [cmake, "--build", build, "--config", "Release", "--parallel", str(jobs), "--target", *targets]


def wheel_arguments(backends: Sequence[KnownBackend], defines: Sequence[str]) -> str:
    """Return ``CMAKE_ARGS`` that build llama-cpp-python with these backends inside."""
    options = dict.fromkeys(option for backend in backends for option in backend.options)
    return " ".join([*options, *AMX_FLAGS, *(f"-D{define}" for define in defines)])
