"""Which of llama.cpp's variants of the CPU backend is the best for a processor.

A llama-cpp-python that was compiled elsewhere (a wheel, an image) may use fewer instructions than this processor has.
A variant of the CPU's backend is a module like the others; it takes the place of the one that is compiled in.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from pathlib import Path

from llama_magic.errors import BackendError

__all__ = ["best_variant", "processor_flags"]

_BASE = ("sse4_2",)
_AVX2 = ("sse4_2", "avx", "f16c", "fma", "avx2", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw")

#: Variants for x86 and the flags of Linux that each needs (ggml/src/CMakeLists.txt, `ggml_add_cpu_backend_variant`), in
#: the order of their age; the last one that fits is taken.
_VARIANTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("x64", ()),
    ("sse42", _BASE),
    ("sandybridge", (*_BASE, "avx")),
    ("ivybridge", (*_BASE, "avx", "f16c")),
    ("piledriver", (*_BASE, "avx", "f16c", "fma")),
    ("haswell", _AVX2),
    ("alderlake", (*_AVX2, "avx_vnni")),
    ("skylakex", _AVX512),
    ("cannonlake", (*_AVX512, "avx512vbmi")),
    ("cascadelake", (*_AVX512, "avx512_vnni")),
    ("icelake", (*_AVX512, "avx512vbmi", "avx512_vnni")),
    ("cooperlake", (*_AVX512, "avx512_vnni", "avx512_bf16")),
    ("zen4", (*_AVX512, "avx512vbmi", "avx512_vnni", "avx512_bf16")),
)


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the flags that Linux tells of this processor, empty where it tells none."""
    try:
        match = re.search(r"^flags\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(match[1].split()) if match else frozenset()


def best_variant(flags: Iterable[str] | None = None) -> str:
    """Return the variant for a processor with these flags; None: for this one.

    AMX is left out: GCC leaves out part of its set-up (ggml-org/llama.cpp, pull request 26954).

    Raises
    ------
    BackendError
        It is no x86 processor under Linux.
    """
    have = processor_flags() if flags is None else frozenset(flags)
    if not have or (flags is None and platform.machine().lower() not in ("x86_64", "amd64")):
        raise BackendError(
            "variants of the CPU's backend are chosen for x86 processors under Linux only; what works everywhere: "
            "%llama build --wheel cpu"
        )
    return [name for name, needs in _VARIANTS if have.issuperset(needs)][-1]
