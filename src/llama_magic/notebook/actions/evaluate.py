"""Subcommands that evaluate models on texts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from llama_magic.api.diverge import diverge_specs, named_models
from llama_magic.api.evaluate import evaluate_specs
from llama_magic.api.texts import TextLike
from llama_magic.errors import InvalidRequestError, JobInterrupted
from llama_magic.notebook.commands import Context
from llama_magic.notebook.converters import unescape
from llama_magic.notebook.parsers import Arguments
from llama_magic.notebook.scrubber import scrubber

_SETTINGS = "n_ctx chunks stride force".split()


def perplexity(context: Context, arguments: Arguments) -> object:
    """``%llama perplexity [model …] [--base MODEL] [--text FILE]``."""
    named = arguments.get("ref")
    refs = [*([named] if named else []), *arguments.words]
    base = arguments.get("base")
    if base is not None and not refs:
        raise InvalidRequestError(
            f"--base names what to compare with; name the models to compare, too: "
            f"%llama perplexity model-q4_0.gguf --base {base}"
        )
    loading, told, session = arguments.group("loading"), context.on_progress, context.session
    # the length of a chat's context is not that of a chunk
    loading["n_ctx"] = None
    specs = [session.spec(ref, loading, told, tuned=False) for ref in refs or [None]]
    try:
        return evaluate_specs(
            specs,
            None if base is None else session.spec(base, loading, told),
            text_of(arguments.get("text"), context),
            progress=told,
            **{name: arguments.get(name) for name in _SETTINGS if name in arguments.values},
        )
    except JobInterrupted as stopped:
        if stopped.result is not None and "out" in arguments.values:
            context.namespace[arguments.get("out")] = stopped.result
        raise


def diverge(context: Context, arguments: Arguments) -> object:
    """``%llama diverge MODEL QUANTIZED … --prompt TEXT``."""
    if len(arguments.words) < 2:
        raise InvalidRequestError(
            "diverge needs the reference and a quantized model, or its type: "
            "%llama diverge model-f16.gguf Q2_K --prompt 'Tell me about llamas.'"
        )
    loading, told, session = arguments.group("loading"), context.on_progress, context.session
    loading["n_ctx"] = None
    ref, *words = arguments.words
    base, *models = [
        replace(session.spec(path, loading, told), ref=name) for path, name in named_models(ref, words, told)
    ]
    found = diverge_specs(
        base,
        models,
        unescape(arguments.get("prompt", "")),
        text_of(arguments.get("text"), context),
        chat=not arguments.get("complete", False),
        progress=told,
        **{name: arguments.get(name) for name in ("max_tokens", "top", "force") if name in arguments.values},
    )
    return scrubber(found) if arguments.get("live") else found


def text_of(word: str | None, context: Context) -> TextLike | None:
    """Return the text that ``--text`` names: a file where there is one, else a variable of the user's.

    Raises
    ------
    InvalidRequestError
        There is neither.
    """
    if word is None:
        return None
    if not Path(word).expanduser().is_file() and word.isidentifier() and word in context.namespace:
        value = context.namespace[word]
        if isinstance(value, (str, os.PathLike)):
            return value
        raise InvalidRequestError(
            f"--text: the variable {word} is of type {type(value).__name__}; it has to be a text or a path"
        )
    return Path(word)
