"""A client of any OpenAI-compatible server, with the interface of an engine client."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from llama_magic.engine.client import wait_for
from llama_magic.engine.protocol import (
    DetokenizeRequest,
    EmbedRequest,
    Error,
    Event,
    ForgetRequest,
    GenerateRequest,
    Progress,
    Request,
    Result,
    StatusRequest,
    TokenizeRequest,
    UnloadRequest,
)
from llama_magic.engine.stream import GenerationStream, PendingRequest
from llama_magic.errors import (
    EngineCrashed,
    GenerationInterrupted,
    InvalidRequestError,
    LlamaMagicError,
    RemoteError,
)
from llama_magic.serving.endpoint import Endpoint
from llama_magic.serving.problems import error_of
from llama_magic.serving.reading import Gathered, body_of

if TYPE_CHECKING:
    import httpx

__all__ = ["RemoteClient", "translate"]

#: Seconds to connect, to send, and to wait for a connection. An answer may take as long as it takes: it can be stopped.
_CONNECT_S = 10.0
#: The end of a line of server-sent events; a CR at the end of a piece may have its LF in the next.
_LINE_END = re.compile(r"\r\n|\n|\r(?!\Z)")
#: Some proxies (jupyter-server-proxy) pass a stream on as it comes only where it is asked for.
_EVENTS = {"Accept": "text/event-stream"}


def translate(error: Exception, where: str) -> LlamaMagicError:
    """Return the error of this package that says what httpx's means.

    Parameters
    ----------
    where
        The server's address.
    """
    import httpx

    if isinstance(error, LlamaMagicError):
        return error
    words = str(error) or type(error).__name__
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        return InvalidRequestError(f"{where} is no address of a server: {words}")
    late = f"{where} does not answer within {_CONNECT_S:.0f} seconds. Is the server running?"
    meanings: tuple[tuple[type[Exception], str], ...] = (
        (httpx.ConnectTimeout, late),
        (httpx.PoolTimeout, late),
        (httpx.ConnectError, f"{where} can not be reached: {words}. Is the server running?"),
        (httpx.TimeoutException, f"{where} took too long: {words}"),
        (httpx.ProxyError, f"the proxy before {where} refuses: {words}"),
        (httpx.TransportError, f"the connection to {where} broke off: {words}"),
        (httpx.HTTPError, f"{where} answers with what is not understood: {words}"),
        (httpx.StreamError, f"{where} answers with what is not understood: {words}"),
        (ValueError, f"{where} answers with what is not understood: {words}"),
        (Exception, f"asking {where} failed: {type(error).__name__}: {words}"),
    )
    return RemoteError(next(meaning for kind, meaning in meanings if isinstance(error, kind)))


class RemoteClient:
    """Asks a server over HTTP; requests run beside each other.

    The key goes to its address only: no redirect is followed.

    Parameters
    ----------
    endpoint
        The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: httpx.AsyncClient | None = None
        self._running: dict[int, Future[None]] = {}
        self._closed = False
        self._loops: list[tuple[asyncio.AbstractEventLoop, threading.Thread]] = []
        weakref.finalize(self, _stop_loops, self._loops)

    def __repr__(self) -> str:
        return f"RemoteClient({self.endpoint.base_url!r})"

    @property
    def alive(self) -> bool:
        """True until `close`."""
        return not self._closed

    @property
    def pid(self) -> int | None:
        """None: the process is on another machine, or somebody else's."""
        return None

    # -- asking ----------------------------------------------------------------------------

    def open(self, request: GenerateRequest) -> GenerationStream:
        """Start a generation and return its stream."""
        return GenerationStream(self._submit(lambda pending: self._generate(pending, request)))

    def request(self, request: Request, on_progress: Callable[[Progress], None] | None = None) -> Any:
        """Return the result of a request; see `EngineClient.request`."""
        if isinstance(request, UnloadRequest | ForgetRequest | StatusRequest):
            return ()  # what a server keeps is its own affair
        return wait_for(self._submit(lambda _pending: self._answer(request)), on_progress)

    def get(self, path: str) -> Any:
        """Return the JSON at a path below the base address."""
        return wait_for(self._submit(lambda _pending: self._json("GET", self.endpoint.base_url + path, None)))

    def close(self) -> None:
        """Close the connections; what is under way is stopped."""
        self._closed = True
        with self._lock:
            running, self._running = list(self._running.values()), {}
        for future in running:
            future.cancel()
        if self._loop is not None and self._http is not None:
            asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result(5)
        self._loop = self._http = None
        _stop_loops(self._loops)

    def _submit(self, work: Callable[[PendingRequest], Coroutine[Any, Any, Any]]) -> PendingRequest:
        if self._closed:
            raise InvalidRequestError("the connection is closed: connect again")
        pending = PendingRequest(self, next(self._numbers), self)
        loop = self._ensure()
        future: Future[None] = asyncio.run_coroutine_threadsafe(self._run(pending, work), loop)
        self._running[pending.number] = future
        return pending

    def _ensure(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                import httpx

                loop = self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="llama-magic-remote", daemon=True)
                thread.start()
                self._loops.append((loop, thread))
                self._http = httpx.AsyncClient(
                    headers=self.endpoint.headers(),
                    timeout=httpx.Timeout(_CONNECT_S, read=None),
                    follow_redirects=False,
                    trust_env=not self.endpoint.is_loopback,  # a proxy would look for its own loopback
                )
            return self._loop

    async def _run(self, pending: PendingRequest, work: Callable[[PendingRequest], Coroutine[Any, Any, Any]]) -> None:
        end: Event
        try:
            end = Result(await work(pending))
        except asyncio.CancelledError:
            end = Error(GenerationInterrupted())
        except Exception as exc:  # noqa: BLE001 - it is raised where the result is waited for
            end = Error(translate(exc, self.endpoint.base_url))
        self._running.pop(pending.number, None)
        pending.events.put(end)

    # -- called by pending requests --------------------------------------------------------

    def send_cancel(self, pending: PendingRequest) -> None:
        """Close the connection of one request: servers take that as the end."""
        future = self._running.get(pending.number)
        if future is not None:
            future.cancel()

    def forget(self, pending: PendingRequest) -> None:
        """Nothing to do: the queue goes with the request."""

    def kill(self, pending: PendingRequest) -> None:
        """Nothing to kill: the connection is closed already."""

    def crashed(self, pending: PendingRequest) -> EngineCrashed:
        """Never called: what breaks off is told as an error."""
        raise NotImplementedError

    # -- over HTTP -------------------------------------------------------------------------

    async def _json(self, method: str, url: str, body: Any) -> Any:
        assert self._http is not None
        response = await self._http.request(method, url, json=body)
        await self._check(response)
        return response.json()

    async def _check(self, response: httpx.Response) -> None:
        """Raise what a status that is not 200 means."""
        if response.status_code == 200:
            return
        if 300 <= response.status_code < 400:
            target = response.headers.get("location", "")
            raise RemoteError(
                f"{self.endpoint.base_url} redirects to {target!r}. Nothing was sent there: connect to that address "
                "if you trust it",
                response.status_code,
            )
        data = await response.aread()
        try:
            found: Any = json.loads(data)
        except ValueError:
            found = data.decode("utf-8", "replace")
        key = self.endpoint.api_key is not None
        raise error_of(response.status_code, found, self.endpoint.base_url, key=key)

    async def _answer(self, request: Request) -> Any:
        endpoint = self.endpoint
        if isinstance(request, TokenizeRequest):
            body = {"content": request.text, "add_special": request.add_special, "parse_special": request.special}
            return tuple((await self._root("tokenize", body))["tokens"])
        if isinstance(request, DetokenizeRequest):
            return (await self._root("detokenize", {"tokens": list(request.tokens)}))["content"]
        if isinstance(request, EmbedRequest):
            body = {"model": request.spec.ref, "input": list(request.texts), "encoding_format": "float"}
            found = await self._json("POST", f"{endpoint.base_url}/embeddings", body)
            rows = sorted(found["data"], key=lambda row: row["index"])
            return tuple(tuple(map(float, row["embedding"])) for row in rows)
        what = type(request).__name__.removesuffix("Request")
        raise InvalidRequestError(f"a model on a server can not do this ({what}); load it here for that")

    async def _root(self, name: str, body: Any) -> Any:
        """Ask one of llama-server's own endpoints, which lie beside ``/v1``."""
        try:
            return await self._json("POST", f"{self.endpoint.root}/{name}", body)
        except RemoteError as error:
            if error.status in (404, 405):
                raise InvalidRequestError(f"{self.endpoint.root} has no /{name}: only llama.cpp's servers do") from None
            raise

    async def _generate(self, pending: PendingRequest, request: GenerateRequest) -> Any:
        assert self._http is not None
        url, body = body_of(request, self.endpoint)
        gathered = Gathered(request, self.endpoint)
        async with self._http.stream("POST", url, json=body, headers=_EVENTS) as response:
            await self._check(response)
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise RemoteError(f"{url} does not stream: it answers with {response.headers.get('content-type')!r}")
            async for data in _events(response):
                for chunk in gathered.read(data):
                    pending.events.put(chunk)
        return gathered.completion()


async def _events(response: httpx.Response) -> AsyncIterator[Any]:
    """Yield the JSON of server-sent events, up to ``[DONE]``."""
    lines: list[str] = []
    async for line in _lines(response):
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            data, lines = "\n".join(lines), []
            if data == "[DONE]":
                return
            yield json.loads(data)


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Yield the lines of a stream as it is standardized: they end with LF, CR or both.

    httpx splits at all that `str.splitlines` knows, and JSON may hold some of that, U+2028 for one.
    """
    rest = ""
    async for text in response.aiter_text():
        *lines, rest = _LINE_END.split(rest + text)
        for line in lines:
            yield line
    yield rest.removesuffix("\r")


def _stop_loops(loops: list[tuple[asyncio.AbstractEventLoop, threading.Thread]]) -> None:
    while loops:
        loop, thread = loops.pop()
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(5)
            if not thread.is_alive():
                loop.close()
