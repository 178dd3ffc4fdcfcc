"""Ask an RPC host whether it is there, in the words of ggml's protocol.

ggml ends the process where a host does not answer, and waits for ever where another client is
connected: a host serves one at a time. So it is asked before ggml connects to it.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from llama_magic.errors import InvalidRequestError, RpcHostError

__all__ = ["DEFAULT_PORT", "PROTOCOL", "RpcHost", "check_host", "parse_endpoint"]

#: ``RPC_PROTO_MAJOR_VERSION`` and ``RPC_PROTO_MINOR_VERSION`` of the llama.cpp in use (ggml-rpc.h).
PROTOCOL = (7, 0)
#: The port that llama.cpp's own RPC server takes (tools/rpc/rpc-server.cpp).
DEFAULT_PORT = 50052

#: Commands and their layouts (ggml-rpc.cpp, `rpc_cmd`): the command, the bytes that follow, the bytes.
_HELLO, _DEVICE_COUNT, _DEVICE_MEMORY = 14, 15, 11
_CAPABILITIES = 24  # transport.h, RPC_CONN_CAPS_SIZE


@dataclass(frozen=True, slots=True)
class RpcHost:
    """What an RPC host said: its protocol, and bytes of (free, total) memory of each of its devices."""

    endpoint: str
    protocol: tuple[int, int, int]
    memory: tuple[tuple[int, int], ...]


def parse_endpoint(text: str) -> str:
    """Return ``host:port`` of what a person typed; without a port it is llama.cpp's own.

    Raises
    ------
    InvalidRequestError
        It is no address. ggml resolves IPv4 addresses and names only.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        host, port = port, str(DEFAULT_PORT)
    if not host or any(char.isspace() or char in "/,;" for char in host) or not port.isdecimal():
        raise InvalidRequestError(f"an RPC host is host:port, for example 192.168.1.5:{DEFAULT_PORT}; got {text!r}")
    if ":" in host or not 0 < int(port) < 65536:
        raise InvalidRequestError(
            f"an RPC host is an IPv4 address or a name, and a port of 1 to 65535 (ggml knows no IPv6); got {text!r}"
        )
    return f"{host}:{int(port)}"


def check_host(endpoint: str, timeout: float = 2.0) -> RpcHost:
    """Ask a host for its protocol and its devices.

    Parameters
    ----------
    timeout
        Seconds to wait for each answer.

    Raises
    ------
    RpcHostError
        It does not answer, is no RPC host, speaks another protocol, or serves somebody else.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout) as connection:
            return _ask(endpoint, connection)
    except TimeoutError:
        raise RpcHostError(f"{endpoint} does not answer: is the machine on, and no firewall between?") from None
    except ConnectionRefusedError:
        raise RpcHostError(
            f"nothing listens at {endpoint}: start it there with %llama rpc serve, or llama.cpp's ggml-rpc-server"
        ) from None
    except socket.gaierror:
        raise RpcHostError(f"there is no machine named {host!r} here") from None
    except OSError as exc:
        raise RpcHostError(f"{endpoint} can not be reached: {exc.strerror or exc}") from exc


def _ask(endpoint: str, connection: socket.socket) -> RpcHost:
    connection.sendall(struct.pack("<BQ", _HELLO, _CAPABILITIES) + bytes(_CAPABILITIES))
    try:
        hello = _answer(connection, 4 + _CAPABILITIES)
    except TimeoutError:
        raise RpcHostError(
            f"{endpoint} is busy: an RPC host serves one process at a time. Unload what uses it, here or elsewhere"
        ) from None
    if hello is None:
        raise RpcHostError(f"what listens at {endpoint} is no RPC host of this llama.cpp")
    major, minor, patch = hello[0], hello[1], hello[2]
    if major != PROTOCOL[0] or minor > PROTOCOL[1]:
        raise RpcHostError(
            f"{endpoint} speaks version {major}.{minor} of the RPC protocol, this llama.cpp "
            f"{PROTOCOL[0]}.{PROTOCOL[1]}: install the same version on both machines"
        )
    connection.sendall(struct.pack("<BQ", _DEVICE_COUNT, 0))
    count = _answer(connection, 4)
    memory = []
    for index in range(0 if count is None else struct.unpack("<I", count)[0]):
        connection.sendall(struct.pack("<BQI", _DEVICE_MEMORY, 4, index))
        both = _answer(connection, 16)
        if both is not None:
            memory.append(struct.unpack("<QQ", both))
    if not memory:
        raise RpcHostError(f"the RPC host {endpoint} offers no device")
    return RpcHost(endpoint, (major, minor, patch), tuple(memory))


def _answer(connection: socket.socket, size: int) -> bytes | None:
    """Return an answer of `size` bytes, None where the answer is something else."""
    head = _read(connection, 8)
    return _read(connection, size) if len(head) == 8 and struct.unpack("<Q", head)[0] == size else None


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data
