"""The subcommands about memory: what fits, and what is loaded."""

from __future__ import annotations

from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.fit"

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("fit", "fit [model] [-c N] [flags]", "tell what a model would take, and whether it fits",
           ("loading",), only=("ref", "out"), words=1, complete="model",
           examples=("%llama fit smollm2 -c 8192", "%llama fit hf:owner/repo:Q4_K_M -ctk q8_0 -ctv q8_0"),
           run=f"{_HERE}:fit"),
    Parser("loaded", "loaded", "list the models that are loaded, and what they hold",
           run=f"{_HERE}:loaded"),
)
# fmt: on
