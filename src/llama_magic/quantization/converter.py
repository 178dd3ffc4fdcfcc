"""llama.cpp's own converter: which architectures it knows, and running it. Runs in the worker.

The converter is foreign code and reads what strangers made. It gets a process of its own (`converter_child`), without a
network, and ends when this one does.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llama_magic.backends.host import default_threads
from llama_magic.errors import InvalidModelError, JobInterrupted, MissingDependencyError

__all__ = ["ConverterError", "check_installed", "known_architectures", "run_converter"]

#: What the converters import, and the package it comes with.
_NEEDS = {
    "torch": "torch",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "google.protobuf": "protobuf",
}
_ROOT = Path(__file__).resolve().parents[2]
_START = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop(1)]; "
    "from llama_magic.quantization.converter_child import main; main()"
)
_LOOK_S = 0.1
_LINES = 40


@dataclass
class ConverterError(Exception):
    """The converter ended without a file.

    Attributes
    ----------
    kind
        Name of the exception; "SystemExit" where it logged why, "Signal" where the process was ended.
    text
        Its message.
    errno
        That of an `OSError`.
    trace
        The last lines that it wrote.
    """

    kind: str
    text: str
    errno: int = 0
    trace: str = ""


def check_installed() -> None:
    """Raise `MissingDependencyError` where a package is missing that the converter needs."""
    missing = [package for module, package in _NEEDS.items() if not _found(module)]
    if missing:
        raise MissingDependencyError(
            f"converting needs {', '.join(missing)}: pip install 'llama-magic[convert]', then try again"
        )


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def known_architectures(source: Path) -> dict[str, frozenset[str]]:
    """Return the architectures that a converter knows, for "model" and for "mmproj". Nothing is imported for it."""
    tree = ast.parse((source / "conversion" / "__init__.py").read_text("utf-8"))
    names = {"TEXT_MODEL_MAP": "model", "MMPROJ_MODEL_MAP": "mmproj"}
    found: dict[str, frozenset[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            kind = names.get(node.target.id)
            if kind is not None:
                found[kind] = frozenset(ast.literal_eval(node.value))
    if found.keys() != set(names.values()):
        raise InvalidModelError(f"{source} holds no converter that llama_magic knows")
    return found


def run_converter(
    source: Path,
    script: str,
    arguments: list[str],
    workspace: Path,
    hear: Callable[[Mapping[str, Any]], None],
    cancelled: Callable[[], bool],
) -> None:
    """Run a converter until it is done, and hand what it tells to `hear`.

    Raises
    ------
    ConverterError
        It failed.
    JobInterrupted
        `cancelled` said so. What `hear` raises ends it as well.
    """
    order = json.dumps({"folder": str(source), "script": script, "arguments": arguments})
    with (workspace / "log").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(_ROOT), order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=workspace,
            env=_environment(workspace),
        )
        try:
            ended = _follow(process, hear, cancelled)
        finally:
            _end(process)
        if ended is None:
            raise _without_words(process.returncode, log)
    if ended["event"] == "error":
        raise ConverterError(ended["kind"], ended["text"], ended["errno"], ended["trace"])


def _follow(
    process: subprocess.Popen[bytes], hear: Callable[[Mapping[str, Any]], None], cancelled: Callable[[], bool]
) -> dict[str, Any] | None:
    """Hand events on; return the last one, or None where the process ended without it."""
    events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, events), name="llama-magic-converter", daemon=True).start()
    while True:
        if cancelled():
            raise JobInterrupted
        try:
            line = events.get(timeout=_LOOK_S)
        except queue.Empty:
            continue
        if line is None:
            return None
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if event["event"] in {"done", "error"}:
            return event
        hear(event)


def _read(stream: IO[bytes], events: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            events.put(line)
    events.put(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the process end by itself where it said that it is done, else end it; wait for it."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _without_words(code: int, log: IO[bytes]) -> ConverterError:
    log.seek(0)
    lines = collections.deque(log.read().decode("utf-8", "replace").splitlines(), _LINES)
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it gave no reason")
    if code < 0:
        return ConverterError("Signal", str(-code), 0, "\n".join(lines))
    return ConverterError("Exit", last, 0, "\n".join(lines))


def _environment(workspace: Path) -> dict[str, str]:
    dropped = ("NO_LOCAL_GGUF", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    return environment | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_MODULES_CACHE": str(workspace / "modules"),
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(default_threads()),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
