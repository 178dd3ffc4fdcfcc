"""Typed, self-freeing wrappers over llama.cpp: the only code that touches llama_cpp and ggml.

Using a name of this package loads libllama into the process. In normal use only the worker does. Each is looked up when
it is used, so that a job that loads no model does without numpy and what else contexts need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_magic.native import stages
    from llama_magic.native.context import Aborted, ContextSettings, NativeContext, NoSlot, check
    from llama_magic.native.devices import Device, list_devices
    from llama_magic.native.grammar import grammar_from_schema
    from llama_magic.native.library import LibraryInfo, library_info, state_version
    from llama_magic.native.log import LogCapture
    from llama_magic.native.model import LoadCancelled, NativeModel
    from llama_magic.native.sampler import Sampler
    from llama_magic.native.tools import WorkerTools

_HOMES = {
    "context": "Aborted ContextSettings NativeContext NoSlot check",
    "devices": "Device list_devices",
    "grammar": "grammar_from_schema",
    "library": "LibraryInfo library_info state_version",
    "log": "LogCapture",
    "model": "LoadCancelled NativeModel",
    "sampler": "Sampler",
    "tools": "WorkerTools",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Aborted",
    "ContextSettings",
    "Device",
    "LibraryInfo",
    "LoadCancelled",
    "LogCapture",
    "NativeContext",
    "NativeModel",
    "NoSlot",
    "Sampler",
    "WorkerTools",
    "check",
    "grammar_from_schema",
    "library_info",
    "list_devices",
    "stages",
    "state_version",
]


def __getattr__(name: str) -> Any:
    if name == "stages":
        return importlib.import_module("llama_magic.native.stages")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llama_magic.native.{home}"), name)
    globals()[name] = value
    return value
