"""Subcommands about the library of models."""

from __future__ import annotations

from pathlib import Path

from llama_magic.api import library
from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.asking import agreed
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments
from llama_magic.suggest import did_you_mean
from llama_magic.units import format_bytes


def models(context: Context, arguments: Arguments) -> object:
    """``%llama models [--catalog | --search WORDS]``."""
    words = arguments.words
    if "search" in arguments.values:
        if arguments.get("catalog"):
            raise InvalidRequestError("models takes --catalog or --search, not both")
        return library.search(" ".join((arguments.get("search"), *words)), progress=context.on_progress)
    if words:
        raise InvalidRequestError(f"models takes no words; to find others: %llama models --search {' '.join(words)}")
    return library.catalog() if arguments.get("catalog") else library.models()


def download(context: Context, arguments: Arguments) -> object:
    """``%llama download REF``."""
    ref = arguments.get("ref", arguments.word)
    if ref is None:
        raise InvalidRequestError("download needs a model: %llama download owner/repo[:quant]")
    found = library.fetch(ref, progress=context.on_progress)
    if isinstance(found, Path):
        return f"{ref} is on this machine already: {found}"
    return found


def delete(context: Context, arguments: Arguments) -> str:
    """``%llama delete REF [--yes]``."""
    ref = arguments.get("ref", arguments.word)
    if ref is None:
        raise InvalidRequestError("delete needs a model: %llama delete owner/repo:quant; %llama models lists them")
    plan = library.plan_delete(ref)
    what = f"{plan.ref} ({format_bytes(plan.size)})"
    if not arguments.get("yes") and not agreed(f"Delete {what}? [y/N] ", "add --yes to delete it without asking"):
        return "Nothing was deleted."
    current = context.session.model
    if current is not None and plan.path and Path(current.path).resolve() == Path(plan.path).resolve():
        context.session.unload(current.ref)
    freed = library.delete_planned(plan)
    return f"Deleted {plan.ref}; {format_bytes(freed)} were freed."


def alias(_context: Context, arguments: Arguments) -> str:
    """``%llama alias [NAME REF | --delete NAME]``."""
    words = arguments.words
    if "delete" in arguments.values:
        if words:
            raise InvalidRequestError("alias --delete takes one name and nothing else")
        name = arguments.get("delete")
        return f"{name} no longer stands for {library.remove_alias(name)}."
    if not words:
        return _list()
    if len(words) == 1:
        known = library.aliases()
        if words[0] in known:
            return f"{words[0]} = {known[words[0]]}"
        raise InvalidRequestError(
            f"there is no alias {words[0]!r}.{did_you_mean(words[0], known)} To make it: %llama alias {words[0]} REF"
        )
    name, (ref, before) = words[0], library.set_alias(*words)
    return f"{name} = {ref}" + (f" (it was {before})" if before not in (None, ref) else "")


def _list() -> str:
    known = library.aliases()
    if not known:
        return "There is no alias yet. %llama alias NAME REF makes one."
    width = max(map(len, known))
    return "\n".join(
        [*(f"{name:<{width}} = {ref}" for name, ref in known.items()), f"They are kept in {library.aliases_file()}."]
    )
