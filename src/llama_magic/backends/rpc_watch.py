"""Notice within seconds that an RPC host is gone: for the worker only.

ggml waits for a host's answer without a limit. A host that is cut off from the network never says
so, and the worker would hang until the system gives the connection up, after a quarter of an hour. So
the system is told to look at these connections: ggml's call then fails, and the worker ends with a message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterable

import psutil

__all__ = ["GONE_S", "watch"]

#: Seconds without a sign of life after which a host counts as gone.
GONE_S = 8
_LOOK_S = 0.25


def watch(endpoints: Iterable[str]) -> None:
    """Look after the connections to these hosts from now on, on a thread of its own."""
    addresses = {address for endpoint in endpoints for address in _addresses(endpoint)}
    threading.Thread(target=_run, args=(addresses, threading.Event()), name="llama-magic-rpc", daemon=True).start()


def _addresses(endpoint: str) -> list[tuple[str, int]]:
    host, _, port = endpoint.rpartition(":")
    with contextlib.suppress(OSError):
        return [(str(row[4][0]), int(port)) for row in socket.getaddrinfo(host, int(port), socket.AF_INET)]
    return []


def _run(addresses: set[tuple[str, int]], never: threading.Event) -> None:
    process, seen = psutil.Process(), set[tuple[int, int]]()
    while not never.wait(_LOOK_S):
        try:
            connections = process.net_connections("tcp4")
        except (psutil.Error, OSError, RuntimeError):
            continue
        for row in connections:
            # The local port tells a new connection from an older one with the same descriptor.
            if row.fd >= 0 and tuple(row.raddr) in addresses and (row.fd, row.laddr[1]) not in seen:
                seen.add((row.fd, row.laddr[1]))
                _guard(row.fd)


def _guard(descriptor: int) -> None:
    """Let the system probe a connection that is idle, and give up one whose data nobody takes."""
    options = {
        "TCP_KEEPIDLE": GONE_S // 2,
        "TCP_KEEPALIVE": GONE_S // 2,  # the same on macOS
        "TCP_KEEPINTVL": max(1, GONE_S // 4),
        "TCP_KEEPCNT": 2,
        "TCP_USER_TIMEOUT": 1000 * GONE_S,
    }
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            number = getattr(socket, name, None)
            if number is not None:
                copy.setsockopt(socket.IPPROTO_TCP, number, value)
