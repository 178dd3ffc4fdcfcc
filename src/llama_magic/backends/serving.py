"""Serve this machine's devices to others, on ggml's own RPC server: for a worker of its own."""

from __future__ import annotations

from llama_magic.backends.rpc_requests import RpcServeRequest
from llama_magic.errors import RpcHostError
from llama_magic.native import WorkerTools, list_devices
from llama_magic.native.registry import serve_rpc

__all__ = ["run"]


def run(request: RpcServeRequest, _tools: WorkerTools) -> None:
    """Answer an `RpcServeRequest`: it ends only where serving fails, or with the process."""
    names = request.devices
    if not names:
        # As llama.cpp's own server does (tools/rpc/rpc-server.cpp): accelerators, and where there is none, the CPU.
        devices = list_devices()
        names = tuple(device.name for device in devices if device.type in ("gpu", "igpu")) or ("CPU",)
    serve_rpc(request.endpoint, names, request.threads, request.cache or None)
    raise RpcHostError(f"ggml could not listen at {request.endpoint}")
