"""A pool of threads that stays between decodes, as llama-bench and llama-cli attach one to their contexts.

Where ggml was built with OpenMP, that keeps its threads anyhow and a pool changes nothing; elsewhere ggml would
start threads anew for every decode.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

from llama_magic.native.context import NativeContext
from llama_magic.native.library import dll, initialize

__all__ = ["ThreadPool"]

_MOST_THREADS = 512  # GGML_MAX_N_THREADS (ggml.h)
_POLL = 50


class _Params(ctypes.Structure):
    """`ggml_threadpool_params` (ggml.h)."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * _MOST_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def _bind(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(dll, name, None)
    if function is not None:
        function.restype = restype
        function.argtypes = list(argtypes)
    return function


_device = _bind("ggml_backend_dev_by_type", ctypes.c_void_p, ctypes.c_int)
_registry = _bind("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)
_procedure = _bind("ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_init = _bind("ggml_threadpool_params_init", None, ctypes.POINTER(_Params), ctypes.c_int)
_attach = _bind("llama_attach_threadpool", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class ThreadPool:
    """Threads for one context. Close it after the context: llama.cpp does not hold it.

    Parameters
    ----------
    context
        What computes with it.
    n_threads
        Threads.
    """

    def __init__(self, context: NativeContext, n_threads: int) -> None:
        self.attached = False
        self._finalizer: Any = None
        initialize()
        if not all((_device, _registry, _procedure, _init, _attach)):
            return
        cpu = _device(0)
        registry = _registry(cpu) if cpu else None
        make = _procedure(registry, b"ggml_threadpool_new") if registry else None
        free = _procedure(registry, b"ggml_threadpool_free") if registry else None
        params = _Params()
        _init(ctypes.byref(params), n_threads)
        # Other values than ggml's own mean another layout of the structure.
        if not make or not free or (params.n_threads, params.poll) != (n_threads, _POLL):
            return
        handle = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Params))(make)(ctypes.byref(params))
        if not handle:
            return
        _attach(ctypes.cast(context.handle, ctypes.c_void_p), handle, None)
        self.attached = True
        self._finalizer = weakref.finalize(self, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(free), handle)

    def close(self) -> None:
        """End the threads."""
        if self._finalizer is not None:
            self._finalizer()
