"""Runs a converter of llama.cpp in a process of its own, with what strangers could abuse turned off.

Started by `converter` with an order as JSON. It writes a JSON object on each line of standard output: how far it is,
and at the end "done" or "error". It ends when standard input is closed, so that it never outlives who started it.

Checkpoints come from strangers. Of what they hold, nothing is run: no code that a tokenizer or config brings along
(``trust_remote_code``), nothing out of pickled files but tensors (``weights_only``), and there is no network.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import runpy
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

__all__ = ["main"]

_Tell = Callable[..., None]


def main() -> None:
    """Do what the first argument says: `folder` of the source, `script` in it, its `arguments`."""
    order = json.loads(sys.argv[1])
    tell = _speaker()
    threading.Thread(target=_watch, name="llama-magic-watch", daemon=True).start()
    sys.addaudithook(_no_network)
    errors: list[str] = []
    logging.basicConfig(level=logging.INFO, handlers=[_Listener(tell, errors)], force=True)
    folder = Path(order["folder"])
    # The converter's own gguf, which knows this llama.cpp's models, comes before an installed one.
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    sys.argv = [str(folder / order["script"]), *order["arguments"]]
    try:
        tell("stage", text="loading torch and transformers")
        _guard_torch()
        _guard_transformers()
        _watch_writer(tell)
        tell("stage", text="reading the checkpoint")
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exc:
        if exc.code:
            tell("error", kind="SystemExit", text=" ".join(errors[-2:]) or str(exc.code), errno=0, trace="")
            sys.exit(1)
    except BaseException as exc:  # noqa: BLE001 - whatever it is, the other side has to hear of it
        tell("error", kind=_name(exc), text=str(exc), errno=getattr(exc, "errno", 0) or 0, trace=traceback.format_exc())
        sys.exit(1)
    tell("done")


def _name(exc: BaseException) -> str:
    return next(kind.__name__ for kind in type(exc).__mro__ if kind.__module__ in {"builtins", "_pickle", "pickle"})


def _speaker() -> _Tell:
    """Return what sends events; everything else that is printed goes to standard error."""
    stream: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(event: str, **values: Any) -> None:
        with lock:
            stream.write(json.dumps({"event": event, **values}) + "\n")
            stream.flush()

    return tell


def _watch() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


# -- what is turned off -----------------------------------------------------------------------------------------------


def _no_network(event: str, _arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.getaddrinfo"}:
        raise PermissionError("the converter has no network")


def _guard_torch() -> None:
    """Let torch.load give tensors only, whatever the caller says."""
    torch: Any = importlib.import_module("torch")
    plain = torch.load

    def load(*arguments: Any, **keywords: Any) -> Any:
        return plain(*arguments, **(keywords | {"weights_only": True}))

    torch.load = load


def _guard_transformers() -> None:
    """Keep transformers from running code that a checkpoint brings: the converter would allow it for tokenizers."""
    transformers: Any = importlib.import_module("transformers")
    for name in ("AutoConfig", "AutoTokenizer"):
        kind = getattr(transformers, name)
        kind.from_pretrained = _untrusting(kind.from_pretrained)
    modules: Any = importlib.import_module("transformers.dynamic_module_utils")
    # Where such code would be run at last. A version without this function is one that nobody looked at.
    modules.get_class_in_module  # noqa: B018 - an AttributeError is what is wanted then

    def refuse(class_name: str, *_arguments: Any, **_keywords: Any) -> Any:
        raise PermissionError(f"trust_remote_code: {class_name} is code of the checkpoint")

    modules.get_class_in_module = refuse


def _untrusting(plain: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(*arguments: Any, **keywords: Any) -> Any:
        return plain(*arguments, **(keywords | {"trust_remote_code": False}))

    return from_pretrained


# -- how far it is ----------------------------------------------------------------------------------------------------


class _Listener(logging.Handler):
    """Hears what the converter logs: tensors it looks at, warnings and errors."""

    def __init__(self, tell: _Tell, errors: list[str]) -> None:
        super().__init__()
        self._tell = tell
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._errors.append(text)
        if record.levelno >= logging.WARNING:
            self._tell("warning", text=text)
        elif " --> " in text:
            self._tell("stage", text=f"looking at {text.partition(',')[0]}")


class _Bar:
    """Stands in for tqdm's bar, which the writer moves after each tensor."""

    def __init__(self, tell: _Tell, tensors: list[tuple[str, int]]) -> None:
        self._tell = tell
        self._tensors = tensors
        self._total = max(1, sum(size for _, size in tensors))
        self._done = 0
        self._at = 0
        self._say()

    def update(self, size: int) -> None:
        self._done += size
        self._at += 1
        if self._at < len(self._tensors):
            self._say()

    def _say(self) -> None:
        if self._tensors:
            name, count = self._tensors[self._at][0], len(self._tensors)
            self._tell("tensor", fraction=self._done / self._total, at=self._at + 1, count=count, name=name)


def _watch_writer(tell: _Tell) -> None:
    """Let the writer of GGUF files tell the file's type before it writes, and each tensor that it writes."""
    writer = importlib.import_module("gguf").GGUFWriter
    write_header, write_tensors = writer.write_header_to_file, writer.write_tensors_to_file

    def write_header_to_file(self: Any, *arguments: Any, **keywords: Any) -> Any:
        kind = self.kv_data[0].get("general.file_type")
        tell("file_type", number=None if kind is None else int(kind.value), bytes=_bytes(self))
        return write_header(self, *arguments, **keywords)

    def write_tensors_to_file(self: Any, **_keywords: Any) -> Any:
        tensors = [(name, info.nbytes) for shard in self.tensors for name, info in shard.items()]
        progress: Any = importlib.import_module("tqdm")
        bar, plain = _Bar(tell, tensors), progress.tqdm
        progress.tqdm = lambda *_arguments, **_more: bar
        try:
            return write_tensors(self, progress=True)
        finally:
            progress.tqdm = plain

    writer.write_header_to_file = write_header_to_file
    writer.write_tensors_to_file = write_tensors_to_file


def _bytes(writer: Any) -> int:
    return sum(info.nbytes for shard in writer.tensors for info in shard.values())
