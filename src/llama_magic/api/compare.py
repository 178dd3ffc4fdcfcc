"""Quantization levels of a model side by side: size, memory, speed, quality, answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

from llama_magic.api.backends import setup_for
from llama_magic.api.comparing import measure
from llama_magic.api.levels import line_up
from llama_magic.api.texts import text_part
from llama_magic.errors import InvalidRequestError
from llama_magic.evaluation.comparison import Comparison
from llama_magic.evaluation.levels import CompareRequest, SpeedRuns
from llama_magic.evaluation.recommend import MAX_KLD
from llama_magic.evaluation.requests import EVALUATION, EVALUATION_NAME, LEAST_CTX
from llama_magic.evaluation.suite import SUITE_CTX, with_own
from llama_magic.inference.params import SamplingParams
from llama_magic.models.options import LoadOptions
from llama_magic.progress import Report
from llama_magic.quantization.texts import TextPart
from llama_magic.suggest import reject_unknown

__all__ = ["DEFAULT_LEVELS", "Settings", "TextLike", "compare"]

#: What is compared where nothing is named: from close to the reference to small.
DEFAULT_LEVELS = ("Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K")
#: A text: itself, or a file as a `Path`. False: none.
TextLike: TypeAlias = str | os.PathLike[str] | TextPart | bool | None


def compare(
    ref: str | os.PathLike[str],
    ftypes: Sequence[str] | str = DEFAULT_LEVELS,
    *,
    prompt: str | None = None,
    text: TextLike = None,
    n_ctx: int = 512,
    chunks: int | None = 8,
    runs: int = 3,
    n_prompt: int = 512,
    n_gen: int = 128,
    base: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    suite: bool = False,
    backends: Sequence[str] | None = None,
    client: Any = None,
    max_kld: float = MAX_KLD,
    system: str | None = None,
    complete: bool = False,
    force: bool = False,
    progress: Report | None = None,
    **options: Any,
) -> Comparison:
    """Compare quantization levels of a model: size, memory, speed, quality and answers.

    Types that are not there are made and kept by content, so that a second comparison makes nothing again
    (`clear_levels` deletes them). All levels are measured in one worker: they answer the prompt in turns with the same
    seed, are timed in turns by llama-bench's method, and read the text in lock step with the reference by the method of
    llama-perplexity.

    Parameters
    ----------
    ref
        The model: a file, ``owner/repo[:quant]`` on the Hub, or ``smollm2``.
    ftypes
        Levels: types such as ``"Q4_K_M"``, files, or references on the Hub.
    prompt
        What all levels answer. None: no answers.
    text
        What perplexity and KL divergence are computed on: a string, or a `Path`. None: a text that comes with
        llama_magic. False: neither is computed.
    n_ctx, chunks
        Tokens of a chunk, and most chunks of the text that are read; None: all. More of them narrow the errors.
    runs, n_prompt, n_gen
        Timed runs of each level, tokens read and tokens generated in each. No runs: speed is not measured.
    base
        The reference: a type, a file, or a reference on the Hub. None: the model itself where its weights are not
        quantized, else F16 made of it.
    imatrix
        Importance matrix for all types that are made; "auto" makes one. None: one is made for the types that need it.
    suite
        Tell the KL divergence by kind of text, too: prose, code, arithmetic and so on.
    backends
        Measure on each of these: ``["cpu", "blas"]``. Quality is measured on the first; on the others speed, memory
        and answers.
    client
        A ``distributed.Client``: the levels are spread over the workers of its cluster (extra ``dask``). The model is
        looked up, and types are made, where they are measured.
    max_kld
        Divergence up to which a level may be recommended.
    system
        System prompt.
    complete
        Continue the prompt instead of answering it.
    force
        Load what seems not to fit into memory.
    progress
        Called with every `Progress`; those of type `BoardUpdate` hold the rows so far.
    **options
        Load options (``n_threads``, ``n_gpu_layers`` and so on), and how to sample (``max_tokens``, ``temperature``,
        ``seed`` and so on; by default 64 tokens, the likeliest each time).

    Returns
    -------
    Comparison
        A level that failed is a row with its reason.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, InvalidRequestError, DiskFullError
    TypeError
        An option is unknown; the nearest one is named.
    JobInterrupted
        The user stopped it; the rows so far are its `result`.
    """
    words = [ftypes] if isinstance(ftypes, str) else [os.fspath(word) for word in ftypes]
    settings = Settings(
        text=text, n_ctx=n_ctx, chunks=chunks, runs=runs, n_prompt=n_prompt, n_gen=n_gen, prompt=prompt, system=system,
        complete=complete, suite=suite, force=force, options=options,
    )  # fmt: skip
    request = settings.request()
    reference = None if base is None else os.fspath(base)
    if client is not None:
        from llama_magic.api.cluster import compare_on_cluster

        return compare_on_cluster(
            client, os.fspath(ref), words, settings, base=reference, imatrix=imatrix, max_kld=max_kld, progress=progress
        )
    setups = [(name, setup_for(name)) for name in backends or ()]
    lineup = line_up(ref, words, base=reference, imatrix=imatrix, progress=progress)
    return measure(lineup, request, max_kld=max_kld, setups=setups, progress=progress)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `compare` was asked for, but which levels; it travels to the workers of a cluster."""

    text: TextLike = None
    n_ctx: int = 512
    chunks: int | None = 8
    runs: int = 3
    n_prompt: int = 512
    n_gen: int = 128
    prompt: str | None = None
    system: str | None = None
    complete: bool = False
    suite: bool = False
    force: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def request(self) -> CompareRequest:
        """Return what a worker is asked for, checked; the levels are still missing.

        Raises
        ------
        InvalidRequestError
            A setting can not be used.
        TypeError
            An option is unknown.
        """
        loading = {one.name for one in fields(LoadOptions)} - {"n_ctx"}
        sampling = {one.name for one in fields(SamplingParams)} - {"samples", "logprobs"}
        reject_unknown(self.options, sorted({*loading, *sampling, *_NAMES}), "option")
        if self.n_ctx < LEAST_CTX:
            raise InvalidRequestError(f"a chunk has at least {LEAST_CTX} tokens; got {self.n_ctx}")
        if self.chunks is not None and self.chunks < 1:
            raise InvalidRequestError(f"chunks is a number of 1 or more, or None for all; got {self.chunks}")
        if self.prompt is not None and not self.prompt.strip():
            raise InvalidRequestError("the prompt is empty; leave it out to compare without answers")
        params = SamplingParams.from_keywords(
            SamplingParams(temperature=0.0, max_tokens=64, seed=1),
            **{name: value for name, value in self.options.items() if name in sampling},
        )
        options = {name: value for name, value in self.options.items() if name in loading}
        return CompareRequest(
            levels=(),
            prompt=self.prompt,
            complete=self.complete,
            system=self.system,
            params=params if params.seed is not None else params.replace(seed=1),
            text=_part(self.text),
            n_ctx=self.n_ctx,
            chunks=self.chunks,
            kinds=_kinds(self.text) if self.suite else (),
            kinds_n_ctx=SUITE_CTX,
            speed=_speed(self.runs, self.n_prompt, self.n_gen),
            options=LoadOptions.from_keywords(**options),
            force=self.force,
        )


_NAMES = (
    "prompt text n_ctx chunks runs n_prompt n_gen base imatrix max_kld complete force progress suite backends client"
).split()


def _speed(runs: int, n_prompt: int, n_gen: int) -> SpeedRuns | None:
    if runs < 0 or n_prompt < 0 or n_gen < 0:
        raise InvalidRequestError(f"runs, n_prompt and n_gen are 0 or more; got {runs}, {n_prompt} and {n_gen}")
    return SpeedRuns(runs, n_prompt, n_gen) if runs and (n_prompt or n_gen) else None


# -- texts ------------------------------------------------------------------------------------------------------------


def _part(text: TextLike) -> TextPart | None:
    """Return the text to evaluate with; None for none."""
    if text is False:
        return None
    if text is None or text is True:
        return TextPart(EVALUATION_NAME, str(EVALUATION))
    return text if isinstance(text, TextPart) else text_part(text)


def _kinds(text: TextLike) -> tuple[TextPart, ...]:
    """Return the texts of the suite, and the user's own where there is one."""
    own = [text if isinstance(text, TextPart) else text_part(text)] if text and text is not True else []
    return tuple(replace(one.text, name=one.kind) for one in with_own(*own))
