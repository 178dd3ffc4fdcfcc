"""Subcommands that compare quantization levels, and choose one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_magic.api.choose import choose as find_level
from llama_magic.api.compare import compare as compare_levels
from llama_magic.api.levels import clear_levels
from llama_magic.errors import InvalidRequestError
from llama_magic.evaluation.comparison_export import SUFFIXES
from llama_magic.notebook.actions.evaluate import text_of
from llama_magic.notebook.commands import Context
from llama_magic.notebook.compare_view import CompareView
from llama_magic.notebook.parsers import Arguments
from llama_magic.quantization.ftypes import find_ftype
from llama_magic.units import format_bytes

_SHARED = "n_ctx chunks base imatrix runs n_prompt n_gen force max_kld".split()
_OWN = "prompt suite backends".split()
_NO_ANSWERS = "samples logprobs schema grammar".split()


def compare(context: Context, arguments: Arguments) -> object:
    """``%llama compare [MODEL] [LEVEL …]``, also as a cell, and ``%%llama --compare LEVELS``."""
    if arguments.get("clear"):
        freed = clear_levels()
        return f"Deleted what comparisons had made: {format_bytes(freed)}." if freed else "There was nothing to delete."
    for name in _NO_ANSWERS:
        if name in arguments.values:
            raise InvalidRequestError(f"compare takes no --{name}: all levels answer once, in the same way")
    saves = [Path(name).expanduser() for name in arguments.get("save", ())]
    for path in saves:
        if path.suffix.lower() not in SUFFIXES:
            raise InvalidRequestError(f"--save {path.name}: the ending has to be one of {', '.join(SUFFIXES)}")
    keywords = _keywords(context, arguments)
    if "compare" in arguments.values:  # a cell: the answers are what is asked for
        ref, levels = _model(context, arguments.get("ref", arguments.word)), list(arguments.get("compare"))
        if not keywords.get("prompt"):
            raise InvalidRequestError("the prompt is empty: write it below the %%llama line, or give -p TEXT")
        keywords |= {"text": False, "runs": 0}
    else:
        ref, levels = _words(context, arguments)
    if levels:
        keywords["ftypes"] = levels
    view = CompareView(context.shell, context.on_progress)
    try:
        found = compare_levels(ref, progress=view.progress, **keywords)
    finally:
        view.close()
    for path in saves:
        found.save(path)
    return found


def choose(context: Context, arguments: Arguments) -> object:
    """``%llama choose [MODEL] [LEVEL …]``."""
    ref, levels = _words(context, arguments)
    keywords = _keywords(context, arguments)
    keywords |= {name: arguments.get(name) for name in ("max_memory", "min_tps") if name in arguments.values}
    if levels:
        keywords["ftypes"] = levels
    return find_level(ref, progress=context.on_progress, **keywords)


def _keywords(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Return what was said, as keywords of the Python function."""
    keywords = {name: arguments.get(name) for name in (*_SHARED, *_OWN) if name in arguments.values}
    loading = {**context.session.options.to_dict(), **arguments.group("loading")}
    loading.pop("n_ctx", None)  # the length of a chat's context is not that of a chunk
    keywords |= {name: value for name, value in loading.items() if name not in keywords}
    keywords |= arguments.group("sampling")
    for name in ("system", "complete"):
        if name in arguments.values:
            keywords[name] = arguments.get(name)
    text = arguments.get("text")
    keywords["text"] = text if text is False else text_of(text, context)
    return keywords


def _words(context: Context, arguments: Arguments) -> tuple[str, list[str]]:
    """Return the model and the levels; without a model, the current one. Levels may be separated by commas."""
    words = [part for word in arguments.words for part in word.split(",") if part]
    named = arguments.get("ref")
    if named is None and words and not _is_type(words[0]):
        named = words.pop(0)
    return _model(context, named), words


def _is_type(word: str) -> bool:
    try:
        find_ftype(word)
    except InvalidRequestError:
        return False
    return True


def _model(context: Context, named: str | None) -> str:
    session = context.session
    return named or (session.model.ref if session.model else session.default_model)
