"""Subcommands about model files: what they are, without loading them."""

from __future__ import annotations

from llama_magic.notebook.flags import own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.models"

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("inspect", "inspect [model] [--tensors | --template | --json]",
           "show what a model is, without loading or downloading it", only=("ref", "out"), words=1, complete="model",
           own=(
               own_switch("--tensors", "tensors", "list every tensor with its type, shape and size"),
               own_switch("--template", "template", "show the chat template"),
               own_switch("--json", "json", "print everything as JSON"),
           ),
           examples=("%llama inspect smollm2", "%llama inspect hf:owner/repo:Q4_K_M --out about"),
           run=f"{_HERE}:inspect"),
)
# fmt: on
