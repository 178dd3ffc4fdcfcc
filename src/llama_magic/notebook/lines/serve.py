"""Subcommands that serve a model to other programs."""

from __future__ import annotations

from llama_magic.notebook.converters import integer, text_file
from llama_magic.notebook.flags import own_flag
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.serve"
_PORT = integer(0, "a port from 0 to 65535 (0 picks one that is free)", most=65535)


def _key_file(text: str) -> str:
    """Read the first line of a file with a key."""
    return text_file(text).strip().partition("\n")[0].strip()


# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("serve", "serve [MODEL] [flags]",
           "serve a model to clients of OpenAI's interface; again: show what is served and the last requests",
           ("model", "loading"), only=("out",), words=1, complete="model",
           own=(
               own_flag("--host", "host", "ADDRESS", str,
                        "address to listen at (127.0.0.1: this machine only; others need a key)"),
               own_flag("--port", "port", "N", _PORT, "port to listen at (8080; 0 picks one that is free)"),
               own_flag("--api-key", "api_key", "KEY", str,
                        "key that clients have to send; auto makes one. What is typed here is saved with the notebook",
                        complete=("auto",)),
               own_flag("--api-key-file", "api_key", "FILE", _key_file, "file whose first line is the key",
                        complete="file"),
               own_flag("-a --alias", "alias", "NAME", str, "what the model is called in requests"),
               own_flag("--cors", "cors", "ORIGIN", str,
                        "web pages that may ask, for example https://example.org; may be repeated", repeat=True),
               own_flag("--allowed-host", "allowed_hosts", "NAME", str,
                        "further name of the server, that a proxy passes on; may be repeated", repeat=True),
           ),
           examples=("%llama serve", "%llama serve owner/repo:Q4_K_M --port 0 -c 8192",
                     "%llama serve --host 0.0.0.0 --api-key-file key.txt", "%llama stop"),
           run=f"{_HERE}:serve"),
    Parser("stop", "stop [PORT]", "end the server (all of them without a port); the model stays loaded", words=1,
           run=f"{_HERE}:stop"),
)
# fmt: on
