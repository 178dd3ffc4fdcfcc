"""The levels of a comparison read a text in lock step with their reference. Runs in the worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llama_magic.evaluation import evaluating
from llama_magic.evaluation.comparison import Figure
from llama_magic.evaluation.levels import CompareRequest, LevelUpdate, QuantizationLevel
from llama_magic.evaluation.requests import Estimate, EvaluateRequest, EvaluationProgress
from llama_magic.evaluation.results import Evaluation, KLDivergence, Perplexity
from llama_magic.evaluation.windows import cut
from llama_magic.models.options import ModelSpec
from llama_magic.native import NativeModel
from llama_magic.native.tools import WorkerTools
from llama_magic.progress import Progress
from llama_magic.quantization.texts import TextPart, read_text

__all__ = ["check_texts", "read"]


def check_texts(request: CompareRequest, model: NativeModel) -> None:
    """Raise `InvalidRequestError` where a text is too short, before anything else takes time."""
    for texts, n_ctx in _readings(request):
        asked = EvaluateRequest((ModelSpec("", ""),), texts=texts, n_ctx=n_ctx, chunks=request.chunks)
        cut(model, [(part.name, read_text(part)) for part in texts], asked)


def _readings(request: CompareRequest) -> list[tuple[tuple[TextPart, ...], int]]:
    found = [((request.text,), request.n_ctx)] if request.text is not None else []
    return [*found, *([(request.kinds, request.kinds_n_ctx)] if request.kinds else [])]


def read(request: CompareRequest, levels: tuple[QuantizationLevel, ...], tools: WorkerTools) -> dict[str, Any]:
    """Let levels read, and tell their figures as they come; returns what is common to all of them."""
    base = levels[0] if request.has_base and levels and levels[0] == request.levels[0] else None
    others = levels[1:] if base is not None else levels
    facts: dict[str, Any] = {}
    if request.text is not None and not tools.cancelled():
        found = _evaluate(request, base, others, (request.text,), request.n_ctx, tools)
        _tell(base, others, found, tools)
        facts["chunks"] = found.chunks
    if request.kinds and not tools.cancelled():
        found = _evaluate(request, base, others, request.kinds, request.kinds_n_ctx, tools)
        _tell_kinds(base, others, found, tools)
    return facts


def _evaluate(
    request: CompareRequest,
    base: QuantizationLevel | None,
    others: tuple[QuantizationLevel, ...],
    texts: tuple[TextPart, ...],
    n_ctx: int,
    tools: WorkerTools,
) -> Evaluation:
    alone = base is not None and not others  # then the reference reads by itself
    asked = EvaluateRequest(
        models=tuple(_spec(level, request) for level in ((base,) if alone and base else others)),
        base=None if base is None or alone else _spec(base, request),
        texts=texts,
        n_ctx=n_ctx,
        chunks=request.chunks,
        tolerant=True,
        force=True,  # the kernel has decided what fits, and a moment ago all of it was loaded
    )
    names = {-1: base.name if base is not None else ""} | {place: level.name for place, level in enumerate(others)}
    if alone and base is not None:
        names[0] = base.name
    single = texts == (request.text,)

    def report(event: Progress) -> None:
        if not isinstance(event, EvaluationProgress):
            tools.report(Progress("evaluate", None, f"loading {event.message}"))
            return
        words = _words(event, texts)
        tools.report(Progress("evaluate", event.fraction, words))
        for _, place, now in event.estimates if single else ():
            tools.report(LevelUpdate("evaluate", event.fraction, words, level=names[place], values=_running(now)))

    return evaluating.run(asked, replace(tools, report=report))


def _words(event: EvaluationProgress, texts: tuple[TextPart, ...]) -> str:
    of = "" if len(texts) == 1 else f" of {len(texts)} kinds of text"
    return f"read in lock step: {event.chunk} of {event.chunks} chunks{of}"


def _spec(level: QuantizationLevel, request: CompareRequest) -> ModelSpec:
    return ModelSpec(level.path, level.name, request.options)


def _running(now: Estimate) -> dict[str, Any]:
    """Return the figures of a row after some chunks."""
    values: dict[str, Any] = {"ppl": Figure(now.ppl, now.ppl_error), "tokens": now.tokens}
    if now.kld is not None:
        values |= {"kld": Figure(now.kld, now.kld_error)}
    if now.rms_dp is not None:
        values |= {"rms_dp": Figure(now.rms_dp, now.rms_dp_error)}
    if now.same_top is not None:
        values |= {"same_top": Figure(now.same_top, now.same_top_error)}
    return values


def _tell(
    base: QuantizationLevel | None, others: tuple[QuantizationLevel, ...], found: Evaluation, tools: WorkerTools
) -> None:
    """Tell the final figures, and why some have none."""
    members = others if others or base is None else (base,)
    for level, results in zip(members, found.results, strict=False):
        if results:
            _row(level, results[0], tools)
    if base is not None and found.base:
        _row(base, found.base[0], tools)
    for place, reason in found.failures:
        failed = base if place < 0 else members[place]
        if failed is not None:
            tools.report(
                LevelUpdate("evaluate", 1.0, "read", level=failed.name, values={"kld_reason": reason, "kld": None})
            )


def _row(level: QuantizationLevel, result: Perplexity | KLDivergence, tools: WorkerTools) -> None:
    values: dict[str, Any] = {
        "ppl": Figure(result.ppl, result.ppl_error),
        "tokens": result.tokens,
        "evaluation": result,
        "notes": result.notes,
    }
    if isinstance(result, KLDivergence):
        values |= {
            "ppl_change": Figure(result.difference, result.difference_error),
            "kld": Figure(result.kld, result.kld_error),
            "mean_dp": Figure(result.dp, result.dp_error),
            "rms_dp": Figure(result.rms_dp, result.rms_dp_error),
            "same_top": Figure(result.same_top, result.same_top_error),
        }
    tools.report(LevelUpdate("evaluate", 1.0, "read", level=level.name, values=values))


def _tell_kinds(
    base: QuantizationLevel | None, others: tuple[QuantizationLevel, ...], found: Evaluation, tools: WorkerTools
) -> None:
    for level, results in zip(others, found.results, strict=False):
        kinds = {
            result.text: Figure(result.kld, result.kld_error) for result in results if isinstance(result, KLDivergence)
        }
        if kinds and base is not None:
            tools.report(LevelUpdate("evaluate", 1.0, "read", level=level.name, values={"kinds": kinds}))
