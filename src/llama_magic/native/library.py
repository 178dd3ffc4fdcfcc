"""The loaded llama.cpp library: bindings, versions, and one-time initialization."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["LibraryInfo", "dll", "initialize", "lib", "library_info", "state_version"]


def _low_level() -> Any:
    """Import llama_cpp's low-level module without the rest of the package, of which nothing is needed.

    The package's own ``__init__`` brings its high-level interface with jinja2 and more, which would be a third of a
    worker's start. Who imports the package later gets it whole.
    """
    name = "llama_cpp.llama_cpp"
    spec = None if "llama_cpp" in sys.modules else importlib.util.find_spec("llama_cpp")
    if spec is None:
        return importlib.import_module(name)
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["llama_cpp"]


#: llama_cpp's low-level module. Its functions have the C names and types.
lib: Any = _low_level()

#: The shared library itself. ggml's functions are reached through it: llama_cpp's own
#: ``_ggml`` handle opens a second copy with a separate device registry.
dll: Any = lib._lib


@dataclass(frozen=True, slots=True)
class LibraryInfo:
    """Versions of the binding and of the library under it."""

    llama_cpp_python: str
    commit: str
    ggml_version: str
    system_info: str


@functools.cache
def initialize() -> None:
    """Start llama.cpp's backends, once per process."""
    lib.llama_backend_init()


def _ggml_string(name: str) -> str:
    function = getattr(dll, name, None)
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    function.argtypes = []
    value: bytes | None = function()
    return (value or b"").decode("utf-8", "replace")


@functools.cache
def library_info() -> LibraryInfo:
    """Return the versions in use."""
    import importlib.metadata  # 8 ms that a worker's start need not take

    system: bytes = lib.llama_print_system_info() or b""
    return LibraryInfo(
        llama_cpp_python=importlib.metadata.version("llama-cpp-python"),
        commit=_ggml_string("ggml_commit").removesuffix("-dirty"),
        ggml_version=_ggml_string("ggml_version"),
        system_info=system.decode("utf-8", "replace").strip(),
    )


def state_version() -> int:
    """Return the version of the layout in which llama.cpp writes a sequence's state."""
    return int(lib.LLAMA_STATE_SEQ_VERSION)
