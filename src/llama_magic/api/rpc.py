"""Devices of other machines: serve one's own, attach those of others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llama_magic.api.backends import loaded_backends, setup_for
from llama_magic.backends.host import default_threads
from llama_magic.backends.known import parse_backends
from llama_magic.backends.modules import compiled_in
from llama_magic.backends.rpc_check import DEFAULT_PORT, check_host, parse_endpoint
from llama_magic.backends.rpc_hosts import attach, attached_hosts, detach
from llama_magic.backends.rpc_requests import AttachedHost, RpcHosts, RpcServeRequest, memory_words
from llama_magic.backends.setup import STOCK, select, selected
from llama_magic.engine.client import EngineClient, get_client
from llama_magic.engine.protocol import Error, Result
from llama_magic.engine.stream import PendingRequest
from llama_magic.errors import EngineCrashed, InvalidRequestError, RpcHostError

if TYPE_CHECKING:
    from typing import Any

    from llama_magic.backends.setup import BackendSetup

__all__ = ["RpcServer", "rpc_add", "rpc_hosts", "rpc_remove", "rpc_serve", "rpc_stop"]

#: Seconds that a host may take to listen.
_START_S = 30.0
_LOOPBACK = ("127.", "localhost")


@dataclass(eq=False, slots=True, repr=False)
class RpcServer:
    """An RPC host on this machine, in a process of its own that ends with the kernel.

    Attributes
    ----------
    endpoint
        Where it listens, ``address:port``.
    devices
        Names of the devices that it serves.
    """

    endpoint: str
    devices: tuple[str, ...]
    _client: EngineClient
    _pending: PendingRequest

    @property
    def alive(self) -> bool:
        """True while it serves."""
        return self._client.alive

    @property
    def pid(self) -> int | None:
        """Process id, None where it has ended."""
        return self._client.pid

    @property
    def is_open(self) -> bool:
        """True where other machines can reach it."""
        return not self.endpoint.startswith(_LOOPBACK)

    def stop(self) -> None:
        """End it; who uses it loses the connection."""
        self._client.close()
        if self in _servers:
            _servers.remove(self)

    def __repr__(self) -> str:
        state = "serves" if self.alive else "no longer serves"
        return f"RpcServer({self.endpoint} {state} {', '.join(self.devices)})"


_servers: list[RpcServer] = []


def rpc_serve(
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    devices: Iterable[str] = (),
    threads: int | None = None,
    cache: str = "",
) -> RpcServer:
    """Serve this machine's devices to others, with llama.cpp's own RPC backend.

    The protocol has no authentication: whoever reaches the port can use the machine, and crash the process. So
    it listens on this machine only, unless told otherwise; an SSH tunnel brings others to it.

    Parameters
    ----------
    host
        Address to listen at; "0.0.0.0" is every one of this machine's.
    port
        Port; None: 50052 as llama.cpp has it, or the next one that is free.
    devices
        Devices to serve. Empty: all accelerators of the selected backends, or the CPU where there is none.
    threads
        Threads that a CPU device computes with. None: as many as the container may use.
    cache
        Folder that keeps tensors that were sent once; empty for none.

    Raises
    ------
    BackendError
        The RPC backend is not built here.
    RpcHostError
        It can not listen there.
    """
    address = _address(host)
    endpoint = f"{address}:{_free_port(address, port)}"
    names = _with_rpc(selected()) - {"blas"}
    client = EngineClient(_host_setup(names, address))
    chosen = (devices,) if isinstance(devices, str) else tuple(devices)
    try:
        served = _served(client, chosen)
        request: Any = RpcServeRequest(endpoint, served, threads or default_threads(), cache)
        pending = client.start(request)
        _wait(pending, endpoint)
    except BaseException:
        client.close()
        raise
    server = RpcServer(endpoint, served, client, pending)
    _servers.append(server)
    return server


def _host_setup(names: set[str], address: str) -> BackendSetup:
    setup = setup_for(names)
    environment: tuple[tuple[str, str], ...] = ()
    if address.startswith(_LOOPBACK) and "GOMP_SPINCOUNT" not in os.environ:
        # Who uses it runs on the same processors: threads that wait give them away instead of turning round.
        environment = (("GOMP_SPINCOUNT", "1000"),)
    return replace(setup, rpc=(), environment=environment)


def _served(client: EngineClient, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the devices to serve; raises where one is not there."""
    known = {device.name: device for device in loaded_backends(client).devices}
    if client.problems:
        raise RpcHostError(f"it can not serve: {client.problems[0].reason}")
    for name in chosen:
        if name not in known:
            raise InvalidRequestError(f"there is no device {name!r} to serve; there is {', '.join(known)}")
    return chosen or tuple(name for name, row in known.items() if row.type in ("gpu", "igpu")) or ("CPU",)


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        raise RpcHostError(f"{host!r} is no address of this machine") from None


def _free_port(address: str, port: int | None) -> int:
    if port is not None and not 0 < port < 65536:
        raise InvalidRequestError(f"a port is a number from 1 to 65535; got {port}")
    tries = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + 64)
    reason = ""
    for number in tries:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ggml does
            try:
                probe.bind((address, number))
                probe.listen(1)
            except OSError as exc:
                reason = exc.strerror or str(exc)
                continue
            return number
    raise RpcHostError(f"it can not listen at {address}:{port or DEFAULT_PORT}: {reason}; --port names another")


def _wait(pending: PendingRequest, endpoint: str) -> None:
    """Wait until a host answers, or say why it does not."""
    address = endpoint.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - compared, not bound
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            event = pending.next_event(time.monotonic() + 0.05)
        except EngineCrashed as exc:
            raise RpcHostError(f"the host's process ended: {exc.cause}") from None
        if isinstance(event, Error):
            raise event.error
        if isinstance(event, Result):
            break
        try:
            check_host(address, 1.0)
        except RpcHostError:
            continue
        return
    raise RpcHostError(f"ggml could not listen at {endpoint}")


def rpc_stop(endpoint: str | None = None) -> tuple[str, ...]:
    """End the hosts that this kernel serves (all when None) and return where they listened."""
    wanted = None if endpoint is None else parse_endpoint(endpoint)
    chosen = [row for row in _servers if wanted in (None, row.endpoint)]
    for row in chosen:
        row.stop()
    return tuple(row.endpoint for row in chosen)


def rpc_add(endpoint: str) -> RpcHosts:
    """Attach an RPC host: its devices are used from now on, beside those of this machine.

    Each fresh worker connects to it again. Where it does not answer then, it is left out with a message.

    Raises
    ------
    RpcHostError
        It does not answer, is no RPC host, speaks another protocol, or serves somebody else.
    BackendError
        The RPC backend is not built here.
    """
    endpoint = parse_endpoint(endpoint)
    before, known = selected(), endpoint in attached_hosts()
    setup_for("rpc")  # first: whether the backend is here
    if known:
        get_client().close()  # connects again
    check_host(endpoint)
    attach(endpoint)
    try:
        select(setup_for(_with_rpc(before)))
        _connect(endpoint)
    except BaseException:
        if not known:
            detach(endpoint)
            select(before)
        raise
    return rpc_hosts()


def _connect(endpoint: str) -> None:
    client = get_client()
    loaded_backends(client)
    problems = client.problems if isinstance(client, EngineClient) else ()
    failed = next((problem for problem in problems if problem.what == endpoint), None)
    if failed is not None:
        raise RpcHostError(failed.reason)


def rpc_remove(endpoint: str) -> RpcHosts:
    """Detach an RPC host; models are loaded again without its devices when they are next used."""
    endpoint = parse_endpoint(endpoint)
    if endpoint not in attached_hosts():
        there = ", ".join(attached_hosts()) or "none"
        raise InvalidRequestError(f"{endpoint} is not attached; attached: {there}")
    detach(endpoint)
    names = _with_rpc(selected())
    if not attached_hosts():
        names -= {"rpc"}
    select(STOCK if names == set(compiled_in()) else setup_for(names or {"cpu"}))
    return rpc_hosts()


def rpc_hosts() -> RpcHosts:
    """Return the hosts that are attached and their states, and those that this kernel serves."""
    client = get_client()
    connected: tuple[str, ...] = ()
    found: dict[str, list[str]] = {}
    if isinstance(client, EngineClient) and client.alive:
        lost = {problem.what for problem in client.problems}
        connected = tuple(host for host in client.setup.rpc if host not in lost)
        for device in loaded_backends(client).devices if connected else ():
            if device.backend == "rpc":
                found.setdefault(device.description, []).append(device.name)
    rows = [_attached(endpoint, endpoint in connected, tuple(found.get(endpoint, ()))) for endpoint in attached_hosts()]
    rows += [
        AttachedHost(row.endpoint, "served", "serving" if row.alive else "gone", row.devices, f"process {row.pid}")
        for row in _servers
    ]
    return RpcHosts(tuple(rows))


def _attached(endpoint: str, connected: bool, devices: tuple[str, ...]) -> AttachedHost:
    if connected:
        return AttachedHost(endpoint, "attached", "connected", devices)
    try:
        found = check_host(endpoint)
    except RpcHostError as exc:
        state = "busy" if "busy" in str(exc) else "gone"
        return AttachedHost(endpoint, "attached", state, (), str(exc))
    return AttachedHost(endpoint, "attached", "answers", (), memory_words(found.memory))


def _with_rpc(setup: BackendSetup) -> set[str]:
    """Return the names of a setup's backends, and RPC's."""
    names = None if setup.name in ("", "default") else parse_backends(setup.name)
    return {*(compiled_in() if names is None else names), "rpc"}
