"""Start the worker process, talk to it, and say what became of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import IO

from llama_magic.backends.amx import REINSTALL, amx_trap
from llama_magic.errors import EngineError

__all__ = ["WorkerProcess"]

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_TAIL = 8192


class WorkerProcess:
    """One worker process and the channel to it.

    The channel is a socket pair that only this process and the worker hold; on Windows a named
    pipe with a key. Nothing listens on a network.

    Parameters
    ----------
    environment
        Variables that it gets beside this process's own.
    early
        Let it import what it may need before anybody asks: for one that waits.
    """

    def __init__(self, environment: Iterable[tuple[str, str]] = (), *, early: bool = False) -> None:
        self._arguments = ["--early"] if early else []
        # Without it, ggml lets a debugger print the stack when an assertion fails, which takes seconds.
        self._environment = {"GGML_NO_BACKTRACE": "1", **os.environ, **dict(environment)}
        # Kept open as long as the process may write to it.
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.connection: Connection
        self._process: subprocess.Popen[bytes]
        if sys.platform == "win32":
            self._start_windows()
        else:
            self._start_posix()
        self._finalizer = weakref.finalize(self, _stop, self._process, self.connection, self._output, os.getpid())

    def _start_posix(self) -> None:
        ours, theirs = Pipe(duplex=True)
        with contextlib.closing(theirs):
            self._process = self._spawn(["--fd", str(theirs.fileno())], pass_fds=(theirs.fileno(),))
        self.connection = ours

    def _start_windows(self) -> None:
        key = secrets.token_bytes(32)
        with Listener(family="AF_PIPE", authkey=key) as listener:
            self._process = self._spawn(["--address", str(listener.address)], stdin=subprocess.PIPE)
            if self._process.stdin is not None:
                self._process.stdin.write(key)
                self._process.stdin.close()
            self.connection = listener.accept()

    def _spawn(
        self, arguments: list[str], *, pass_fds: tuple[int, ...] = (), stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "llama_magic.worker", *arguments, *self._arguments],
                # `-m` puts the working folder first on the path: there, a notebook's own random.py would
                # take the place of Python's.
                cwd=_PACKAGE_ROOT,
                env=self._environment,
                stdin=stdin,
                stdout=self._output,
                stderr=self._output,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        except OSError as exc:
            raise EngineError(f"the worker process could not be started: {exc}") from exc

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def exit_code(self, timeout: float = 2.0) -> int | None:
        """Return the exit code, waiting for it a little; None when the process still runs."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def output(self) -> list[str]:
        """Return the last lines that the process wrote: a failed assertion of ggml is told there."""
        try:
            size = self._output.seek(0, os.SEEK_END)
            self._output.seek(max(0, size - _TAIL))
            lines = self._output.read().decode("utf-8", "replace").splitlines()
        except ValueError:  # closed, maybe by another thread just now
            return []
        return [line.strip() for line in lines if line.strip()]

    def cause(self) -> str:
        """Return in words why the process ended."""
        code = self.exit_code()
        if code is None:
            return "The worker process stopped answering."
        if code < 0:
            name = signal.Signals(-code).name
            if name == "SIGKILL":
                return (
                    "The worker process was killed (SIGKILL), most likely because memory ran out. "
                    "What helps: a smaller quantization or a smaller context (-c)."
                )
            if name == "SIGILL" and not _amx(code):
                return (
                    "The worker process met an instruction that this processor lacks (SIGILL): llama-cpp-python "
                    "was built on another machine. Reinstall it here, or build it with GGML_NATIVE=OFF."
                )
            return f"The worker process crashed inside llama.cpp ({name}).{_amx(code)}"
        return f"The worker process ended (exit code {code})."

    def kill(self) -> None:
        """End the process at once."""
        self._finalizer()


def _amx(code: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what to do about a crash in AMX code, empty where there is none: it ends with SIGILL or SIGSEGV."""
    if -code not in (signal.SIGILL, signal.SIGSEGV) or not amx_trap(cpuinfo):
        return ""
    return (
        " Most likely its code for AMX is at fault, which GCC compiles wrongly. What helps: reinstall llama-cpp-python "
        f"without it: {REINSTALL}."
    )


def _stop(process: subprocess.Popen[bytes], connection: Connection, output: IO[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child must not end its parent's worker
    with contextlib.suppress(OSError):
        connection.close()
    if process.poll() is None:
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    output.close()
