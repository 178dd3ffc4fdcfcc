"""Build backends as loadable modules: for the worker only."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO

import psutil

from llama_magic.backends.build_log import BuildProgress, explain, last_lines
from llama_magic.backends.host import available_memory, default_threads
from llama_magic.backends.known import KnownBackend, find_backend
from llama_magic.backends.prerequisites import find_tool
from llama_magic.backends.recipes import (
    HOOK,
    SOURCE_PARTS,
    BuildRequest,
    StagedModule,
    build_command,
    configure_command,
    options_of,
)
from llama_magic.errors import BuildError, DiskFullError, JobInterrupted
from llama_magic.models.source import llama_cpp_source
from llama_magic.native import WorkerTools
from llama_magic.progress import Progress

__all__ = ["Runner", "run", "stop_tree"]

#: Memory that a compiler takes at once: nvcc and large C++ files, in bytes.
_PER_JOB = {"cuda": 3 << 30, "hip": 3 << 30, "musa": 3 << 30, "sycl": 3 << 30}
_PER_JOB_ELSE = 1 << 30
#: Lines of a build that are kept for its error message.
_LINES = 4000
#: Where the parent ends, the program gets SIGTERM, and ends its compilers.
_TIED = "import ctypes,os,sys; ctypes.CDLL(None).prctl(1,15,0,0,0); os.execv(sys.argv[1], sys.argv[1:])"


def run(request: BuildRequest, tools: WorkerTools) -> tuple[StagedModule, ...]:
    """Answer a `BuildRequest`."""
    backends = [find_backend(name) for name in request.backends]
    source = llama_cpp_source(SOURCE_PARTS, tools.report)
    cmake, ninja = find_tool("cmake", package="cmake"), find_tool("ninja", "ninja-build", package="ninja")
    build = str(Path(request.folder) / "build")
    options = options_of(backends, request.defines, debug=request.debug)
    hook = Path(request.folder) / "hook.cmake"
    hook.write_text(HOOK, encoding="utf-8")
    title = ", ".join(backend.title for backend in backends)
    started = time.monotonic()
    with Path(request.log).open("w", encoding="utf-8") as log:
        runner = Runner(tools, log, BuildProgress(title))
        runner.run(configure_command(cmake, ninja, str(source), build, str(hook), options), f"configuring {title}")
        runner.run(build_command(cmake, ninja, build, backends, request.jobs or _jobs(backends)), f"building {title}")
    seconds = time.monotonic() - started
    return tuple(_stage(backend, Path(request.folder), options, seconds, request.log) for backend in backends)


def _jobs(backends: list[KnownBackend]) -> int:
    each = max(_PER_JOB.get(backend.name, _PER_JOB_ELSE) for backend in backends)
    return max(1, min(default_threads(), available_memory() // each))


def _stage(backend: KnownBackend, folder: Path, options: tuple[str, ...], seconds: float, log: str) -> StagedModule:
    """Copy a module to where it can be probed; it is the real file under links with versions."""
    names = (
        f"lib{backend.target}.so",
        f"{backend.target}.dll",
        f"lib{backend.target}.dll",
        f"lib{backend.target}.dylib",
    )
    for place in ("bin", "bin/Release", "bin/Debug"):
        for name in names:
            made = folder / "build" / place / name
            if made.is_file():
                target = folder / f"{backend.name}{made.suffix}"
                shutil.copyfile(made, target)
                target.chmod(0o755)
                return StagedModule(backend.name, str(target), options, seconds)
    raise BuildError(f"the build of {backend.title} ended well but made no {names[0]}", log)


class Runner:
    """Runs the commands of a build: their output to the log, progress to the kernel, a stop to all they started."""

    def __init__(self, tools: WorkerTools, log: IO[str], progress: BuildProgress) -> None:
        self._tools = tools
        self._log = log
        self._progress = progress
        self.lines: deque[str] = deque(maxlen=_LINES)

    def run(self, command: list[str], doing: str, environment: dict[str, str] | None = None) -> None:
        """Run one command to its end.

        Raises
        ------
        BuildError, DiskFullError
            It failed.
        JobInterrupted
            The user stopped it.
        """
        self._tools.report(Progress("build", None, doing))
        self._log.write(f"$ {subprocess.list2cmdline(command)}\n")
        self.lines.clear()
        tied = [sys.executable, "-c", _TIED] if sys.platform.startswith("linux") else []
        try:
            process = subprocess.Popen(
                [*tied, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", env={**os.environ, "LC_ALL": "C", **(environment or {})},
                start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise BuildError(f"{doing}: {command[0]} can not be started: {exc.strerror}", self._log.name) from exc
        try:
            self._follow(process)
        finally:
            stop_tree(process)
        if process.returncode:
            self._fail(doing)

    def _follow(self, process: subprocess.Popen[str]) -> None:
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, lines), name="llama-magic-build", daemon=True).start()
        started = time.monotonic()
        while True:
            if self._tools.cancelled():
                stop_tree(process)
                raise JobInterrupted(None, "the build was stopped; nothing half-done is left.")
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                process.wait()
                return
            self.lines.append(line)
            self._log.write(line)
            if self._progress.read(line, time.monotonic() - started):
                self._tools.report(Progress("build", self._progress.fraction, self._progress.message))

    def _fail(self, doing: str) -> None:
        self._log.flush()
        cause = explain(list(self.lines))
        if cause.startswith("the disk is full"):
            raise DiskFullError(f"{doing} failed: {cause}. Nothing of it was installed.")
        raise BuildError(f"{doing} failed{f': {cause}' if cause else ''}", self._log.name, last_lines(list(self.lines)))


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def stop_tree(process: subprocess.Popen[str]) -> None:
    """End a process and everything it started."""
    if process.poll() is not None:
        return
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        children = []
    process.terminate()  # ninja and make end their compilers by themselves, and remove what is half written
    try:
        process.wait(0.15)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in children:
        try:
            child.kill()
        except psutil.Error:
            continue
    process.wait()
