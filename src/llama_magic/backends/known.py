"""The table of the backends that llama.cpp has, and how each is built."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llama_magic.backends.cpu_variants import best_variant
from llama_magic.errors import InvalidRequestError
from llama_magic.suggest import did_you_mean

__all__ = ["AMX_FLAGS", "KNOWN", "KnownBackend", "driver_of", "find_backend", "name_of", "parse_backends"]

#: Words for what is compiled into llama-cpp-python, which workers get from the start.
_DEFAULT = ("default", "auto", "stock")


@dataclass(frozen=True, slots=True)
class KnownBackend:
    """A backend of llama.cpp.

    Attributes
    ----------
    name
        As people type it; also the end of the module's file name.
    title
        Its full name.
    ggml
        What ggml calls it.
    options
        CMake options that build it.
    needs
        Prerequisites, as keys of `prerequisites.CHECKS`.
    systems
        Values of `sys.platform` where it can be built; empty: anywhere.
    hint
        What it is for, and what it needs beyond `needs`.
    checked
        llama_magic can tell whether its prerequisites are here.
    """

    name: str
    title: str
    ggml: str
    options: tuple[str, ...]
    needs: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    hint: str = ""
    checked: bool = True

    @property
    def target(self) -> str:
        """CMake's name of the module."""
        return f"ggml-cpu-{best_variant()}" if self.name == "cpu-variants" else f"ggml-{self.name}"


#: GCC leaves out part of the set-up of AMX, and the first prompt would crash (ggml-org/llama.cpp, pull request 26954).
AMX_FLAGS = ("-DCMAKE_C_FLAGS=-U__AMX_INT8__", "-DCMAKE_CXX_FLAGS=-U__AMX_INT8__")

_TOOLS = ("compiler", "cmake", "generator")


def _other(name: str, title: str, ggml: str, hint: str, systems: tuple[str, ...] = ()) -> KnownBackend:
    return KnownBackend(name, title, ggml, (f"-DGGML_{name.upper()}=ON",), _TOOLS, systems, hint, checked=False)


#: In the order of their use. The CPU's comes first: it is always there.
KNOWN: tuple[KnownBackend, ...] = (
    KnownBackend("cpu", "CPU", "CPU", (), hint="always there"),
    KnownBackend("cpu-variants", "CPU variant", "", ("-DGGML_CPU=ON", "-DGGML_CPU_ALL_VARIANTS=ON", *AMX_FLAGS), _TOOLS,
                 ("linux",), hint="the CPU's code for this very processor, in place of the one compiled in"),
    KnownBackend("blas", "BLAS", "BLAS", ("-DGGML_BLAS=ON", "-DGGML_BLAS_VENDOR=OpenBLAS"),
                 (*_TOOLS, "openblas", "pkg-config"),
                 hint="computes prompts of 32 tokens and more with OpenBLAS; not always faster"),
    KnownBackend("cuda", "CUDA", "CUDA", ("-DGGML_CUDA=ON",), (*_TOOLS, "nvcc"), ("linux", "win32"),
                 hint="NVIDIA graphics cards"),
    KnownBackend("hip", "HIP (ROCm)", "ROCm", ("-DGGML_HIP=ON",), (*_TOOLS, "rocm"), ("linux", "win32"),
                 hint="AMD graphics cards"),
    KnownBackend("metal", "Metal", "MTL", ("-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON"), (*_TOOLS, "xcode"),
                 ("darwin",), hint="Apple silicon"),
    KnownBackend("vulkan", "Vulkan", "Vulkan", ("-DGGML_VULKAN=ON",),
                 (*_TOOLS, "vulkan-headers", "vulkan-loader", "glslc", "spirv-headers"),
                 hint="graphics cards of all makers"),
    KnownBackend("sycl", "SYCL", "SYCL", ("-DGGML_SYCL=ON", "-DCMAKE_C_COMPILER=icx", "-DCMAKE_CXX_COMPILER=icpx"),
                 (*_TOOLS, "oneapi"), ("linux", "win32"), hint="Intel graphics cards"),
    KnownBackend("opencl", "OpenCL", "OpenCL", ("-DGGML_OPENCL=ON",), (*_TOOLS, "opencl"),
                 hint="Adreno and Intel graphics"),
    KnownBackend("rpc", "RPC", "RPC", ("-DGGML_RPC=ON",), _TOOLS, hint="devices of other machines, over the network"),
    _other("musa", "MUSA", "MUSA", "Moore Threads graphics cards; needs the MUSA SDK", ("linux",)),
    _other("cann", "CANN", "CANN", "Huawei Ascend; needs the CANN toolkit", ("linux",)),
    _other("openvino", "OpenVINO", "OPENVINO", "Intel CPUs, graphics and NPUs; needs the OpenVINO runtime"),
    _other("zendnn", "ZenDNN", "ZenDNN", "AMD EPYC; fetches ZenDNN while it is built", ("linux",)),
    _other("zdnn", "zDNN", "zDNN", "IBM Z with Telum; needs the zDNN library", ("linux",)),
    _other("webgpu", "WebGPU", "WebGPU", "needs Dawn"),
    _other("hexagon", "Hexagon", "HTP", "Qualcomm NPUs; needs the Hexagon SDK"),
    _other("virtgpu", "VirtGPU", "ggml-virtgpu", "graphics of a virtual machine's host; needs libdrm", ("linux",)),
    _other("et", "ET", "ET", "Esperanto ET-SoC; needs its SDK", ("linux",)),
)  # fmt: skip

_ALIASES = {
    "rocm": "hip",
    "amd": "hip",
    "nvidia": "cuda",
    "mtl": "metal",
    "openblas": "blas",
    "vk": "vulkan",
    "cl": "opencl",
}


def find_backend(name: str) -> KnownBackend:
    """Return the backend of a name; `InvalidRequestError` names the nearest where there is none."""
    word = _ALIASES.get(name.strip().lower(), name.strip().lower())
    found = next((backend for backend in KNOWN if backend.name == word), None)
    if found is None:
        names = [backend.name for backend in KNOWN]
        raise InvalidRequestError(
            f"there is no backend {name!r}.{did_you_mean(word, names)} There is: {', '.join(names)}."
        )
    return found


def name_of(ggml: str) -> str:
    """Return our name of what ggml calls a backend."""
    return next((backend.name for backend in KNOWN if backend.ggml.lower() == ggml.lower()), ggml.lower())


def driver_of(name: str) -> str:
    """Return the backend whose devices a module brings: a variant of the CPU's brings the CPU."""
    return "cpu" if name == "cpu-variants" else name


def parse_backends(names: str | Iterable[str]) -> tuple[str, ...] | None:
    """Return the names in the order of the table, without "cpu"; None for what is compiled in.

    Raises
    ------
    InvalidRequestError
        There is no such backend.
    """
    given = names.split(",") if isinstance(names, str) else list(names)
    words = [word.strip().lower() for word in given if word.strip()]
    if not words:
        raise InvalidRequestError("name a backend: cpu, blas, vulkan, …; %llama backends lists them all")
    if words[0] in _DEFAULT and len(words) == 1:
        return None
    chosen = {find_backend(word).name for word in words} - {"cpu"}
    return tuple(backend.name for backend in KNOWN if backend.name in chosen)
