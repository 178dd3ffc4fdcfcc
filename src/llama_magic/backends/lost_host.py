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
    gone = [host for host in hosts if not _answers(host)]
    if not gone:
        return f"The connection to the RPC host {' or '.join(hosts)} broke; it answers again."
    return (
        f"The RPC host {', '.join(gone)} was lost while it computed: its process ended, or the network was cut. "
        f"What is left is used without it; %llama rpc add {gone[0]} attaches it again."
    )


def _answers(host: str) -> bool:
    try:
        check_host(host, 1.0)
    except RpcHostError:
        return False
    return True
