"""Where quantized models leave the reference's text, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_magic.api.backends import setup_of
from llama_magic.api.library import locate
from llama_magic.api.texts import TextLike, text_part
from llama_magic.engine.jobs import run_job
from llama_magic.errors import JobInterrupted
from llama_magic.evaluation.divergence import Divergence, DivergeRequest
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.progress import Report
from llama_magic.quantization.texts import read_text

__all__ = ["diverge", "diverge_specs"]


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
        The other model, or several.
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
    refs = [quantized] if isinstance(quantized, str) else list(quantized)
    base, *models = [ModelSpec(locate(one, progress), one, options) for one in (ref, *refs)]
    return diverge_specs(
        base, models, prompt, text, max_tokens=max_tokens, chat=chat, top=top, force=force, progress=progress
    )


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
