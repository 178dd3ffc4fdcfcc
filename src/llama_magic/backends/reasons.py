"""Say in words why ggml could not load a module."""

from __future__ import annotations

import re

__all__ = ["explain"]

#: What a missing shared library means, by the start of its name.
_DRIVERS = {
    "libcuda.so": "the NVIDIA driver is missing",
    "nvcuda": "the NVIDIA driver is missing",
    "libcudart": "the CUDA runtime is missing",
    "libcublas": "the CUDA runtime is missing",
    "libamdhip": "the ROCm runtime is missing",
    "libvulkan": "the Vulkan loader is missing (Debian, Ubuntu: apt install libvulkan1)",
    "libOpenCL": "the OpenCL loader is missing (Debian, Ubuntu: apt install ocl-icd-libopencl1)",
    "libopenblas": "OpenBLAS is missing (Debian, Ubuntu: apt install libopenblas0)",
    "libsycl": "the oneAPI runtime is missing",
    "libze_loader": "the Level Zero loader is missing",
}
_MISSING = re.compile(r"(\S+): cannot open shared object file")


def explain(reason: str) -> str:
    """Say in words what ggml says of a module that it could not load."""
    missing = _MISSING.search(reason)
    if missing:
        name = missing[1].rpartition("/")[2]
        words = next((words for start, words in _DRIVERS.items() if name.startswith(start)), "a library is missing")
        return f"{words}: {name} was not found"
    if "incompatible API version" in reason or "undefined symbol" in reason:
        return f"it was built for another ggml ({reason.rpartition('module: ')[2].strip()})"
    if "file too short" in reason or "invalid ELF header" in reason or "file truncated" in reason:
        return "the file is damaged or cut off"
    if "returned NULL" in reason:
        return "it found no device or driver that it can use"
    if "not supported on this system" in reason:
        return "it uses instructions that this processor does not have"
    return reason
