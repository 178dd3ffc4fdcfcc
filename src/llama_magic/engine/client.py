"""The kernel's side of the engine: starts the worker when needed, sends requests, hands out events."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from llama_magic.backends.lost_host import lost_host
from llama_magic.backends.setup import STOCK, BackendSetup, Problem, SetUpRequest, selected
from llama_magic.engine.channel import Channel, Worker
from llama_magic.engine.line import Line
from llama_magic.engine.process import WorkerProcess
from llama_magic.engine.protocol import Error, GenerateRequest, Progress, Request, Result
from llama_magic.engine.spare import not_now, take_spare
from llama_magic.engine.stopping import ASKER
from llama_magic.engine.stream import CANCEL_S, GenerationStream, PendingRequest, end_of
from llama_magic.errors import BackendError, EngineCrashed, GenerationInterrupted
from llama_magic.inference.results import Completion

__all__ = [
    "Client",
    "EngineClient",
    "client_for",
    "get_client",
    "live_clients",
    "release_hosts",
    "set_client",
    "wait_for",
]

_LOG_LINES = 200
#: Seconds that loading a backend module may take: drivers compile kernels then.
_SET_UP_S = 120.0

#: What others read who have to wait for a request of this kind.
_DOING = {
    "LoadRequest": "is loading a model",
    "UnloadRequest": "is unloading a model",
    "GenerateRequest": "is answering a prompt",
    "NextTokenRequest": "is looking at the next token",
    "PlanRequest": "is planning a quantization",
    "SaveStateRequest": "is saving a conversation",
    "RestoreStateRequest": "is restoring a conversation",
    "EmbedRequest": "is embedding texts",
}


class Client(Protocol):
    """What the rest of the kernel needs of an engine client; tests put their own in its place."""

    @property
    def alive(self) -> bool:
        """True while a worker runs."""

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""

    def request(self, request: Request, on_progress: Callable[[Progress], None] | None = None) -> Any:
        """Return the result of a request."""

    def open(self, request: GenerateRequest) -> GenerationStream:
        """Start a generation and return its stream."""

    def close(self) -> None:
        """End the worker."""


def wait_for(pending: PendingRequest, on_progress: Callable[[Progress], None] | None = None) -> Any:
    """Read a request's events to the end and return its result; an interrupt or a `Stopper` cancels it."""
    try:
        while True:
            event = pending.next_event()
            if isinstance(event, (Result, Error)):
                return end_of(event)
            if isinstance(event, Progress) and on_progress is not None:
                on_progress(event)
    except KeyboardInterrupt as exc:
        if isinstance(exc, GenerationInterrupted):
            raise
        value = _stop(pending)
        stopped = GenerationInterrupted(value if isinstance(value, Completion) else None)
        stopped.result = value
        raise stopped from None
    finally:
        pending.done()


def _stop(pending: PendingRequest) -> Any:
    """Cancel and wait for the end; kill the worker where it does not come."""
    pending.cancel()
    deadline = time.monotonic() + CANCEL_S
    try:
        while (event := pending.next_event(deadline)) is not None:
            if isinstance(event, Result):
                return event.value
            if isinstance(event, Error):
                return None
    except EngineCrashed:
        return None
    pending.abandon()
    return None


class EngineClient:
    """Talks to one worker process, which is started by the first request and again after it died.

    Parameters
    ----------
    setup
        The backends that its workers get.

    Attributes
    ----------
    problems
        What the last start of a worker had to leave out of them.
    start_worker
        Starts a worker with environment variables; tests start a thread instead.
    """

    start_worker: Callable[[tuple[tuple[str, str], ...]], Worker] = staticmethod(WorkerProcess)

    def __init__(self, setup: BackendSetup = STOCK) -> None:
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self.problems: tuple[Problem, ...] = ()
        self._setup = setup
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._line = Line()
        self._starting: Channel | None = None
        self._channels: list[Channel] = []  # the one in use; the finalizer must not know the client itself
        weakref.finalize(self, _close_all, self._channels)

    # -- the worker ------------------------------------------------------------------------

    @property
    def _channel(self) -> Channel | None:
        return self._channels[0] if self._channels else None

    @property
    def alive(self) -> bool:
        """True while a worker runs."""
        channel = self._channel
        return channel is not None and channel.alive

    @property
    def busy(self) -> str:
        """What the worker is doing and for whom, in words; empty while it does nothing."""
        return self._line.busy

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None where none runs."""
        channel = self._channel
        return channel.process.pid if channel is not None and self.alive else None

    @property
    def setup(self) -> BackendSetup:
        """The backends that its workers get."""
        return self._setup

    def use(self, setup: BackendSetup) -> None:
        """Give other backends to the worker: one that runs is ended, the next request starts a fresh one."""
        if setup != self._setup:
            self._setup = setup
            self.problems = ()
            self.close()

    def _ensure(self) -> Channel:
        with self._lock:
            channel = self._channel
            if channel is None or not channel.alive:
                if channel is not None and channel.owner == os.getpid():
                    channel.kill()
                self._channels[:] = [self._start()]
                channel = self._channels[0]
            return channel

    def _start(self) -> Channel:
        """Start a worker and set its backends up, without those that end it."""
        not_now()  # two that start at once take twice as long
        self.problems, deadly = (), list[Problem]()
        if self._setup.is_stock:
            return self._open_channel(self._setup)
        while True:
            left_out = {problem.what for problem in deadly}
            setup = replace(
                self._setup,
                modules=tuple(path for path in self._setup.modules if path not in left_out),
                rpc=tuple(host for host in self._setup.rpc if host not in left_out),
            )
            channel = self._starting = self._open_channel(setup)
            try:
                died = self._set_up(channel, setup)
            except BaseException:
                channel.kill()
                raise
            finally:
                self._starting = None
            if died is None:
                self.problems = (*deadly, *self.problems)
                return channel
            channel.kill()
            if not died.what or died.what in left_out:
                raise BackendError(
                    f"no worker could be started with {self._setup.name or 'these backends'}: {died.reason}"
                )
            deadly.append(died)

    def _open_channel(self, setup: BackendSetup) -> Channel:
        waiting = take_spare() if setup.is_stock else None
        return Channel(waiting or self.start_worker(setup.environment), self.log, self._line.over)

    def _set_up(self, channel: Channel, setup: BackendSetup) -> Problem | None:
        """Let a fresh worker load its backends, one request for each, so that it is known which one it died of."""
        problems: tuple[Problem, ...] = ()
        for what, step in setup.steps():
            pending = PendingRequest(self, 0, channel)
            request: Any = SetUpRequest(step)
            channel.submit(pending, request)
            deadline = time.monotonic() + _SET_UP_S
            event: Any = None
            try:
                while not isinstance(event, (Result, Error)):
                    event = pending.next_event(deadline)
                    if event is None:
                        return Problem(what, f"loading it was not done after {_SET_UP_S:.0f} seconds")
                problems += end_of(event)
            except EngineCrashed as exc:
                if exc.exit_code == -getattr(signal, "SIGBUS", 0):  # the file ends before what its header promises
                    return Problem(what, "the file is damaged or cut off")
                return Problem(what, f"loading it ended the worker: {exc.cause}")
            finally:
                pending.done()
        self.problems = problems
        return None

    def close(self) -> None:
        """End the worker; the next request starts another. What waits in line is given up."""
        with self._lock:
            channels, self._channels[:] = self._channels[:], []
        self._line.give_up()
        _close_all(channels)

    def restart(self) -> None:
        """End the worker and start a fresh one."""
        self.close()
        self._ensure()

    # -- requests --------------------------------------------------------------------------

    def _submit(self, request: Request) -> PendingRequest:
        doing = f"{ASKER.get()} {_DOING.get(type(request).__name__, 'is using it')}"
        pending = PendingRequest(self, next(self._numbers), doing=doing)
        self._line.join(pending, request, self._turn)
        return pending

    def _turn(self) -> Channel:
        """Return the worker for the next request."""
        channel = self._ensure()
        # What llama.cpp said during earlier requests explains nothing about this one.
        self.log.clear()
        return channel

    def open(self, request: GenerateRequest) -> GenerationStream:
        """Start a generation and return its stream."""
        return GenerationStream(self._submit(request))

    def request(self, request: Request, on_progress: Callable[[Progress], None] | None = None) -> Any:
        """Send a request and return its result.

        While another thread's request is answered, this one waits its turn, and `on_progress` is told what for.

        Raises
        ------
        LlamaMagicError
            What the request led to; `EngineCrashed` when the worker died.
        GenerationInterrupted
            The user interrupted it.
        """
        return wait_for(self._submit(request), on_progress)

    def start(self, request: Request) -> PendingRequest:
        """Send a request that ends with the worker only, such as serving; its events are the caller's to read."""
        return self._submit(request)

    # -- called by pending requests --------------------------------------------------------

    def send_cancel(self, pending: PendingRequest) -> None:
        """Stop one request, or take it out of the line."""
        self._line.cancel(pending)

    def forget(self, pending: PendingRequest) -> None:
        """Deliver no more events of a request."""
        pending.forgotten = True

    def kill(self, pending: PendingRequest) -> None:
        """Kill the worker that a request runs on, or that starts for it."""
        channel = self._starting if pending.starting else pending.worker
        if isinstance(channel, Channel):
            channel.kill()

    def crashed(self, pending: PendingRequest) -> EngineCrashed:
        """Return the error that says why the worker of a request died."""
        if not isinstance(pending.worker, Channel):
            return EngineCrashed("The engine was closed while this request waited for its turn.")
        if pending.worker.closed:
            return EngineCrashed("The engine was closed while this request was answered.")
        process = pending.worker.process
        lines = [*list(self.log)[-4:], *process.output()[-4:]]
        cause = lost_host(process.output(), self._setup.rpc) or process.cause()
        return EngineCrashed(cause, process.exit_code(), tuple(lines))


def _close_all(channels: list[Channel]) -> None:
    for channel in channels:
        channel.close()


_client: Client | None = None


_others: weakref.WeakValueDictionary[BackendSetup, EngineClient] = weakref.WeakValueDictionary()


def get_client() -> Client:
    """Return the client that this process uses, made at the first call. It starts no process yet.

    Its worker has the backends that are selected: where they changed, the old worker ends here.
    """
    global _client  # noqa: PLW0603 - one worker per kernel is the design
    if _client is None:
        _client = EngineClient(selected())
        atexit.register(_close)
    elif isinstance(_client, EngineClient):
        _client.use(selected())
    return _client


def client_for(setup: BackendSetup | None) -> Client:
    """Return a client whose worker has these backends: `get_client`'s where they are the selected ones.

    Others are shared by all who ask for the same setup, and end when nobody holds them any more.
    """
    client = get_client()
    if setup is None or setup == selected() or not isinstance(client, EngineClient):
        return client
    other = _others.get(setup)
    if other is None:
        other = _others[setup] = EngineClient(setup)
    return other


def live_clients() -> tuple[Client, ...]:
    """Return the clients whose workers run, the session's first."""
    return tuple(client for client in (get_client(), *_others.values()) if client.alive)


def release_hosts(setup: BackendSetup) -> None:
    """End the workers that use RPC hosts of a setup: a host serves one process at a time."""
    for client in live_clients():
        if isinstance(client, EngineClient) and set(client.setup.rpc) & set(setup.rpc):
            client.close()


def set_client(client: Client | None) -> None:
    """Use another client, or a new one when None. The old one is not closed."""
    global _client  # noqa: PLW0603
    _client = client


def _close() -> None:
    if _client is not None:
        _client.close()
