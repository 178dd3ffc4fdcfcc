"""`%llama serve` and `%llama stop`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from llama_magic.api.serve import KEY_VARIABLE, Server, serve_session, servers, stop_serving
from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments

_HOW = ("host", "port", "api_key", "alias", "cors", "allowed_hosts")


@dataclass(frozen=True, slots=True, repr=False)
class Serving:
    """The servers of this kernel and their last requests."""

    running: tuple[Server, ...]

    def __repr__(self) -> str:
        return "\n\n".join(f"{server!r}\n\n{server.requests!r}" for server in self.running)

    def _repr_html_(self) -> str:
        return "".join(server._repr_html_() + server.requests._repr_html_() for server in self.running)


def serve(context: Context, arguments: Arguments) -> object:
    """``%llama serve [MODEL] [flags]``."""
    running = servers()
    if running and not arguments.words and not set(arguments.values) - {"out"}:
        return running[0] if "out" in arguments.values else Serving(running)
    how: dict[str, Any] = {name: arguments.get(name) for name in _HOW if name in arguments.values}
    server = serve_session(
        context.session,
        arguments.get("ref", arguments.word),
        arguments.group("loading"),
        force=arguments.get("force", False),
        progress=context.on_progress,
        **how,
    )
    if _is_new(how, server) and context.shell is not None and not hasattr(context.shell, "kernel"):
        # A terminal keeps nothing: the key is shown, this once.
        print(f"API key: {server.api_key}")  # noqa: T201
    return server


def _is_new(how: dict[str, Any], server: Server) -> bool:
    """Tell whether the key was made here."""
    given = how.get("api_key") or os.environ.get(KEY_VARIABLE)
    return server.api_key is not None and given in (None, "auto")


def stop(_context: Context, arguments: Arguments) -> str:
    """``%llama stop [PORT]``."""
    word = arguments.word
    if word is not None:
        word = word.rstrip("/").rpartition(":")[2]
        if not word.isdecimal():
            raise InvalidRequestError(f"stop takes a port, for example 8080; got {arguments.word!r}")
    stopped = stop_serving(None if word is None else int(word))
    if stopped:
        return f"Stopped {', '.join(stopped)}. The model stays loaded; %llama unload gives its memory back."
    there = ", ".join(server.url for server in servers())
    return (
        f"Nothing is served at {arguments.word}; there is {there}." if there else "Nothing is served from this kernel."
    )
