"""llama.cpp's log, captured: nothing reaches stderr, the last lines are kept."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llama_magic.native.library import lib

__all__ = ["LEVELS", "LogCapture", "captured_stderr"]

#: ggml_log_level (ggml.h) to names; 5 continues the line before.
LEVELS = {1: "debug", 2: "info", 3: "warning", 4: "error"}
_CONTINUE = 5


class LogCapture:
    """Takes over llama.cpp's log for the whole process.

    Attributes
    ----------
    lines
        Level and text of the last lines.
    layers
        What was said since `clear` of which device computes which layer.

    Parameters
    ----------
    sink
        Called with level and text for every whole line of "info" and above.
    keep
        Lines to remember.
    """

    def __init__(self, sink: Callable[[str, str], None] | None = None, keep: int = 200) -> None:
        self.sink = sink
        #: Levels that the sink is told.
        self.told: tuple[str, ...] = ("info", "warning", "error")
        self.lines: deque[tuple[str, str]] = deque(maxlen=keep)
        self.layers: list[str] = []
        self._level = "info"
        self._partial = ""
        # The callback object must live as long as llama.cpp may call it.
        self._callback = lib.llama_log_callback(self._receive)

    def install(self) -> None:
        """Send llama.cpp's log here."""
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _user_data: object) -> None:
        if level != _CONTINUE:
            self._level = LEVELS.get(level, "info")
        self._partial += text.decode("utf-8", "replace")
        while "\n" in self._partial:
            line, self._partial = self._partial.split("\n", 1)
            if line.strip(". "):
                self._keep(line.rstrip())

    def _keep(self, line: str) -> None:
        if self._level == "debug":
            if "assigned to device" in line:
                self.layers.append(line)
            return  # hundreds of them would push out what the last lines are kept for
        self.lines.append((self._level, line))
        if self.sink is not None and self._level in self.told:
            self.sink(self._level, line)

    def clear(self) -> None:
        """Forget what was kept."""
        self.lines.clear()
        self.layers.clear()
        self._partial = ""

    def errors(self, most: int = 3) -> list[str]:
        """Return the last error lines, or the last warnings where there is no error."""
        for level in ("error", "warning"):
            found = [line for kept, line in self.lines if kept == level]
            if found:
                return found[-most:]
        return []


@contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Collect what native code writes to file descriptor 2 meanwhile; the lines are there at the end."""
    lines: list[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += file.read().decode("utf-8", "replace").splitlines()
