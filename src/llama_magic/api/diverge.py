"""Where quantized models leave the reference's text, token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from llama_magic.api.backends import setup_of
from llama_magic.api.levels import line_up
from llama_magic.api.locate import locate
from llama_magic.api.texts import TextLike, text_part
from llama_magic.engine.jobs import run_job
from llama_magic.errors import InvalidRequestError, JobInterrupted
from llama_magic.evaluation.divergence import Divergence, DivergeRequest
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.progress import Report
from llama_magic.quantization.ftypes import find_ftype
from llama_magic.quantization.texts import read_text

__all__ = ["diverge", "diverge_specs", "named_models"]


def diverge(
    ref: str,
    quantized: str | Sequence[str],
    prompt: str = "",
    *,
    text: TextLike | None = None,
    max_tokens: int = 128,
    chat: bool = True,
    top: int = 5,
    force: bool = False,
    progress: Report | None = None,
    **loading: Any,
) -> Divergence:
    """Force the reference's text through quantized models, and tell at each token how far they are from it.

    Two answers can not be compared token by token once they have parted. Here every model reads the same text, so
    each place of it tells what the model would have said there.

    Parameters
    ----------
    ref
        The reference.
    quantized
        The other model, or several; a type such as "Q2_K" is made of the reference, and kept for the next time. Where
        the reference is quantized itself, F16 made of it takes its place then.
    prompt
        What comes before the text.
    text
        A text to force, a string or a `Path`. None: the reference answers the prompt, always with its likeliest token.
    max_tokens
        Most tokens of text.
    chat
        Put the prompt into the chat template; False lets the reference continue it.
    top
        How many of the likeliest tokens are kept at each place, 1 to 20.
    force
        Load models that seem not to fit into memory.
    progress
        Called with every `Progress`.
    **loading
        Load options, such as `n_threads` and `n_gpu_layers`.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, OutOfMemoryError
    InvalidRequestError
        The vocabularies differ, the text is empty, or a setting can not be used.
    JobInterrupted
        It was stopped.
    """
    options = LoadOptions.from_keywords(**loading)
    words = [quantized] if isinstance(quantized, str) else list(quantized)
    base, *models = [ModelSpec(path, name, options) for path, name in named_models(ref, words, progress)]
    return diverge_specs(
        base, models, prompt, text, max_tokens=max_tokens, chat=chat, top=top, force=force, progress=progress
    )


def named_models(ref: str, words: Sequence[str], progress: Report | None = None) -> list[tuple[str, str]]:
    """Return path and name of the reference and of each other model; types are made where they are not there yet.

    Raises
    ------
    ModelNotFoundError, InvalidModelError
    InvalidRequestError
        A type can not be made of this model.
    """
    if not any(_is_type(word) for word in words):
        return [(locate(one, progress), one) for one in (ref, *words)]
    lineup = line_up(ref, words, progress=progress)
    failed = next((level for level in lineup.levels if level.error), None)
    if failed is not None:
        raise InvalidRequestError(f"{failed.name} can not be compared: {failed.error}")
    if not lineup.levels:
        raise InvalidRequestError(f"{', '.join(words)} is what {ref} is already; name another type")
    return [(level.path, level.name) for level in (lineup.base, *lineup.levels)]


def _is_type(word: str) -> bool:
    with contextlib.suppress(InvalidRequestError):
        return bool(find_ftype(word))
    return False


def diverge_specs(
    base: ModelSpec,
    models: Sequence[ModelSpec],
    prompt: str,
    text: TextLike | None = None,
    *,
    progress: Report | None = None,
    **settings: Any,
) -> Divergence:
    """Do what `diverge` does, for models that were found already; `settings` are fields of `DivergeRequest`."""
    given = None if text is None else read_text(text_part(text))
    request = DivergeRequest(base, tuple(models), prompt, given, **settings)
    try:
        found: Divergence = run_job(request, progress, setup=setup_of(base.options))
    except JobInterrupted as stopped:
        if isinstance(stopped.result, Divergence):
            raise JobInterrupted(stopped.result, "it was done already: the result is whole.") from None
        raise JobInterrupted(None, "stopped; a divergence has no parts, so nothing is kept.") from None
    return found
