"""The endpoints, as an ASGI application over Starlette."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Completion
from llama_magic.serving.door import GONE, OPEN_PATHS, Door, first_line, refuse
from llama_magic.serving.jobs import Done, Failed, Gate, Job, embed, generate
from llama_magic.serving.orders import Order, check_model, parse_json, read_chat, read_completion, read_embedding
from llama_magic.serving.parameters import boolean, check_names, integer, text
from llama_magic.serving.policy import Policy
from llama_magic.serving.problems import Refusal, refusal_of
from llama_magic.serving.records import RequestLog
from llama_magic.serving.replies import DONE, Reply, embedding_reply, event, models_reply
from llama_magic.serving.served import Served

__all__ = ["Application"]

#: Seconds in which a body must have come.
_BODY_S = 30.0


class Application:
    """The server's application: `asgi` is what uvicorn runs.

    Parameters
    ----------
    served
        The model.
    policy
        Who may ask.
    log
        Where requests are noted.
    waiting
        How many requests may wait for their turn.
    """

    def __init__(self, served: Served, policy: Policy, log: RequestLog, waiting: int) -> None:
        self._served = served
        self._policy = policy
        self._log = log
        self._base = SamplingParams(max_tokens=-1)
        self._jobs: set[Job] = set()
        self._closing = False
        self.gate = Gate(waiting)
        self._paths: set[str] = set()
        inner = self._starlette()
        self.asgi: ASGIApp = Door(inner, policy, log, self._paths)

    def close(self) -> None:
        """Stop all that is under way; to be called before uvicorn ends, from any thread."""
        self._closing = True
        for job in list(self._jobs):
            job.stop()

    def _starlette(self) -> ASGIApp:
        posts = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/v1/embeddings": self._embeddings,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
        }
        gets = {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._model,
            "/health": self._health,
            "/v1/health": self._health,
        }
        routes = [Route(path, self._guarded(end), methods=["POST"]) for path, end in posts.items()]
        routes += [Route(path, self._guarded(end), methods=["GET"]) for path, end in gets.items()]
        self._paths = {*posts, "/v1/models", *OPEN_PATHS}
        return Starlette(routes=routes, exception_handlers={HTTPException: self._http_error})

    # -- around the endpoints --------------------------------------------------------------

    def _note(self, scope: Scope, **changes: Any) -> None:
        if scope.get("llama_magic") is not None:
            self._log.note(scope["llama_magic"], **changes)

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Turn what an endpoint raises into a reply."""

        @functools.wraps(endpoint)
        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ClientDisconnect:
                raise
            except Exception as exc:  # noqa: BLE001 - whatever it is, the client gets an answer in the right shape
                refusal = refusal_of(exc)
                self._note(request.scope, error=first_line(exc))
                return refuse(refusal)

        return guarded

    async def _http_error(self, request: Request, exc: Exception) -> Response:
        """Answer for a path or a method that does not exist."""
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        words = (
            "there is nothing here; the endpoints are " + ", ".join(sorted(self._paths))
            if status == 404
            else f"{request.method} does not work here"
        )
        self._note(request.scope, error=words.partition(";")[0])
        return refuse(Refusal(status, words, code="not_found" if status == 404 else "method_not_allowed"))

    async def _body(self, request: Request) -> dict[str, Any]:
        """Read a body, no more of it than allowed."""
        most = self._policy.max_body
        too_large = Refusal(413, f"the body is larger than {most:,} bytes", code="body_too_large")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise too_large
        data = bytearray()

        async def read() -> None:
            async for part in request.stream():
                data.extend(part)
                if len(data) > most:
                    raise too_large

        try:
            await asyncio.wait_for(read(), _BODY_S)
        except asyncio.TimeoutError:
            raise Refusal(408, f"the body did not come within {_BODY_S:.0f} seconds") from None
        return parse_json(bytes(data))

    # -- small endpoints -------------------------------------------------------------------

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, _request: Request) -> Response:
        return JSONResponse(models_reply(self._served.model))

    async def _model(self, request: Request) -> Response:
        check_model({"model": request.path_params["name"]}, self._served.model)
        return JSONResponse(models_reply(self._served.model)["data"][0])

    async def _tokenize(self, request: Request) -> Response:
        body = await self._body(request)
        check_names(body, frozenset({"content", "add_special", "parse_special", "model"}))
        content = text("content", body.get("content"))
        add_special = boolean("add_special", body.get("add_special", False))
        special = boolean("parse_special", body.get("parse_special", True))
        tokens = await self._do(
            request, lambda _tell: self._served.tokenize(content, add_special=add_special, special=special)
        )
        return JSONResponse({"tokens": tokens})

    async def _detokenize(self, request: Request) -> Response:
        body = await self._body(request)
        check_names(body, frozenset({"tokens", "model"}))
        given = body.get("tokens")
        if not isinstance(given, list):
            raise Refusal(400, "tokens takes a list of token ids", param="tokens")
        tokens = [integer("tokens", token) for token in given]
        return JSONResponse({"content": await self._do(request, lambda _tell: self._served.detokenize(tokens))})

    async def _embeddings(self, request: Request) -> Response:
        body = await self._body(request)
        model = self._served.model
        check_model(body, model)
        wanted = read_embedding(body, model)
        vectors, tokens = await self._do(request, lambda _tell: embed(self._served, wanted.inputs))
        self._note(request.scope, prompt_tokens=tokens)
        return JSONResponse(embedding_reply(model, vectors, tokens, as64=wanted.base64))

    # -- generating ------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        body = await self._body(request)
        check_model(body, self._served.model)
        return await self._generate(request, read_chat(body, self._base))

    async def _completions(self, request: Request) -> Response:
        body = await self._body(request)
        check_model(body, self._served.model)
        return await self._generate(request, read_completion(body, self._base))

    async def _generate(self, request: Request, order: Order) -> Response:
        reply = Reply(order, self._served.model)
        if not order.stream:
            done = await self._do(request, lambda tell: generate(self._served, order, tell))
            self._count(request.scope, done)
            return JSONResponse(reply.whole(done))
        job = self._start(lambda tell: generate(self._served, order, tell))
        watch = asyncio.create_task(_watch(request, job))
        # What is refused at once, such as a prompt that is too long, gets its status: nothing is sent before.
        first = await job.events.get()
        if isinstance(first, Failed):
            self._over(job, watch)
            raise first.error
        return _Events(self._events(request.scope, reply, job, watch, first))

    async def _events(
        self, scope: Scope, reply: Reply, job: Job, watch: asyncio.Task[None], item: Any
    ) -> AsyncIterator[bytes]:
        """Yield the events of a stream, and stop its generation when they are not wanted any more."""
        try:
            while True:
                if isinstance(item, Done):
                    self._count(scope, item.value)
                    for data in reply.ends(item.value):
                        yield data
                    yield DONE
                    return
                if isinstance(item, Failed):
                    if watch.done():
                        scope["llama_magic_status"] = GONE
                    else:
                        self._note(scope, error=first_line(item.error))
                    yield event(refusal_of(item.error).body())
                    return
                yield reply.piece(*item)
                item = await job.events.get()
        finally:
            self._over(job, watch)

    def _start(self, work: Callable[[Callable[[Any], None]], Any]) -> Job:
        if self._closing:
            raise Refusal(503, "the server is being stopped", code="stopping", kind="server_error")
        job = Job(work, self.gate)
        self._jobs.add(job)
        return job

    def _over(self, job: Job, watch: asyncio.Task[None]) -> None:
        job.stop()
        watch.cancel()
        self._jobs.discard(job)

    async def _do(self, request: Request, work: Callable[[Callable[[Any], None]], Any]) -> Any:
        """Do work on a thread, and stop it when the client goes away."""
        job = self._start(work)
        watch = asyncio.create_task(_watch(request, job))
        try:
            return await job.result()
        except BaseException:
            if watch.done() and not watch.cancelled():
                raise ClientDisconnect from None
            raise
        finally:
            self._over(job, watch)

    def _count(self, scope: Scope, done: list[Completion]) -> None:
        rows = [completion.timings for completion in done]
        generated, seconds = sum(row.generated_tokens for row in rows), sum(row.generation_s for row in rows)
        self._note(
            scope,
            prompt_tokens=sum(row.prompt_tokens for row in rows),
            tokens=generated,
            tokens_per_second=generated / seconds if seconds > 0 else 0.0,
        )


class _Events(Response):
    """A reply of server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            with contextlib.suppress(Exception):
                await self._events.aclose()  # type: ignore[attr-defined]


async def _watch(request: Request, job: Job) -> None:
    """Stop a job when its client goes away; the body has been read, so nothing else comes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.stop()
