"""A workbench for llama.cpp in Jupyter.

``%load_ext llama_magic`` in a notebook gives the magics; ``import llama_magic as lm`` the Python API.
Importing it is cheap: every name is looked up when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llama_magic._version import __version__

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from llama_magic.api.backends import devices, use_backend
    from llama_magic.api.bench import bench
    from llama_magic.api.build import build_backend, build_wheel
    from llama_magic.api.choose import choose
    from llama_magic.api.compare import compare
    from llama_magic.api.connect import RemoteModel, connect
    from llama_magic.api.convert import convert
    from llama_magic.api.diverge import diverge
    from llama_magic.api.doctor import doctor
    from llama_magic.api.evaluate import kl_divergence, perplexity
    from llama_magic.api.fit import fit
    from llama_magic.api.imatrix import imatrix
    from llama_magic.api.inspect import inspect
    from llama_magic.api.levels import clear_levels
    from llama_magic.api.library import catalog, delete, download, models, search
    from llama_magic.api.model import Chat, Model, load
    from llama_magic.api.quantize import ftypes, plan, quantize
    from llama_magic.api.rpc import RpcServer, rpc_add, rpc_hosts, rpc_remove, rpc_serve, rpc_stop
    from llama_magic.api.saved import SavedConversation, SavedConversations, saved_conversations
    from llama_magic.api.serve import Server, serve, servers, stop_serving
    from llama_magic.api.session import Session, current_session
    from llama_magic.api.stream import GenerationStream
    from llama_magic.api.tensors import microscope, tensor_errors
    from llama_magic.api.tune import tune
    from llama_magic.backends.built import BuildResult, WheelResult
    from llama_magic.backends.findings import DoctorReport, Finding
    from llama_magic.backends.modules import Module
    from llama_magic.backends.results import Backend, Backends, Device, Devices
    from llama_magic.backends.rpc_requests import AttachedHost, RpcHosts
    from llama_magic.errors import (
        BackendError,
        BuildError,
        ChatTemplateError,
        ContextFullError,
        ConversationError,
        DiskFullError,
        DownloadError,
        EngineCrashed,
        EngineError,
        EngineProtocolError,
        GenerationInterrupted,
        GrammarError,
        InvalidModelError,
        InvalidRequestError,
        JobInterrupted,
        LlamaMagicError,
        MissingDependencyError,
        ModelError,
        ModelNotFoundError,
        NativeError,
        OutOfMemoryError,
        RemoteError,
        RpcHostError,
        SavedStateError,
        SchemaError,
        ServerError,
    )
    from llama_magic.evaluation.bench import BenchResult, BenchRow
    from llama_magic.evaluation.choice import Choice
    from llama_magic.evaluation.comparison import Answer, Comparison, Figure, LevelResult, Rate, Recommendation
    from llama_magic.evaluation.divergence import Divergence, ForcedToken, ForcedTokens
    from llama_magic.evaluation.requests import Estimate, EvaluationProgress
    from llama_magic.evaluation.results import KLDivergence, KLDivergences, Perplexities, Perplexity
    from llama_magic.evaluation.tune import Speedup, TuneCheck, TuneResult, TuneTrial
    from llama_magic.inference.conversation import Conversation
    from llama_magic.inference.params import SamplingParams
    from llama_magic.inference.results import (
        Candidate,
        Chunk,
        Completion,
        Message,
        Receipt,
        Sample,
        Timings,
        TokenLogprob,
    )
    from llama_magic.models.fit import DeviceFit, FitReport, QuantizationFit
    from llama_magic.models.gguf import ModelMetadata, TensorInfo
    from llama_magic.models.library import (
        Catalogue,
        CatalogueEntry,
        ModelList,
        SearchHit,
        SearchResults,
        StoredModel,
        Unfinished,
    )
    from llama_magic.models.options import DeviceUse, LoadOptions, ModelInfo
    from llama_magic.notebook.panel import panel
    from llama_magic.quantization.convert import ConvertResult
    from llama_magic.quantization.ftypes import Ftype, FtypeTable
    from llama_magic.quantization.imatrix import ImatrixResult
    from llama_magic.quantization.results import (
        QuantizePlan,
        QuantizePlans,
        QuantizeResult,
        QuantizeResults,
        TensorChoice,
    )
    from llama_magic.serving.records import ServedRequest, ServedRequests

_HOMES = {
    "llama_magic.api.choose": "choose",
    "llama_magic.api.compare": "compare",
    "llama_magic.api.levels": "clear_levels",
    "llama_magic.evaluation.choice": "Choice",
    "llama_magic.evaluation.comparison": "Answer Comparison Figure LevelResult Rate Recommendation",
    "llama_magic.api.backends": "devices use_backend",
    "llama_magic.api.build": "build_backend build_wheel",
    "llama_magic.api.rpc": "RpcServer rpc_add rpc_hosts rpc_remove rpc_serve rpc_stop",
    "llama_magic.api.bench": "bench",
    "llama_magic.api.diverge": "diverge",
    "llama_magic.api.evaluate": "kl_divergence perplexity",
    "llama_magic.api.convert": "convert",
    "llama_magic.api.doctor": "doctor",
    "llama_magic.api.fit": "fit",
    "llama_magic.api.imatrix": "imatrix",
    "llama_magic.api.library": "catalog delete download search",
    "llama_magic.api.inspect": "inspect",
    "llama_magic.api.model": "Chat Model load",
    "llama_magic.api.quantize": "ftypes plan quantize",
    "llama_magic.api.saved": "SavedConversation SavedConversations saved_conversations",
    "llama_magic.api.connect": "RemoteModel connect",
    "llama_magic.api.serve": "Server serve servers stop_serving",
    "llama_magic.api.session": "Session current_session",
    "llama_magic.api.stream": "GenerationStream",
    "llama_magic.api.tensors": "microscope tensor_errors",
    "llama_magic.backends.built": "BuildResult WheelResult",
    "llama_magic.backends.modules": "Module",
    "llama_magic.backends.findings": "DoctorReport Finding",
    "llama_magic.backends.results": "Backend Backends Device Devices",
    "llama_magic.api.tune": "tune",
    "llama_magic.backends.rpc_requests": "AttachedHost RpcHosts",
    "llama_magic.errors": (
        "BackendError BuildError ChatTemplateError ContextFullError ConversationError DiskFullError DownloadError "
        "EngineCrashed EngineError EngineProtocolError GenerationInterrupted GrammarError InvalidModelError "
        "InvalidRequestError JobInterrupted LlamaMagicError MissingDependencyError ModelError ModelNotFoundError "
        "NativeError OutOfMemoryError RemoteError RpcHostError SavedStateError SchemaError ServerError"
    ),
    "llama_magic.evaluation.bench": "BenchResult BenchRow",
    "llama_magic.evaluation.divergence": "Divergence ForcedToken ForcedTokens",
    "llama_magic.evaluation.requests": "Estimate EvaluationProgress",
    "llama_magic.evaluation.results": "KLDivergence KLDivergences Perplexities Perplexity",
    "llama_magic.evaluation.tune": "Speedup TuneCheck TuneResult TuneTrial",
    "llama_magic.inference.conversation": "Conversation",
    "llama_magic.inference.params": "SamplingParams",
    "llama_magic.inference.results": "Candidate Chunk Completion Message Receipt Sample Timings TokenLogprob",
    "llama_magic.models.gguf": "ModelMetadata TensorInfo",
    "llama_magic.models.fit": "DeviceFit FitReport QuantizationFit",
    "llama_magic.models.library": ("Catalogue CatalogueEntry ModelList SearchHit SearchResults StoredModel Unfinished"),
    "llama_magic.models.options": "DeviceUse LoadOptions ModelInfo",
    "llama_magic.notebook.panel": "panel",
    "llama_magic.serving.records": "ServedRequest ServedRequests",
    "llama_magic.quantization.convert": "ConvertResult",
    "llama_magic.quantization.ftypes": "Ftype FtypeTable",
    "llama_magic.quantization.imatrix": "ImatrixResult",
    "llama_magic.quantization.results": "QuantizePlan QuantizePlans QuantizeResult QuantizeResults TensorChoice",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Answer",
    "AttachedHost",
    "Backend",
    "BackendError",
    "Backends",
    "BenchResult",
    "BenchRow",
    "BuildError",
    "BuildResult",
    "Candidate",
    "Catalogue",
    "CatalogueEntry",
    "Chat",
    "ChatTemplateError",
    "Choice",
    "Chunk",
    "Comparison",
    "Completion",
    "ContextFullError",
    "Conversation",
    "ConversationError",
    "ConvertResult",
    "Device",
    "DeviceFit",
    "DeviceUse",
    "Devices",
    "DiskFullError",
    "Divergence",
    "DoctorReport",
    "DownloadError",
    "EngineCrashed",
    "EngineError",
    "EngineProtocolError",
    "Estimate",
    "EvaluationProgress",
    "Figure",
    "Finding",
    "FitReport",
    "ForcedToken",
    "ForcedTokens",
    "Ftype",
    "FtypeTable",
    "GenerationInterrupted",
    "GenerationStream",
    "GrammarError",
    "ImatrixResult",
    "InvalidModelError",
    "InvalidRequestError",
    "JobInterrupted",
    "KLDivergence",
    "KLDivergences",
    "LevelResult",
    "LlamaMagicError",
    "LoadOptions",
    "Message",
    "MissingDependencyError",
    "Model",
    "ModelError",
    "ModelInfo",
    "ModelList",
    "ModelMetadata",
    "ModelNotFoundError",
    "Module",
    "NativeError",
    "OutOfMemoryError",
    "Perplexities",
    "Perplexity",
    "QuantizationFit",
    "QuantizePlan",
    "QuantizePlans",
    "QuantizeResult",
    "QuantizeResults",
    "Rate",
    "Receipt",
    "Recommendation",
    "RemoteError",
    "RemoteModel",
    "RpcHostError",
    "RpcHosts",
    "RpcServer",
    "Sample",
    "SamplingParams",
    "SavedConversation",
    "SavedConversations",
    "SavedStateError",
    "SchemaError",
    "SearchHit",
    "SearchResults",
    "ServedRequest",
    "ServedRequests",
    "Server",
    "ServerError",
    "Session",
    "Speedup",
    "StoredModel",
    "TensorChoice",
    "TensorInfo",
    "Timings",
    "TokenLogprob",
    "TuneCheck",
    "TuneResult",
    "TuneTrial",
    "Unfinished",
    "WheelResult",
    "__version__",
    "backends",
    "bench",
    "build_backend",
    "build_wheel",
    "catalog",
    "choose",
    "clear_levels",
    "compare",
    "connect",
    "convert",
    "current_session",
    "delete",
    "devices",
    "diverge",
    "doctor",
    "download",
    "fit",
    "ftypes",
    "imatrix",
    "inspect",
    "kl_divergence",
    "load",
    "microscope",
    "models",
    "panel",
    "perplexity",
    "plan",
    "quantize",
    "rpc_add",
    "rpc_hosts",
    "rpc_remove",
    "rpc_serve",
    "rpc_stop",
    "saved_conversations",
    "search",
    "serve",
    "servers",
    "stop_serving",
    "tensor_errors",
    "tune",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in {"backends", "models"}:  # packages, which can be called
        return importlib.import_module(f"llama_magic.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register the magics: ``%load_ext llama_magic``."""
    from llama_magic.notebook import load_ipython_extension as register

    register(ipython)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Take the magics away again: ``%unload_ext llama_magic``."""
    from llama_magic.notebook import unload_ipython_extension as remove

    remove(ipython)
