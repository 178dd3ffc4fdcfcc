"""ggml's registry of backends: modules loaded into it and taken out of it, RPC hosts added and served."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_magic.errors import InvalidRequestError, NativeError
from llama_magic.native.devices import Device, device_handles, read_device
from llama_magic.native.library import dll, initialize
from llama_magic.native.log import LogCapture

__all__ = ["Registered", "add_rpc_host", "load_module", "registered", "serve_rpc", "unregister"]


class _Feature(ctypes.Structure):
    """`ggml_backend_feature`."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


@dataclass(frozen=True, slots=True)
class Registered:
    """A backend in the registry: its name, what its code uses (``("AVX2", "1")``), its devices."""

    name: str
    features: tuple[tuple[str, str], ...]
    devices: tuple[Device, ...]


def _bind(name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(dll, name)
    function.restype = restype
    function.argtypes = list(argtypes)
    return function


_count = _bind("ggml_backend_reg_count", ctypes.c_size_t)
_get = _bind("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
_name = _bind("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
_by_name = _bind("ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p)
_proc_address = _bind("ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_load = _bind("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
_unload = _bind("ggml_backend_unload", None, ctypes.c_void_p)
_register = _bind("ggml_backend_register", None, ctypes.c_void_p)
_device_count = _bind("ggml_backend_dev_count", ctypes.c_size_t)
_device_get = _bind("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_device_reg = _bind("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)


def registered() -> tuple[Registered, ...]:
    """Return every backend of the registry, with the devices that are registered with it.

    The devices of all RPC hosts belong to the one backend RPC.
    """
    initialize()
    devices: dict[int, list[int]] = {}
    for index in range(_device_count()):
        handle = _device_get(index)
        devices.setdefault(int(_device_reg(handle) or 0), []).append(handle)
    rows = []
    for index in range(_count()):
        handle = _get(index)
        name = _name(handle).decode()
        if name.startswith("RPC["):
            continue
        rows.append(Registered(name, _features(handle), tuple(map(read_device, devices.get(int(handle), ())))))
    return tuple(rows)


def _features(handle: int) -> tuple[tuple[str, str], ...]:
    address = _proc_address(handle, b"ggml_backend_get_features")
    if not address:
        return ()
    row = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(address)(handle)
    found: list[tuple[str, str]] = []
    while row and row[len(found)].name:
        found.append((row[len(found)].name.decode(), (row[len(found)].value or b"").decode()))
    return tuple(found)


def load_module(path: str, log: LogCapture) -> str:
    """Load a backend's module and return the backend's name.

    Raises
    ------
    NativeError
        It can not be loaded, or does not fit this ggml: with ggml's reason.
    """
    initialize()
    log.clear()
    handle = _load(path.encode())
    if not handle:
        lines = log.errors() or [line for _, line in log.lines if "not supported" in line]
        raise NativeError(" ".join(lines) or f"ggml could not load {path} and gave no reason")
    return str(_name(handle).decode())


def unregister(name: str) -> None:
    """Take a backend out of the registry: llama.cpp then knows none of its devices. It stays in memory."""
    initialize()
    handle = _by_name(name.encode())
    if handle:
        _unload(handle)


def _rpc(name: str) -> int:
    handle = _by_name(b"RPC")
    if not handle:
        raise InvalidRequestError("the backend RPC is not loaded")
    address = _proc_address(handle, name.encode())
    if not address:
        raise NativeError(f"this RPC backend has no {name}")
    return int(address)


def add_rpc_host(endpoint: str) -> None:
    """Register the devices of an RPC host. ggml ends the process where the host does not answer: ask it before."""
    initialize()
    handle = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(_rpc("ggml_backend_rpc_add_server"))(endpoint.encode())
    if not handle:
        raise NativeError(f"the RPC host {endpoint} offers no device")
    _register(handle)


def serve_rpc(endpoint: str, names: Sequence[str], threads: int, cache: str | None) -> None:
    """Serve devices to other machines; returns only where that fails.

    Parameters
    ----------
    endpoint
        Address to listen at, ``host:port``.
    names
        Devices to offer.
    threads
        Threads that a CPU device computes with.
    cache
        Folder for tensors that were sent once; None for no cache.
    """
    initialize()
    handles = device_handles(names)
    array = (ctypes.c_void_p * len(handles))(*handles)
    start = ctypes.CFUNCTYPE(
        None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)
    )(_rpc("ggml_backend_rpc_start_server"))
    start(endpoint.encode(), None if cache is None else cache.encode(), threads, len(handles), array)
    sys.stdout.flush()
