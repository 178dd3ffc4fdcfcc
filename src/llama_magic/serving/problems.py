"""Errors in OpenAI's shape, and back: what a status and a body mean to who asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llama_magic import errors

__all__ = ["Refusal", "error_of", "refusal_of"]

_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"


class Refusal(errors.LlamaMagicError):
    """A request that is not done.

    Parameters
    ----------
    status
        The HTTP status.
    message
        What happened and what to do.
    code, param, kind
        OpenAI's fields ``code``, ``param`` and ``type``.
    headers
        Further headers of the reply.
    more
        Further fields of the error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = _INVALID,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def body(self) -> dict[str, Any]:
        """Return the reply's JSON."""
        shown = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {**shown, **self.more}}


#: Error, status, type, code, and what is said in its place where its own words are for the notebook's owner: they may
#: hold paths of this machine, or name magics. The most specific first.
_MEANINGS: tuple[tuple[type[BaseException], int, str, str, str], ...] = (
    (errors.ContextFullError, 400, _INVALID, "context_length_exceeded", ""),
    (errors.GrammarError, 400, _INVALID, "invalid_grammar", ""),
    (errors.SchemaError, 400, _INVALID, "invalid_schema", ""),
    (errors.ChatTemplateError, 400, _INVALID, "invalid_messages", ""),
    (errors.InvalidRequestError, 400, _INVALID, "", ""),
    (errors.OutOfMemoryError, 503, _SERVER, "out_of_memory",
     "there is not enough memory for this request here; a shorter prompt or a smaller n may work"),
    (errors.ModelError, 503, _SERVER, "model_not_available", "the served model can not be loaded at the moment"),
    (errors.EngineCrashed, 503, _SERVER, "engine_crashed",
     "the model's process ended; it starts again with the next request"),
    (errors.EngineError, 500, _SERVER, "engine_error", "the engine failed; the notebook that serves knows more"),
    (errors.BackendError, 503, _SERVER, "backend_error", "the hardware backend failed; try again in a while"),
    (errors.RemoteError, 502, _SERVER, "bad_gateway", "the server behind this one failed or can not be reached"),
    (errors.GenerationInterrupted, 503, _SERVER, "interrupted", "the generation was stopped on the server"),
    (errors.NativeError, 500, _SERVER, "native_error", "llama.cpp reported a failure"),
    (errors.LlamaMagicError, 500, _SERVER, "internal_error", "this failed on the server"),
    (BaseException, 500, _SERVER, "internal_error", "this is a bug on the server's side"),
)  # fmt: skip


def refusal_of(error: BaseException) -> Refusal:
    """Return what a client is told of an error."""
    if isinstance(error, Refusal):
        return error
    _, status, type_name, code, words = next(row for row in _MEANINGS if isinstance(error, row[0]))
    if isinstance(error, errors.ContextFullError):
        counts = {"n_prompt_tokens": error.n_prompt, "n_ctx": error.n_ctx, "n_ctx_train": error.n_ctx_train}
        words = (
            f"the prompt has {error.n_prompt:,} tokens, the context holds {error.n_ctx:,}: shorten the messages, or "
            "serve the model with a larger context (-c)"
        )
        return Refusal(status, words, code=code, param="messages", more=counts)
    return Refusal(status, words or str(error), code=code or None, kind=type_name)


def error_of(status: int, body: Any, where: str, *, key: bool = True) -> errors.LlamaMagicError:
    """Return the error that a server's answer means.

    Parameters
    ----------
    status
        The HTTP status; 0 for an error inside a stream.
    body
        The parsed JSON of the answer, in OpenAI's shape or not; None where it is none.
    where
        The server's address, for the message.
    key
        Whether a key was sent.
    """
    found = body.get("error", body) if isinstance(body, Mapping) else None
    found = found if isinstance(found, Mapping) else {"message": found or _words(body)}
    message = str(found.get("message") or found.get("detail") or "").strip()
    message = message or (f"HTTP status {status}" if status else "it failed")
    code, said = found.get("code"), f"{where} says: {message}"
    if code == "context_length_exceeded" or found.get("type") == "exceed_context_size_error":
        counts = [found.get(name) for name in ("n_prompt_tokens", "n_ctx")]
        if all(isinstance(count, int) for count in counts):
            n_prompt, n_ctx = counts
            return errors.ContextFullError(n_prompt, n_ctx, int(found.get("n_ctx_train") or 0))  # type: ignore[arg-type]
        return errors.InvalidRequestError(said)
    if status == 401:
        refused = "does not take this API key" if key else "wants an API key"
        return errors.RemoteError(f"{where} {refused} ({message}): connect(url, api_key=…)", status)
    if status == 404 and code == "model_not_found":
        return errors.ModelNotFoundError(said)
    if status == 404:
        return errors.RemoteError(f"{said}. Is it the address of an OpenAI-compatible server?", status)
    if status in (429, 503):
        return errors.RemoteError(f"{said}. Try again in a while.", status)
    if 400 <= status < 500 and status not in (403, 408):
        named: dict[Any, type[errors.LlamaMagicError]] = {
            "invalid_grammar": errors.GrammarError,
            "invalid_schema": errors.SchemaError,
            "invalid_messages": errors.ChatTemplateError,
        }
        return named.get(code, errors.InvalidRequestError)(said)
    return errors.RemoteError(said, status)


def _words(body: Any) -> str:
    return body.strip()[:200] if isinstance(body, str) else ""
