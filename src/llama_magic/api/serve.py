"""Serve a model to programs that speak OpenAI's interface."""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llama_magic.api.model import Model, load
from llama_magic.api.schema import load_schema
from llama_magic.engine.protocol import GenerateRequest, LoadRequest
from llama_magic.errors import InvalidRequestError, MissingDependencyError
from llama_magic.inference.params import SamplingParams
from llama_magic.serving.listening import Listener, open_socket
from llama_magic.serving.policy import Policy, is_loopback, make_policy
from llama_magic.serving.records import RequestLog, ServedRequests
from llama_magic.serving.served import Prompt, ServedModel, Stream
from llama_magic.serving.views import ServerFacts, mask, server_page, server_text

if TYPE_CHECKING:
    from typing_extensions import Self

    from llama_magic.api.session import Session
    from llama_magic.engine.client import Client
    from llama_magic.engine.protocol import Progress
    from llama_magic.serving.app import Application

__all__ = ["DEFAULT_PORT", "KEY_VARIABLE", "Server", "serve", "serve_session", "served_urls", "servers", "stop_serving"]

#: llama-server's.
DEFAULT_PORT = 8080
#: Where llama-server takes its key from.
KEY_VARIABLE = "LLAMA_API_KEY"


class _ServedModel:
    """A loaded model, as the server asks it."""

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        info = model.info
        stem = Path(model.spec.path).stem
        others = tuple(other for other in dict.fromkeys((_public(model.spec.ref), stem, info.name)) if other != name)
        self.model = ServedModel(
            name=name,
            other_names=others,
            created=int(time.time()),
            n_ctx=info.n_ctx,
            n_ctx_train=info.n_ctx_train,
            n_vocab=info.n_vocab,
            n_embd=info.n_embd,
            n_params=info.n_params,
            size=info.size,
            fingerprint=f"llama.cpp-{info.llama_cpp_commit}" if info.llama_cpp_commit else "",
        )

    def open(self, prompt: Prompt, params: SamplingParams) -> Stream:
        """Start a generation. A schema is only checked: the answer is not parsed here, the client does that."""
        if params.schema is not None:
            params = params.replace(schema=load_schema(params.schema).text)
        text, messages = (prompt, ()) if isinstance(prompt, str) else (None, prompt)
        return self._client.open(GenerateRequest(self._model.spec, params, text, messages))

    @property
    def _client(self) -> Client:
        return self._model._client  # noqa: SLF001 - the server asks as the model itself does

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one embedding for each text."""
        return self._model.embed(tuple(texts))

    def tokenize(self, text: str, *, add_special: bool, special: bool) -> list[int]:
        """Return the token ids of a text."""
        return self._model.tokenize(text, add_special=add_special, special=special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids."""
        return self._model.detokenize(tokens)


def _public(ref: str) -> str:
    """Return a reference without a path of this machine."""
    is_file = ref.lower().endswith(".gguf") and not ref.startswith("hf:")
    return Path(ref).stem if is_file or Path(ref).is_absolute() else ref


class Server:
    """An OpenAI-compatible server over a model, on threads of this process. Use it as a context manager, or `stop` it.

    It ends with the process in any case. The model stays loaded.

    Attributes
    ----------
    url, base_url
        The address, and the one for clients of OpenAI's interface, which ends in ``/v1``.
    model
        What the model is called in requests.
    host, port
        Where it listens.
    """

    def __init__(self, app: Application, listener: Listener, log: RequestLog, policy: Policy, told: _Told) -> None:
        self.model = told.name
        self.host = told.host
        self.port = told.port
        self.path = told.path
        self._policy = policy
        self._log = log
        self._listener = listener
        self._end = weakref.finalize(self, _end, app, listener)

    @property
    def url(self) -> str:
        """The address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - shown, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The address for clients of OpenAI's interface."""
        return f"{self.url}/v1"

    @property
    def api_key(self) -> str | None:
        """The key that clients have to send; None where there is none. It is shown nowhere else."""
        return self._policy.api_key

    @property
    def requests(self) -> ServedRequests:
        """The last requests, the newest first; nothing of what was said is among it."""
        return self._log.rows()

    @property
    def running(self) -> bool:
        """True until its port is closed."""
        return self._listener.running

    @property
    def is_local(self) -> bool:
        """True where only this machine reaches it."""
        return is_loopback(self.host)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher`, on any thread, whenever a request comes or ends; returns what ends that."""
        return self._log.watch(watcher)

    def stop(self) -> None:
        """End it: what is generated is stopped, its clients are told, and its port is closed."""
        self._end()
        self._listener.stop()  # where another thread ends it already: wait with that one
        if self in _servers:
            _servers.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return server_text(self.facts())

    def _repr_html_(self) -> str:
        return server_page(self.facts())

    def to_dict(self) -> dict[str, Any]:
        """Return what there is to know of it, without the key."""
        told = self.facts()
        return {"model": told.model, "url": told.url, "running": told.running, "key": told.mask}

    def facts(self) -> ServerFacts:
        """Return what views show of it."""
        place = _servers.index(self) if self in _servers else 0
        return ServerFacts(self.model, self.url, self.running, self.is_local, mask(self.api_key), place)


class _Told:
    """What a server is told of itself."""

    __slots__ = ("host", "name", "path", "port")

    def __init__(self, name: str, host: str, port: int, path: str) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.path = path


def _end(app: Application, listener: Listener) -> None:
    app.close()
    listener.stop()


_servers: list[Server] = []


def serve(
    ref: str | Model = "smollm2",
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    api_key: str | None = None,
    alias: str | None = None,
    cors: str | Iterable[str] = (),
    allowed_hosts: str | Iterable[str] = (),
    max_waiting: int = 16,
    max_body: int = 4 << 20,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Server:
    """Serve a model to programs that speak OpenAI's interface, from this process.

    Requests wait for their turn with cells and the panel. A client that goes away stops its generation.

    Parameters
    ----------
    ref
        A model reference, loaded with `options` as `load` does it; or a loaded `Model`.
    host
        Address to listen at: this machine only, unless told otherwise.
    port
        Port; 0 picks one that is free.
    api_key
        The key that clients have to send; "auto" makes one. None: ``$LLAMA_API_KEY``, else one is made where
        others than this machine reach the address, and none is asked for where not. `Server.api_key` tells it.
    alias
        What the model is called in requests. None: as in `ref`.
    cors
        Origins of web pages that may ask, for example ``"https://example.org"``.
    allowed_hosts
        Further names under which a server on this machine may be called, by a proxy in front of it.
    max_waiting
        Requests that may wait for their turn; more are refused with status 503.
    max_body
        Most bytes of a request.
    progress
        Called while the model is loaded.

    Raises
    ------
    ServerError
        The port is in use, or the address is none of this machine.
    MissingDependencyError
        The extra ``serve`` is not installed.
    """
    if isinstance(ref, Model) and options:
        raise InvalidRequestError("a model that is loaded takes no load options")
    application = _application()
    if max_waiting < 0 or max_body < 1:
        raise InvalidRequestError("max_waiting must be 0 or more, and max_body 1 or more")
    key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE) or None
    policy = make_policy(host, key, _names(cors), _names(allowed_hosts), max_body)
    if alias is not None and (not alias.strip() or not alias.isprintable()):
        raise InvalidRequestError(f"an alias consists of printable characters; got {alias!r}")
    sock = open_socket(host, port)
    try:
        model = ref if isinstance(ref, Model) else load(ref, progress=progress, **options)
        return _started(application, model, policy, sock, host, alias, max_waiting)
    except BaseException:
        sock.close()
        raise


def _started(
    application: type[Application],
    model: Model,
    policy: Policy,
    sock: socket.socket,
    host: str,
    alias: str | None,
    waiting: int,
) -> Server:
    served = _ServedModel(model, alias or _public(model.spec.ref))
    log = RequestLog()
    app = application(served, policy, log, waiting)
    port = int(sock.getsockname()[1])
    listener = Listener(app.asgi, sock)
    server = Server(app, listener, log, policy, _Told(served.model.name, host, port, model.spec.path))
    _servers.append(server)
    return server


def _application() -> type[Application]:
    try:
        import uvicorn  # noqa: F401 - whether it is there

        from llama_magic.serving.app import Application
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio", "h11"):
            raise
        raise MissingDependencyError(f"serving needs {error.name}: pip install 'llama-magic[serve]'") from error
    return Application


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def serve_session(
    session: Session,
    ref: str | None = None,
    loading: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **how: Any,
) -> Server:
    """Serve the current model of a session, or with `ref` another one, which does not become the current one by that.

    Where no model is loaded yet, the default one is. `how` are `serve`'s keywords.
    """
    _application()  # before a model is loaded
    if ref is None or session.model is None:
        info = session.load(ref, loading, force=force, on_progress=progress)
        spec = session.spec()
    else:
        spec = session.spec(ref, loading, progress)
        info = session.client(spec).request(LoadRequest(spec, force), progress)
    return serve(Model(spec, info, session.client(spec)), **how)


def servers() -> tuple[Server, ...]:
    """Return the servers of this process that run, the oldest first."""
    _servers[:] = [server for server in _servers if server.running]
    return tuple(_servers)


def served_urls(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses at which model files are served from here."""
    wanted = set(paths)
    return tuple(server.url for server in servers() if server.path in wanted)


def stop_serving(port: int | None = None) -> tuple[str, ...]:
    """End the servers of this process (all when None, else the one at a port) and return their addresses."""
    chosen = [server for server in servers() if port in (None, server.port)]
    for server in chosen:
        server.stop()
    return tuple(server.url for server in chosen)
