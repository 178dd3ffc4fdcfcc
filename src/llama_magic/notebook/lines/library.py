"""Subcommands about the library of models: what is here, and bringing and removing it."""

from __future__ import annotations

from llama_magic.notebook.flags import own_flag, own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.library"

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("models", "models [--catalog | --search WORDS]", "list the models on this machine, or find others",
           only=("out",), words=12,
           own=(
               own_switch("--catalog --catalogue", "catalog", "show small models that are good to begin with"),
               own_flag("--search", "search", "WORDS", str, "search the Hub for GGUF models"),
           ),
           examples=("%llama models", "%llama models --catalog", "%llama models --search smollm2 instruct"),
           run=f"{_HERE}:models"),
    Parser("download", "download REF", "fetch a model from the Hub; a stopped download goes on where it was",
           only=("ref", "out"), words=1, complete="model",
           examples=("%llama download owner/repo:Q4_K_M", "%llama download hf:owner/repo/file.gguf@v1.0"),
           run=f"{_HERE}:download"),
    Parser("delete", "delete REF [--yes]", "delete a model from the Hub's cache or our folder; asks first",
           only=("ref",), words=1, complete="model",
           own=(own_switch("-y --yes", "yes", "do not ask"),),
           examples=("%llama delete owner/repo:Q4_K_M",),
           run=f"{_HERE}:delete"),
    Parser("alias", "alias [NAME REF | --delete NAME]", "list the short names of models, make one, or remove one",
           words=2, complete="model",
           own=(own_flag("--delete", "delete", "NAME", str, "forget a short name"),),
           examples=("%llama alias qwen Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M", "%llama alias --delete qwen"),
           run=f"{_HERE}:alias"),
)
# fmt: on
