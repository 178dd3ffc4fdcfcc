"""Build llama-cpp-python itself with backends inside: for the worker only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import tempfile
from pathlib import Path

from llama_magic.backends.build_log import BuildProgress
from llama_magic.backends.building import Runner
from llama_magic.backends.known import find_backend
from llama_magic.backends.recipes import wheel_arguments
from llama_magic.backends.wheel_request import WheelRequest
from llama_magic.errors import BuildError, MissingDependencyError
from llama_magic.native import WorkerTools

__all__ = ["run"]


def run(request: WheelRequest, tools: WorkerTools) -> str:
    """Answer a `WheelRequest`: build the wheel, then let pip put it in place of the installed one."""
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError("building llama-cpp-python needs pip: python -m ensurepip")
    version = importlib.metadata.version("llama-cpp-python")
    backends = [find_backend(name) for name in request.backends if name != "cpu"]
    title = f"llama-cpp-python with {', '.join(backend.title for backend in backends) or 'the CPU alone'}"
    pip = [sys.executable, "-m", "pip"]
    with (
        tempfile.TemporaryDirectory(prefix="llama-magic-") as folder,
        Path(request.log).open("w", encoding="utf-8") as log,
    ):
        runner = Runner(tools, log, BuildProgress(title))
        runner.run(
            [
                *pip, "wheel", "--disable-pip-version-check", "--no-input", "-v", "--no-deps", "--no-cache-dir",
                "--no-binary", "llama-cpp-python", "-w", folder, f"llama-cpp-python=={version}",
            ],
            f"building {title}",
            {"CMAKE_ARGS": wheel_arguments(backends, request.defines), "NINJA_STATUS": "[%f/%t] "},
        )  # fmt: skip
        wheels = sorted(Path(folder).glob("llama_cpp_python-*.whl"))
        if not wheels:
            raise BuildError("pip ended well but made no wheel of llama-cpp-python", request.log)
        runner.run(
            [
                *pip,
                "install",
                "--disable-pip-version-check",
                "--no-input",
                "--no-deps",
                "--force-reinstall",
                str(wheels[0]),
            ],
            "installing llama-cpp-python",
        )
    return version
