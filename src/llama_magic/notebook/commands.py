"""The small subcommands of `%llama`: each takes what was parsed and returns what to say.

None of them knows of IPython. A string is printed, any other object displayed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traitlets import TraitError

from llama_magic.api.session import Session
from llama_magic.errors import InvalidRequestError
from llama_magic.inference.conversation import Conversation
from llama_magic.inference.params import SamplingParams
from llama_magic.models.options import LoadOptions, ModelInfo
from llama_magic.notebook.config import Defaults
from llama_magic.notebook.help import help_text
from llama_magic.notebook.parsers import Arguments
from llama_magic.progress import Report
from llama_magic.suggest import did_you_mean
from llama_magic.units import format_bytes

__all__ = ["Context", "turns_of"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a subcommand may use; `shell` is for views of its own."""

    session: Session
    defaults: Defaults
    on_progress: Report
    namespace: dict[str, Any] = field(default_factory=dict)
    shell: Any = None


def load(context: Context, arguments: Arguments) -> str:
    """``%llama load [model] [flags]``."""
    ref = arguments.get("ref", arguments.word)
    info = context.session.load(
        ref, arguments.group("loading"), force=arguments.get("force", False), on_progress=context.on_progress
    )
    return describe(info) + _tuned(context.session)


def _tuned(session: Session) -> str:
    if not session.tuned:
        return ""
    from llama_magic.evaluation.tune import flags_of

    return f"\ntuned: {flags_of(session.tuned)} (%llama tune --reset forgets it)"


def describe(info: ModelInfo) -> str:
    """Say in two lines what was loaded."""
    template = "" if info.has_chat_template else "\nIt has no chat template: prompts are continued, not answered."
    took = f"loaded in {info.load_s:.1f} s" if info.load_s else "was loaded already"
    return (
        f"{info.name}: {took}, {_bytes(info.size)} {info.ftype}, {info.n_params / 1e6:,.0f} M parameters\n"
        f"context {info.n_ctx:,} of {info.n_ctx_train:,} tokens, {info.place}, "
        f"{info.n_threads} thread{'' if info.n_threads == 1 else 's'}, {_bytes(info.memory)} of memory{template}"
    )


def unload(context: Context, arguments: Arguments) -> str:
    """``%llama unload [model]``."""
    # Not above: the library of models comes with it, which `%load_ext` can do without.
    from llama_magic.api.fit import worker_memory

    before = worker_memory()
    paths = context.session.unload(arguments.word)
    freed = before - worker_memory()
    served = _served(paths)
    if not paths:
        return "No model was loaded." if arguments.word is None else f"{arguments.word} was not loaded."
    names = ", ".join(dict.fromkeys(Path(path).name for path in paths))
    done = f"Unloaded {names}; the worker gave {format_bytes(freed)} back." if freed > 0 else f"Unloaded {names}."
    return done + served


def _served(paths: tuple[str, ...]) -> str:
    """Say where an unloaded model is still served. Without that module, nothing can be."""
    module = sys.modules.get("llama_magic.api.serve")
    urls = () if module is None else module.served_urls(paths)
    if not urls:
        return ""
    return f"\nIt is served at {', '.join(urls)}: the next request loads it again. %llama stop ends that."


def chat(context: Context, arguments: Arguments) -> str:
    """``%llama chat [NAME | NAME/BRANCH]``."""
    session = context.session
    if arguments.word is None:
        return _list(session)
    conversation, kept = session.switch(arguments.word)
    note = f"; the line you left is branch '{kept}'" if kept else ""
    return f"-cnv now continues '{conversation.name}' ({turns_of(len(conversation))}{note})."


def _list(session: Session) -> str:
    if not session.conversations:
        return "There is no conversation yet. A cell with %%llama -cnv starts one."
    lines = []
    for name, conversation in session.conversations.items():
        mark = "*" if name == session.chat else " "
        lines.append(f"{mark} {name}: {turns_of(len(conversation))}{_first(conversation)}")
        lines += [f"    {name}/{branch}: {turns_of(len(turns))}" for branch, turns in conversation.branches.items()]
    return "\n".join([*lines, "* is what -cnv continues; %llama chat NAME switches."])


def new(context: Context, arguments: Arguments) -> str:
    """``%llama new [NAME]``."""
    conversation, kept = context.session.new(arguments.word)
    note = f" Its earlier turns are kept as '{conversation.name}/{kept}'." if kept else ""
    return f"Conversation '{conversation.name}' starts over.{note}"


def undo(context: Context, arguments: Arguments) -> str:
    """``%llama undo [N] [--chat NAME]``."""
    word = arguments.word or "1"
    if not word.isdecimal():
        raise InvalidRequestError(f"undo takes the number of turns to remove, 1 or more; got {word!r}")
    conversation = context.session.conversation(arguments.get("chat") or None)
    removed = context.session.undo(int(word), conversation.name)
    asked = "\n".join(f"  {_clip(turn.user)}" for turn in removed)
    return f"Removed {turns_of(len(removed))} from '{conversation.name}', {len(conversation)} left:\n{asked}"


def config(context: Context, arguments: Arguments) -> str:
    """``%llama config [flags] [name=value …] [reset]``."""
    values: dict[str, Any] = {}
    for group in ("loading", "sampling", "output"):
        values |= arguments.group(group)
    if "schema" in values:
        raise InvalidRequestError("a schema belongs to a cell: %%llama --schema …")
    for word in arguments.words:
        if word == "reset":
            context.defaults.reset()
        else:
            name, value = _assignment(word, context.defaults)
            values[name] = value
    if "ref" in arguments.values:
        values["model"] = arguments.get("ref")
    if "system" in arguments.values:
        values["system"] = arguments.get("system")
    try:
        context.defaults.set(**values)
    except TraitError as error:
        raise InvalidRequestError(str(error)) from error
    rows = context.defaults.rows()
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'*' if changed else ' '} {name:<{width}} = {value!r}" for name, value, changed in rows]
    return "\n".join([*lines, "* differs from the built-in default; %config LlamaMagic.NAME = VALUE sets one."])


def _assignment(word: str, defaults: Defaults) -> tuple[str, Any]:
    import ast

    name, equals, text = word.partition("=")
    known = [*defaults.class_own_names(), *SamplingParams().to_dict(), *LoadOptions().to_dict()]
    if not equals:
        raise InvalidRequestError(f"config takes flags or name=value; got {word!r}")
    if name not in known:
        raise InvalidRequestError(f"there is no default {name!r}.{did_you_mean(name, known)}")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text


def show_help(_context: Context, arguments: Arguments) -> str:
    """``%llama help [topic]``."""
    return help_text(arguments.word)


def version(context: Context, _arguments: Arguments) -> str:
    """``%llama version``: without starting a worker."""
    import platform
    from importlib import metadata

    from llama_magic._version import __version__

    def installed(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    commit = f" (llama.cpp {context.session.info.llama_cpp_commit})" if context.session.info else ""
    return (
        f"llama_magic {__version__}\n"
        f"llama-cpp-python {installed('llama-cpp-python')}{commit}\n"
        f"Python {platform.python_version()}, IPython {installed('ipython')}"
    )


def turns_of(count: int) -> str:
    """Return ``"1 turn"``, ``"2 turns"``."""
    return f"{count} turn{'' if count == 1 else 's'}"


def _first(conversation: Conversation) -> str:
    return f', "{_clip(conversation.turns[0].user, 50)}"' if conversation.turns else ""


def _clip(text: str, width: int = 70) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
