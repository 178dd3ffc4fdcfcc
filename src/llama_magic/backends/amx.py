"""The trap of AMX: GCC leaves out part of llama.cpp's set-up of these registers, and the first prompt crashes.

See ggml-org/llama.cpp, pull request 26954. Without AMX the other vector instructions are used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["REINSTALL", "amx_trap"]

#: What builds llama-cpp-python without AMX.
REINSTALL = (
    "CMAKE_ARGS='-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__' "
    "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"
)


def amx_trap(cpuinfo: Path = Path("/proc/cpuinfo"), libraries: Path | None = None) -> bool:
    """Tell whether this processor has AMX and the installed llama.cpp was built with the code that crashes.

    Parameters
    ----------
    libraries
        Folder of llama_cpp's libraries; None: where it is installed.
    """
    spec = importlib.util.find_spec("llama_cpp") if libraries is None else None
    try:
        if libraries is None:
            if spec is None or spec.origin is None:
                return False
            libraries = Path(spec.origin).parent / "lib"
        if "amx_int8" not in cpuinfo.read_text(encoding="utf-8"):
            return False
        return any(b"AMX is not ready to be used" in library.read_bytes() for library in libraries.glob("libggml-cpu*"))
    except (OSError, UnicodeDecodeError):
        return False
