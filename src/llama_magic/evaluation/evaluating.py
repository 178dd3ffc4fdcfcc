"""Evaluates models on texts: the worker's side of `llama_magic.evaluation.requests`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from llama_magic.backends.host import available_memory
from llama_magic.errors import InvalidModelError, InvalidRequestError, LlamaMagicError, OutOfMemoryError
from llama_magic.evaluation.lockstep import LockStep, Stopped
from llama_magic.evaluation.reader import Reader
from llama_magic.evaluation.requests import Estimate, EvaluateRequest, EvaluationProgress, distinct_names, short_name
from llama_magic.evaluation.results import Evaluation, KLDivergence, KLDivergences, Perplexities, Perplexity
from llama_magic.evaluation.statistics import TokenScores, divergence_statistics, mean_and_error, running_estimates
from llama_magic.evaluation.windows import cut
from llama_magic.models.gguf import read_metadata
from llama_magic.models.loading import model_settings
from llama_magic.models.memory import estimate
from llama_magic.models.options import ModelSpec
from llama_magic.native import LoadCancelled, NativeModel, WorkerTools
from llama_magic.native.adapter import NativeAdapter
from llama_magic.progress import Progress
from llama_magic.quantization.texts import read_text
from llama_magic.units import format_bytes, format_seconds

__all__ = ["check_memory", "load_model", "other_vocabulary", "run"]

#: Bytes that logits and buffers take beyond models and caches (evaluation/reader.py).
_BESIDES = 350 << 20
#: Fewer tokens than this say little; llama-perplexity prints no statistics of them.
_FEW = 100
#: Points of the way so far that are told while it runs.
_POINTS = 60
#: Vocabulary entries that are compared: all of the text's, and every so many of the others.
_EVERY = 61


def run(request: EvaluateRequest, tools: WorkerTools) -> Evaluation:
    """Do what `EvaluateRequest` says."""
    return _Run(request, tools).run()


class _Run:
    def __init__(self, request: EvaluateRequest, tools: WorkerTools) -> None:
        self.request = request
        self.tools = tools
        self.started = time.perf_counter()
        self.models: list[NativeModel] = []
        self.adapters: list[NativeAdapter] = []
        self.failures: dict[int, str] = {}

    def run(self) -> Evaluation:
        texts = [(part.name, read_text(part)) for part in self.request.texts]
        if not self.request.force:
            specs = [*([self.request.base] if self.request.base else []), *self.request.models]
            check_memory(specs, self.request.n_ctx)
        try:
            base, readers = self._readers(texts)
            if not readers:
                return self._nothing(base)
            return self._read(base, readers)
        except LoadCancelled:
            return Evaluation((), (), tuple(self.failures.items()), 0, 0, self._seconds)
        finally:
            for adapter in self.adapters:
                adapter.close()
            for model in self.models:
                model.close()

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    # -- before reading --------------------------------------------------------------------------------------------

    def _readers(self, texts: Sequence[tuple[str, str]]) -> tuple[Reader | None, dict[int, Reader]]:
        """Load the models and cut the texts; a model that can not take part is left out where that is allowed."""
        request = self.request
        base = None if request.base is None else self._reader(request.base, texts, None)
        readers: dict[int, Reader] = {}
        for place, spec in enumerate(request.models):
            try:
                readers[place] = self._reader(spec, texts, base)
            except LlamaMagicError as error:
                if not request.tolerant:
                    raise
                self.failures[place] = str(error)
        return base, readers

    def _reader(self, spec: ModelSpec, texts: Sequence[tuple[str, str]], base: Reader | None) -> Reader:
        model = load_model(spec, self.tools)
        self.models.append(model)
        adapters = []
        for path, scale in spec.options.lora:
            if scale:
                adapters.append((NativeAdapter(model, path, self.tools.log), scale))
                self.adapters.append(adapters[-1][0])
        windows = cut(model, texts, self.request)
        if base is not None:
            reason = other_vocabulary(model, base.model, windows.targets.ravel().tolist())
            if not reason and windows.targets.tobytes() != base.windows.targets.tobytes():
                reason = "the same text gives other tokens"
            if reason:
                raise InvalidRequestError(
                    f"{short_name(spec.ref)} and {base.name} have different vocabularies ({reason}): a KL divergence "
                    "compares probabilities of the same tokens. Without a base, each has its perplexity"
                )
            windows = base.windows
        return Reader(short_name(spec.ref), model, spec.options, windows, adapters=adapters)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read(self, base: Reader | None, readers: dict[int, Reader]) -> Evaluation:
        request, tools = self.request, self.tools
        with LockStep(
            list(readers.values()), base, tools.cancelled, tolerant=request.tolerant, round_base=request.round_base
        ) as steps:
            began = time.perf_counter()
            self._tell(steps, base, readers, began)
            try:
                while steps.done < steps.total and any(not reader.failure for reader in readers.values()):
                    steps.read()
                    self._tell(steps, base, readers, began)
            except Stopped:
                pass
            self.failures |= {place: reader.failure for place, reader in readers.items() if reader.failure}
            return self._result(base, readers, steps)

    def _tell(self, steps: LockStep, base: Reader | None, readers: dict[int, Reader], began: float) -> None:
        taking_part = {place: reader for place, reader in readers.items() if not reader.failure}
        estimates = [
            (self.request.models[place].ref, place, _now(reader))
            for place, reader in taking_part.items()
            if reader.parts
        ]
        if base is not None and base.parts:
            named = self.request.base.ref if self.request.base else base.name
            estimates.insert(0, (named, -1, _now(base)))
        left = ""
        if steps.done:
            seconds = (time.perf_counter() - began) * (steps.total - steps.done) / steps.done
            left = f", {format_seconds(seconds)} left" if steps.done < steps.total else ""
        figures = _figures([(name, now) for name, _, now in estimates])
        failures = {**self.failures, **{place: reader.failure for place, reader in readers.items() if reader.failure}}
        self.tools.report(
            EvaluationProgress(
                "evaluate",
                steps.done / steps.total,
                f"{steps.done:,} of {steps.total:,} chunks{left}{figures}",
                self._so_far(base, readers),
                chunk=steps.done,
                chunks=steps.total,
                estimates=tuple(estimates),
                failures=tuple(failures.items()),
            )
        )

    def _so_far(self, base: Reader | None, readers: dict[int, Reader]) -> KLDivergences | Perplexities | None:
        """Return what can be shown while it runs: the results on one text so far, with a few points of the way."""
        if len(self.request.texts) > 1:
            return None
        items: list[Any] = []
        for place, reader in readers.items():
            if not reader.failure:
                items += self._of_texts(reader, self.request.models[place], base)
        if not items:
            return None
        # what is shown is not stopped, but on its way
        few = tuple(replace(item, running=_some(item.running), chunks_total=item.chunks) for item in items)
        return KLDivergences(few) if base is not None else Perplexities(few)

    # -- results -----------------------------------------------------------------------------------------------------

    def _nothing(self, base: Reader | None) -> Evaluation:
        """Return what there is where every model failed before reading."""
        total = 0 if base is None else len(base.windows)
        empty: tuple[Any, ...] = tuple(() for _ in self.request.models)
        return Evaluation(empty, (), tuple(self.failures.items()), 0, total, self._seconds)

    def _result(self, base: Reader | None, readers: dict[int, Reader], steps: LockStep) -> Evaluation:
        results: list[tuple[Perplexity | KLDivergence, ...]] = []
        for place, spec in enumerate(self.request.models):
            reader = readers.get(place)
            taken = reader is not None and not reader.failure
            results.append(tuple(self._of_texts(reader, spec, base)) if reader is not None and taken else ())
        of_base: tuple[Perplexity, ...] = ()
        if base is not None and self.request.base is not None:
            of_base = tuple(self._of_texts(base, self.request.base, None))
        return Evaluation(tuple(results), of_base, tuple(self.failures.items()), steps.done, steps.total, self._seconds)

    def _of_texts(self, reader: Reader, spec: ModelSpec, base: Reader | None) -> Iterable[Any]:
        """Yield a model's result on each text of which at least a chunk was read."""
        windows, at = reader.windows, 0
        for part, count, read in zip(
            self.request.texts, windows.counts, windows.read_of(len(reader.parts)), strict=True
        ):
            scores = reader.parts[at : at + read]
            at += count
            if scores:
                yield self._of_one(reader, spec, base, part.name, TokenScores.joined(scores), read, count)

    def _of_one(
        self,
        reader: Reader,
        spec: ModelSpec,
        base: Reader | None,
        text: str,
        scores: TokenScores,
        read: int,
        count: int,
    ) -> Perplexity | KLDivergence:
        windows, request = reader.windows, self.request
        tokens = len(scores.nll)
        notes = []
        if 0 < reader.model.n_ctx_train < request.n_ctx:
            notes.append(
                f"chunks of {request.n_ctx:,} tokens are longer than the {reader.model.n_ctx_train:,} that the model "
                "was trained for"
            )
        if tokens < _FEW:
            notes.append(f"only {tokens:,} tokens were scored: too few for these figures to mean much")
        common: dict[str, Any] = {
            "model": spec.ref,
            "path": spec.path,
            "text": text,
            "n_ctx": request.n_ctx,
            "chunks": read,
            "chunks_total": count,
            "tokens": tokens,
            "seconds": self._seconds,
            "running": running_estimates(scores, [windows.scored * (number + 1) for number in range(read)]),
            "notes": tuple(notes),
        }
        if base is not None:
            named = self.request.base.ref if self.request.base else base.name
            return KLDivergence(**common, base=named, **divergence_statistics(scores))
        mean, error = mean_and_error(scores.nll)
        return Perplexity(**common, ppl=math.exp(mean), ppl_error=math.exp(mean) * error, stride=request.stride)


def _some(running: tuple[Estimate, ...]) -> tuple[Estimate, ...]:
    return (*running[: -1 : 1 + len(running) // _POINTS], running[-1])


def _now(reader: Reader) -> Estimate:
    scores = TokenScores.joined(reader.parts)
    return running_estimates(scores, [len(scores.nll)])[0]


def _figures(estimates: Sequence[tuple[str, Estimate]]) -> str:
    """Return the running figures of a few models in words, with 95 % confidence intervals."""
    said = []
    names = distinct_names([name for name, _ in estimates])
    for name, (_, now) in zip(names, estimates, strict=True):
        if now.kld is not None and now.kld_interval is not None:
            low, high = now.kld_interval
            said.append(f"{name} KLD {now.kld:.4f} [{max(low, 0):.4f}, {high:.4f}]")
        elif len(estimates) == 1 or not any(other.kld is not None for _, other in estimates):
            low, high = now.ppl_interval
            said.append(f"{name} PPL {now.ppl:.3f} [{low:.3f}, {high:.3f}]")
    return "".join(f" · {text}" for text in said[:4])


# -- loading -----------------------------------------------------------------------------------------------------------


def check_memory(specs: Sequence[ModelSpec], n_ctx: int) -> None:
    """Refuse what can not fit; raises `OutOfMemoryError` with the numbers and what helps.

    Raises
    ------
    OutOfMemoryError, InvalidModelError, ModelNotFoundError
    """
    need, cache = 0, 0
    for path in {spec.path for spec in specs}:
        options = next(spec.options for spec in specs if spec.path == path).replace(n_ctx=n_ctx)
        try:
            each = estimate(read_metadata(path), options)
        except LlamaMagicError:
            continue  # loading it says what is wrong
        need += each.weights + each.other
        cache = max(cache, each.kv_cache + each.compute)
    need += cache + _BESIDES
    free = available_memory()
    if need > free:
        names = ", ".join(dict.fromkeys(spec.ref for spec in specs))
        raise OutOfMemoryError(
            f"{names} together need {format_bytes(need)} to be read through side by side, but {format_bytes(free)} "
            "are free. What helps: fewer models at once, a smaller base (Q8_0 is close to F16), or --force to try "
            "all the same"
        )


def load_model(spec: ModelSpec, tools: WorkerTools) -> NativeModel:
    """Load a model that can be evaluated.

    Raises
    ------
    InvalidModelError
        It only embeds texts, or is no usable file.
    LoadCancelled
        The user stopped it.
    """
    told = time.perf_counter()

    def progress(fraction: float) -> bool:
        nonlocal told
        if time.perf_counter() - told > 0.1:
            told = time.perf_counter()
            tools.report(Progress("load", fraction, spec.ref))
        return not tools.cancelled()

    model = NativeModel(spec.path, tools.log, progress, model_settings(spec.options))
    if not model.has_decoder or model.has_encoder:
        kind = "only embeds texts" if not model.has_decoder else "reads a text with an encoder first"
        model.close()
        raise InvalidModelError(f"{spec.ref} {kind}: perplexity is defined for models that predict the next token")
    return model


def other_vocabulary(model: NativeModel, base: NativeModel, tokens: Sequence[int]) -> str:
    """Return in words how two vocabularies differ; empty where they are the same as far as looked."""
    if model.n_vocab != base.n_vocab:
        return f"{model.n_vocab:,} and {base.n_vocab:,} tokens"
    for token in sorted({*tokens, *range(0, model.n_vocab, _EVERY)}):
        mine, theirs = model.piece_with_special(token), base.piece_with_special(token)
        if mine != theirs:
            return f"token {token:,} is {_shown(mine)} in one, {_shown(theirs)} in the other"
    return ""


def _shown(piece: bytes) -> str:
    return repr(piece.decode("utf-8", "replace"))
