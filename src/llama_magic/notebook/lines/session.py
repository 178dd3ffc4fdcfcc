"""Subcommands about the current model, conversations and defaults."""

from __future__ import annotations

from llama_magic.notebook.flags import own_flag, own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.commands"
_SAVED = "llama_magic.notebook.actions.saved"

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("load", "load [model] [flags]", "load a model and make it the current one", ("model", "loading"),
           words=1, complete="model", examples=("%llama load smollm2 -c 4096", "%llama load -m model.gguf -t 4"),
           run=f"{_HERE}:load"),
    Parser("unload", "unload [model]", "give a model's memory back (all models without a name)",
           words=1, complete="model",
           run=f"{_HERE}:unload"),
    Parser("chat", "chat [NAME | NAME/BRANCH]", "list the conversations, or switch to one (new if need be)",
           words=1, complete="branch", examples=("%llama chat poem", "%llama chat poem/branch-1"),
           run=f"{_HERE}:chat"),
    Parser("new", "new [NAME]", "start a conversation over; its turns are kept as a branch",
           words=1, complete="chat",
           run=f"{_HERE}:new"),
    Parser("history", "history [NAME | NAME/BRANCH]", "show the turns of a conversation",
           words=1, complete="branch"),
    Parser("undo", "undo [N] [--chat NAME]", "remove the last turn, or the last N", ("chat",), words=1,
           run=f"{_HERE}:undo"),
    Parser("retry", "retry [NAME] [flags]", "answer the last turn again with another seed; the old one is kept",
           ("sampling", "output"), words=1, complete="chat", examples=("%llama retry --temp 1.2",)),
    Parser("save", "save NAME|FILE [CONVERSATION] [--force] | --delete NAME",
           "keep a conversation and its cache; FILE.json or FILE.md: its text",
           words=2, complete="saved",
           own=(
               own_flag("--delete", "delete", "NAME", str, "delete what was saved under NAME", complete="saved"),
               own_switch("--force", "force", "overwrite a file that is no saved conversation"),
           ),
           examples=("%llama save manual", "%llama save manual poem", "%llama save talk.md",
                     "%llama save --delete manual"),
           run=f"{_SAVED}:save"),
    Parser("restore", "restore [NAME|FILE] [--text-only]", "go on with a saved conversation; without a name: list them",
           only=("out",), words=1, complete="saved",
           own=(
               own_switch("--text-only", "text_only", "take the text, not the state: the model reads it again"),
               own_switch("--force", "force", "load the model even if it seems not to fit into memory"),
           ),
           examples=("%llama restore", "%llama restore manual", "%llama restore talk.json"),
           run=f"{_SAVED}:restore"),
    Parser("config", "config [flags] [name=value …] [reset]", "show or set the defaults",
           ("loading", "sampling"), only=("ref", "system", "format", "stream"), words=99,
           examples=("%llama config --temp 0.2 -n 256", "%llama config reset"),
           run=f"{_HERE}:config"),
    Parser("help", "help [subcommand | flag]", "show what there is", words=1, literal=True,
           run=f"{_HERE}:show_help"),
    Parser("version", "version", "show the versions of llama_magic and llama.cpp",
           run=f"{_HERE}:version"),
)
# fmt: on
