"""The way in: who may ask is checked before anything is read, and what becomes of a request is noted."""

from __future__ import annotations

import asyncio
import re

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_magic.errors import GenerationInterrupted
from llama_magic.serving.policy import Policy
from llama_magic.serving.problems import Refusal
from llama_magic.serving.records import RequestLog

__all__ = ["GONE", "OPEN_PATHS", "Door", "first_line", "refuse"]

#: Status of a request whose client went away (nginx's).
GONE = 499
#: What needs no key and is not noted: monitors ask it all the time.
OPEN_PATHS = frozenset({"/health", "/v1/health"})


class Door:
    """Checks name, origin and key.

    Parameters
    ----------
    app
        What is behind it.
    policy
        Who may ask.
    log
        Where requests are noted; `app` finds the number of its record in ``scope["llama_magic"]``.
    paths
        Those that are noted by name: what else strangers try is not.
    """

    def __init__(self, app: ASGIApp, policy: Policy, log: RequestLog, paths: set[str]) -> None:
        self._app = app
        self._policy = policy
        self._log = log
        self._paths = paths
        self._inner: ASGIApp = self._with_key
        if policy.origins:
            self._inner = CORSMiddleware(
                self._with_key,
                allow_origins=list(policy.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["Retry-After"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            return
        path, number, status = scope["path"], None, 0
        if path not in OPEN_PATHS:
            number = self._log.begin(path if path in self._paths else "(unknown)")
        scope["llama_magic"] = number

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._checked(scope, receive, watched)
        except (ClientDisconnect, OSError):
            status = GONE
        except asyncio.CancelledError:
            status = GONE
            raise
        finally:
            if number is not None:
                self._log.note(number, status=scope.get("llama_magic_status", status) or GONE)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        try:
            self._policy.check_host(headers.get("host", ""))
            self._policy.check_origin(headers.get("origin"))
        except Refusal as refusal:
            await self._refuse(refusal, scope, receive, send)
            return
        await self._inner(scope, receive, send)

    async def _with_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        try:
            if scope["path"] not in OPEN_PATHS:
                self._policy.check_key(headers.get("authorization"), headers.get("x-api-key"))
        except Refusal as refusal:
            await self._refuse(refusal, scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["llama_magic"] is not None:
            self._log.note(scope["llama_magic"], error=first_line(refusal))
        await refuse(refusal)(scope, receive, send)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def refuse(refusal: Refusal) -> Response:
    """Return the reply that says why not."""
    return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)


def first_line(error: BaseException) -> str:
    """Return what a record says of an error: what happened, and nothing that the client sent."""
    if isinstance(error, GenerationInterrupted):
        return "stopped here"
    said = re.split(r"\n|: |; got", str(error).strip(), maxsplit=1)[0]
    return re.sub(r"(['\"]).*\1", "'…'", said)[:120] or type(error).__name__
