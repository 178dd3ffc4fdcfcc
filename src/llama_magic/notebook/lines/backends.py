"""Subcommands about hardware: backends, devices, building, and other machines."""

from __future__ import annotations

from llama_magic.backends.known import KNOWN
from llama_magic.notebook.converters import devices, integer
from llama_magic.notebook.flags import own_flag, own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.backends"

_NAMES = tuple(backend.name for backend in KNOWN)
_JOBS = integer(1, "a number of compilers at once, 1 or more")
_THREADS = integer(1, "a number of threads, 1 or more")
_PORT = integer(1, "a port from 1 to 65535", most=65535)

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("backends", "backends", "list the hardware backends: active, built, buildable, or what they need",
           only=("out",),
           run=f"{_HERE}:backends"),
    Parser("devices", "devices", "list the devices that models can run on", only=("out",),
           run=f"{_HERE}:devices"),
    Parser("backend", "backend [NAME[,NAME]]", "run on other backends, without restarting the kernel",
           words=8, complete=("default", *_NAMES),
           examples=("%llama backend blas", "%llama backend vulkan,rpc", "%llama backend cpu",
                     "%llama backend default"),
           run=f"{_HERE}:backend"),
    Parser("build", "build NAME … [-D NAME=VALUE …] [--jobs N] [--wheel]",
           "build a backend for the llama.cpp that is installed",
           only=("out",), words=20, complete=_NAMES,
           own=(
               own_flag("-D", "define", "NAME=VALUE", str, "definition for CMake; may be repeated", repeat=True,
                        glued=True),
               own_flag("-j --jobs", "jobs", "N", _JOBS, "compilers at once"),
               own_switch("--debug", "debug", "build with assertions and debugging symbols"),
               own_switch("--wheel", "wheel", "build llama-cpp-python itself with the backend inside; asks first"),
               own_switch("-y --yes", "yes", "do not ask"),
           ),
           examples=("%llama build blas rpc", "%llama build vulkan --jobs 2",
                     "%llama build cuda -DCMAKE_CUDA_ARCHITECTURES=90", "%llama build --wheel cuda"),
           run=f"{_HERE}:build"),
    Parser("rpc", "rpc [serve | add HOST:PORT | remove HOST:PORT | list | stop]",
           "use devices of other machines, or let others use this one's",
           words=2, complete=("serve", "add", "remove", "list", "stop"),
           own=(
               own_flag("-H --host", "host", "ADDRESS", str, "address to listen at (127.0.0.1: this machine only)"),
               own_flag("-p --port", "port", "N", _PORT, "port to listen at (50052, or the next that is free)"),
               own_flag("-dev -d --device", "served", "NAMES", devices,
                        "devices to serve, separated by commas (all accelerators, else the CPU)"),
               own_flag("-t --threads", "threads", "N", _THREADS, "threads of a CPU device"),
               own_flag("--cache", "cache", "DIR", str, "folder that keeps tensors that were sent once",
                        complete="file"),
           ),
           examples=("%llama rpc serve", "%llama rpc add 192.168.1.5:50052", "%llama rpc list", "%llama rpc stop"),
           run=f"{_HERE}:rpc"),
)
# fmt: on
