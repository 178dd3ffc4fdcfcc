"""A socket to listen at, and uvicorn on a thread of the kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any

from llama_magic.errors import InvalidRequestError, ServerError

__all__ = ["Listener", "open_socket"]

#: Seconds until uvicorn listens; until connections are closed by force at its end.
_START_S, _GRACE_S = 10.0, 0.4
#: Ports that are looked at for a free one.
_TRIES = 100
#: Connections at once, those that wait for their turn included.
_CONNECTIONS = 256


def open_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any that is free.

    Raises
    ------
    ServerError
        The port is in use, with one that is free; or the address is none of this machine.
    """
    if not 0 <= port <= 65535:
        raise InvalidRequestError(f"a port is a number from 0 to 65535 (0 picks one that is free); got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ServerError(f"{host!r} is no address of this machine; 127.0.0.1 is this machine only") from None
    family, address = found[0][0], found[0][4]
    try:
        return _bind(family, address)
    except PermissionError:
        raise ServerError(f"port {port} needs the rights of the administrator; above 1023 none are needed") from None
    except OSError as exc:
        free = _free_port(family, address)
        if free is None or not port:
            raise ServerError(f"it can not listen at {host}: {exc.strerror or exc}") from None
        raise ServerError(f"port {port} is in use; {free} is free, and port 0 picks one by itself") from None


def _bind(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere this would let two servers listen at one port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _free_port(family: int, address: Any) -> int | None:
    for port in range(address[1] + 1, min(65536, address[1] + _TRIES)):
        with contextlib.suppress(OSError):
            _bind(family, (address[0], port, *address[2:])).close()
            return port
    return None


class Listener:
    """Uvicorn with an application, on a thread and a loop of its own, without signal handlers and logs.

    Parameters
    ----------
    app
        The ASGI application.
    sock
        Where it listens; closed at the end.
    """

    def __init__(self, app: Any, sock: socket.socket) -> None:
        import uvicorn

        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._socket = sock
        self._thread = threading.Thread(target=self._run, name="llama-magic-server", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.01)
        if not self._server.started:
            self.stop()
            raise ServerError("the server did not start")

    @property
    def running(self) -> bool:
        """True until it has ended."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """End it: connections are closed, by force where they do not end by themselves."""
        self._server.should_exit = True
        if threading.current_thread() is self._thread:
            return
        self._thread.join(_GRACE_S)
        self._server.force_exit = True
        self._thread.join(5.0)
