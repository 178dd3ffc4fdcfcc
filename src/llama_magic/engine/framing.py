"""Whole messages in the layout of `multiprocessing` connections, with as few calls as there can be."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Wire", "receiving", "wire"]

_AT_ONCE, _LARGE = 1 << 16, 1 << 20
#: Before a message stands its length in four bytes, or these four and the length in eight (`Connection._send_bytes`).
_LONG, _LONGEST = b"\xff\xff\xff\xff", 1 << 31


class Wire(NamedTuple):
    """The worker's end of the channel.

    Attributes
    ----------
    receive
        Waits for the next message and returns it; `EOFError` or `OSError` at the end.
    send
        Sends a message; `OSError` where nobody reads any more. Nobody else may write meanwhile.
    ready
        Waits so many seconds at most; True where `receive` has something to read.
    """

    receive: Callable[[], bytes]
    send: Callable[[bytes], None]
    ready: Callable[[float], bool]


def wire(descriptor: int) -> Wire:
    """Return an end of a socket pair whose other end is a connection of `multiprocessing`.

    Importing that package would be a tenth of a worker's start.
    """
    receive, holds = _receiver(descriptor)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return Wire(receive, _sender(descriptor), lambda seconds: holds() or bool(poll.poll(1000 * seconds)))


def _sender(descriptor: int) -> Callable[[bytes], None]:
    write = os.write

    def send(message: bytes) -> None:
        size = len(message)
        head = size.to_bytes(4, "big") if size < _LONGEST else _LONG + size.to_bytes(8, "big")
        data = head + message
        done = write(descriptor, data)
        while done < len(data):
            done += write(descriptor, memoryview(data)[done:])

    return send


@contextlib.contextmanager
def receiving(connection: Connection) -> Iterator[Callable[[], bytes]]:
    """Give a function that waits for the next message and returns it; `EOFError` or `OSError` at the end.

    `Connection.recv_bytes` makes two system calls for a message and runs a dozen functions. What a chunk costs the
    kernel is mostly such things: nothing of them is in the processor's caches when a chunk comes. Nobody else may
    read from the connection; another thread may close it, which is noticed when the other side ends.
    """
    if sys.platform == "win32":
        yield connection.recv_bytes
        return
    # A number of its own: that of a connection which was closed may belong to another file by now.
    descriptor = os.dup(connection.fileno())
    try:
        yield _receiver(descriptor)[0]
    finally:
        os.close(descriptor)


def _receiver(descriptor: int) -> tuple[Callable[[], bytes], Callable[[], bool]]:
    """Return what receives a message, and what tells whether something of the next one was read already."""
    read, number, held = os.read, int.from_bytes, b""

    def receive() -> bytes:
        nonlocal held
        data = held or read(descriptor, _AT_ONCE)
        if len(data) == 4 + number(data[:4], "big"):
            held = b""
            return data[4:]
        message, held = _whole(descriptor, data)
        return message

    return receive, lambda: bool(held)


def _whole(descriptor: int, data: bytes) -> tuple[bytes, bytes]:
    """Return the first message of what begins with `data`, and what came after it."""
    parts, have, start, end = [data], len(data), 4, 4
    while True:
        if have >= start:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts = [data]
            if data[:4] == _LONG:
                start = 12
            if have >= start:
                end = start + int.from_bytes(data[start - 8 : start] if start > 4 else data[:4], "big")
                break
        parts.append(_more(descriptor, _AT_ONCE))
        have += len(parts[-1])
    while have < end:
        parts.append(_more(descriptor, min(end - have, _LARGE)))
        have += len(parts[-1])
    data = b"".join(parts)
    return data[start:end], data[end:]


def _more(descriptor: int, size: int) -> bytes:
    data = os.read(descriptor, size)
    if not data:
        raise EOFError
    return data
