"""Perplexity and KL divergence: how good a model is at a text, and how far a quantized one is from its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

from llama_magic.api.backends import setup_of
from llama_magic.api.locate import locate
from llama_magic.api.texts import TextLike, text_part
from llama_magic.engine.jobs import run_job
from llama_magic.errors import JobInterrupted
from llama_magic.evaluation.requests import EVALUATION, EVALUATION_NAME, EvaluateRequest, EvaluationProgress
from llama_magic.evaluation.results import Evaluation, KLDivergence, KLDivergences, Perplexities, Perplexity
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.progress import Progress, Report
from llama_magic.quantization.texts import TextPart

__all__ = ["evaluate", "evaluate_specs", "evaluation_text", "kl_divergence", "perplexity"]


@overload
def perplexity(ref: str, text: TextLike | None = ..., **keywords: Any) -> Perplexity: ...
@overload
def perplexity(ref: Sequence[str], text: TextLike | None = ..., **keywords: Any) -> Perplexities: ...
def perplexity(
    ref: str | Sequence[str],
    text: TextLike | None = None,
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    stride: int = 0,
    force: bool = False,
    progress: Report | None = None,
    **loading: Any,
) -> Perplexity | Perplexities:
    """Compute the perplexity of a text, exactly as llama-perplexity does.

    The text is cut into chunks of `n_ctx` tokens, each is read from an empty cache, and the tokens of its second half
    are scored, which have enough before them. Lower is better; compare only models with the same vocabulary, and
    with the same `n_ctx`.

    Parameters
    ----------
    ref
        The model: a file, ``owner/repo[:quant]`` on the Hub, or ``smollm2``. Several models read the text together,
        and the result is a sequence.
    text
        A string, or a file as a `Path`. None: the evaluation text that comes with llama_magic, 42 kB of our own
        writing that no importance matrix of its calibration text has seen.
    n_ctx
        Tokens in a chunk.
    chunks
        Most chunks to read; None: all.
    stride
        Above 0: llama-perplexity's other method. A window of `n_ctx` tokens moves by so many tokens, and its last
        `stride` tokens are scored.
    force
        Load models that seem not to fit into memory.
    progress
        Called with every `Progress`; those of the reading hold the figures so far.
    **loading
        Load options, such as `n_threads` and `n_gpu_layers`.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, OutOfMemoryError
    InvalidRequestError
        The text is too short (the message says how many tokens are needed), or a setting can not be used.
    NativeError
        A model gives logits that are no numbers.
    JobInterrupted
        It was stopped; its `result` holds what was read so far.
    """
    specs = _specs(ref, progress, loading)
    found = evaluate_specs(
        specs, None, text, n_ctx=n_ctx, chunks=chunks, stride=stride, force=force, progress=progress,
        single=isinstance(ref, str),
    )  # fmt: skip
    assert isinstance(found, (Perplexity, Perplexities))
    return found


@overload
def kl_divergence(ref: str, base: str, text: TextLike | None = ..., **keywords: Any) -> KLDivergence: ...
@overload
def kl_divergence(ref: Sequence[str], base: str, text: TextLike | None = ..., **keywords: Any) -> KLDivergences: ...
def kl_divergence(
    ref: str | Sequence[str],
    base: str,
    text: TextLike | None = None,
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    force: bool = False,
    progress: Report | None = None,
    **loading: Any,
) -> KLDivergence | KLDivergences:
    """Tell how far a model's predictions are from those of its base, by all statistics of llama-perplexity.

    Base and models read the text side by side in one worker. So nothing is written to the disk, where the tool keeps
    24 MB for each chunk, and several models share one reading of the base.

    Parameters
    ----------
    ref
        The model, or several; then the result is a sequence.
    base
        What it is compared with, best the file that it was quantized from.
    text, n_ctx, chunks, force, progress, **loading
        As for `perplexity`; a CPU reads about two chunks of 512 tokens a second with 100 M parameters.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, OutOfMemoryError
    InvalidRequestError
        The vocabularies differ, the text is too short, or a setting can not be used.
    NativeError
        A model gives logits that are no numbers.
    JobInterrupted
        It was stopped; its `result` holds what was read so far.
    """
    (base_spec,) = _specs(base, progress, loading)
    found = evaluate_specs(
        _specs(ref, progress, loading), base_spec, text, n_ctx=n_ctx, chunks=chunks, force=force, progress=progress,
        single=isinstance(ref, str),
    )  # fmt: skip
    assert isinstance(found, (KLDivergence, KLDivergences))
    return found


def _specs(refs: str | Sequence[str], progress: Report | None, loading: dict[str, Any]) -> list[ModelSpec]:
    options = LoadOptions.from_keywords(**loading)
    return [ModelSpec(locate(ref, progress), ref, options) for ref in ([refs] if isinstance(refs, str) else refs)]


def evaluate_specs(
    specs: Sequence[ModelSpec],
    base: ModelSpec | None,
    text: TextLike | None,
    *,
    single: bool | None = None,
    progress: Report | None = None,
    **settings: Any,
) -> Perplexity | Perplexities | KLDivergence | KLDivergences:
    """Do what `perplexity` and `kl_divergence` do, for models that were found already.

    Parameters
    ----------
    single
        Return one result and no sequence; None: where there is one model.
    **settings
        Fields of `EvaluateRequest`.
    """
    request = EvaluateRequest(tuple(specs), base, (evaluation_text(text),), **settings)
    alone = len(specs) == 1 if single is None else single
    found: Perplexity | Perplexities | KLDivergence | KLDivergences = _finished(request, progress, single=alone)
    return found


def evaluation_text(text: TextLike | None) -> TextPart:
    """Return a text to evaluate with: the built-in one for None."""
    return TextPart(EVALUATION_NAME, str(EVALUATION)) if text is None else text_part(text)


def evaluate(request: EvaluateRequest, progress: Report | None = None) -> Evaluation:
    """Run a request in a worker of its own.

    Raises
    ------
    JobInterrupted
        It was stopped; the `Evaluation` of what was read is its `result`.
    """
    found: Evaluation = run_job(request, progress, setup=setup_of(request.models[0].options))
    return found


def _finished(request: EvaluateRequest, progress: Report | None, *, single: bool) -> Any:
    last: list[EvaluationProgress] = []

    def report(event: Progress) -> None:
        if isinstance(event, EvaluationProgress) and event.partial is not None:
            last[:] = [event]
        if progress is not None:
            progress(event)

    try:
        return _folded(evaluate(request, report), request, single=single)
    except JobInterrupted as stopped:
        raise _stopped(stopped.result, last, request, single=single) from None


def _stopped(found: Any, last: list[EvaluationProgress], request: EvaluateRequest, *, single: bool) -> JobInterrupted:
    """Return what tells of a stopped call, with what was read.

    A worker that could not stop at once was killed, and gives nothing back: then what it told last is kept.
    """
    if isinstance(found, Evaluation) and any(found.results):
        result, chunks, total = _folded(found, request, single=single), found.chunks, found.chunks_total
    elif last:
        chunks, total = last[0].chunk, last[0].chunks
        items = tuple(replace(item, chunks_total=total) for item in last[0].partial)
        result = items[0] if single else type(last[0].partial)(items)
    else:
        return JobInterrupted(None, "stopped before the first chunks were read.")
    if chunks >= total:
        return JobInterrupted(result, "it was done already: the result is whole.")
    words = f"stopped after {chunks:,} of {total:,} chunks; what was read is kept:\n{result!r}"
    return JobInterrupted(result, words)


def _folded(found: Evaluation, request: EvaluateRequest, *, single: bool) -> Any:
    """Return the results on the one text that was read."""
    items: tuple[Any, ...] = tuple(results[0] for results in found.results if results)
    if single:
        return items[0]
    return KLDivergences(items) if request.base is not None else Perplexities(items)
