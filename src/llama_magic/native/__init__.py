"""Typed, self-freeing wrappers over llama.cpp: the only code that touches llama_cpp and ggml.

Importing this package loads libllama into the process. In normal use only the worker does.
"""

from llama_magic.native import stages
from llama_magic.native.context import Aborted, ContextSettings, NativeContext, NoSlot, check
from llama_magic.native.devices import Device, list_devices
from llama_magic.native.grammar import grammar_from_schema
from llama_magic.native.library import LibraryInfo, library_info, state_version
from llama_magic.native.log import LogCapture
from llama_magic.native.model import LoadCancelled, NativeModel
from llama_magic.native.sampler import Sampler
from llama_magic.native.tools import WorkerTools

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
