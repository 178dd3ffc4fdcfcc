"""The subcommand that looks for what is wrong."""

from __future__ import annotations

from llama_magic.notebook.flags import own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("doctor", "doctor [--json]", "tell why something does not work, or is slow, and what helps",
           only=("out",),
           own=(own_switch("--json", "json", "print the findings as JSON"),),
           examples=("%llama doctor", "%llama doctor --json"),
           run="llama_magic.notebook.actions.doctor:doctor"),
)
# fmt: on
