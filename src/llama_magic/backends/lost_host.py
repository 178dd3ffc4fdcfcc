"""Tell from what a worker wrote that it died of an RPC host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama_magic.backends.rpc_check import check_host
from llama_magic.errors import RpcHostError

__all__ = ["lost_host"]

#: What ggml writes before it ends the process (ggml-rpc.cpp).
_SIGNS = ("Remote RPC server crashed", "Failed to connect to", "RPC handshake failed", "recv failed (bytes_recv")


def lost_host(output: Iterable[str], hosts: Sequence[str]) -> str:
    """Return in words which host was lost, empty where that is not what happened."""
    if not hosts or not any(sign in line for line in output for sign in _SIGNS):
        return ""
    reasons = []
    for host in hosts:
        try:
            check_host(host, 0.5)
        except RpcHostError as exc:
            reasons.append(str(exc))
    if not reasons:
        return f"The connection to the RPC host {' or '.join(hosts)} broke, and it answers again."
    return f"An RPC host was lost while the model ran on it: {'; '.join(reasons)}. What is left is used without it."
