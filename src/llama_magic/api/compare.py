"""Quantization levels of a model side by side: size, memory, speed, quality, answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from llama_magic.api.levels import Lineup, levels_folder, line_up
from llama_magic.api.texts import text_part
from llama_magic.backends.host import available_memory
from llama_magic.engine.jobs import run_job
from llama_magic.errors import EngineCrashed, InvalidRequestError, JobInterrupted, LlamaMagicError
from llama_magic.evaluation.board import Board
from llama_magic.evaluation.comparison import Comparison
from llama_magic.evaluation.levels import CompareRequest, LevelUpdate, QuantizationLevel, SpeedRuns
from llama_magic.evaluation.recommend import MAX_KLD
from llama_magic.evaluation.requests import EVALUATION, EVALUATION_NAME
from llama_magic.inference.params import SamplingParams
from llama_magic.models.gguf import read_metadata
from llama_magic.models.memory import estimate
from llama_magic.models.options import LoadOptions
from llama_magic.progress import Progress, Report
from llama_magic.quantization.texts import TextPart
from llama_magic.suggest import reject_unknown

__all__ = ["DEFAULT_LEVELS", "BoardUpdate", "TextLike", "compare", "measure"]

#: What is compared where nothing is named: from close to the reference to small.
DEFAULT_LEVELS = ("Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K")
#: A text: itself, or a file as a `Path`. False: none.
TextLike: TypeAlias = str | os.PathLike[str] | TextPart | bool | None
#: Part of the free memory that all levels together may take; the rest is for what is computed.
_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class BoardUpdate(Progress):
    """Progress of a comparison, with all that is known so far.

    Attributes
    ----------
    board
        The levels as they are now.
    update
        What is new; None where it is nothing about a level.
    """

    board: Board | None = None
    update: LevelUpdate | None = None


def compare(
    ref: str | os.PathLike[str],
    ftypes: Sequence[str] | str = DEFAULT_LEVELS,
    *,
    prompt: str | None = None,
    text: TextLike = None,
    n_ctx: int = 512,
    chunks: int | None = None,
    runs: int = 3,
    n_prompt: int = 512,
    n_gen: int = 128,
    base: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
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
        Tokens of a chunk, and most chunks of the text that are read; None: all.
    runs, n_prompt, n_gen
        Timed runs of each level, tokens read and tokens generated in each. No runs: speed is not measured.
    base
        The reference: a type, a file, or a reference on the Hub. None: the model itself where its weights are not
        quantized, else F16 made of it.
    imatrix
        Importance matrix for all types that are made; "auto" makes one. None: one is made for the types that need it.
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
    request = _request(
        prompt=prompt, text=text, n_ctx=n_ctx, chunks=chunks, speed=_speed(runs, n_prompt, n_gen), complete=complete,
        system=system, force=force, options=options,
    )  # fmt: skip
    lineup = line_up(ref, words, base=None if base is None else os.fspath(base), imatrix=imatrix, progress=progress)
    return measure(lineup, request, max_kld=max_kld, progress=progress)


def _request(*, options: dict[str, Any], text: TextLike, **known: Any) -> CompareRequest:
    """Check the settings, and split the free keywords into those of loading and of sampling."""
    loading = {field.name for field in fields(LoadOptions)} - {"n_ctx"}
    sampling = {field.name for field in fields(SamplingParams)} - {"samples", "logprobs"}
    reject_unknown(options, sorted({*loading, *sampling, *_NAMES}), "option")
    if known["n_ctx"] < 16:
        raise InvalidRequestError(f"a chunk has at least 16 tokens; got {known['n_ctx']}")
    if known["chunks"] is not None and known["chunks"] < 1:
        raise InvalidRequestError(f"chunks is a number of 1 or more, or None for all; got {known['chunks']}")
    if known["prompt"] is not None and not known["prompt"].strip():
        raise InvalidRequestError("the prompt is empty; leave it out to compare without answers")
    load = LoadOptions.from_keywords(**{name: value for name, value in options.items() if name in loading})
    defaults = SamplingParams(temperature=0.0, max_tokens=64, seed=1)
    params = SamplingParams.from_keywords(
        defaults, **{name: value for name, value in options.items() if name in sampling}
    )
    if params.seed is None:
        params = params.replace(seed=1)
    return CompareRequest(levels=(), text=_part(text), params=params, options=load, **known)


_NAMES = (
    "prompt text n_ctx chunks runs n_prompt n_gen base imatrix max_kld complete force progress suite backends client"
).split()


def _speed(runs: int, n_prompt: int, n_gen: int) -> SpeedRuns | None:
    if runs < 0 or n_prompt < 0 or n_gen < 0:
        raise InvalidRequestError(f"runs, n_prompt and n_gen are 0 or more; got {runs}, {n_prompt} and {n_gen}")
    return SpeedRuns(runs, n_prompt, n_gen) if runs and (n_prompt or n_gen) else None


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(
    lineup: Lineup,
    request: CompareRequest,
    *,
    max_kld: float = MAX_KLD,
    progress: Report | None = None,
) -> Comparison:
    """Measure levels whose files are there.

    Raises
    ------
    InvalidRequestError
        The text or the prompt can not be used.
    JobInterrupted
        The user stopped it; the rows so far are its `result`.
    """
    board = Board(
        (lineup.base, *lineup.levels), lineup.base.name, model=lineup.model, prompt=request.prompt,
        seed=None if request.prompt is None else request.params.seed, text=request.text.name if request.text else "",
        n_ctx=request.n_ctx if request.text else 0,
    )  # fmt: skip
    for sentence in lineup.notes:
        board.note(sentence)
    run = _Run(board, lineup, request, progress)
    try:
        with _alone(board):
            run.all()
    except KeyboardInterrupt:
        rows = board.comparison(interrupted=True, max_kld=max_kld)
        raise JobInterrupted(rows, "stopped; what was measured is kept in the rows.") from None
    return board.comparison(max_kld=max_kld)


@contextlib.contextmanager
def _alone(board: Board) -> Iterator[None]:
    """Note where another comparison measures at the same time."""
    from filelock import FileLock, Timeout

    folder = levels_folder() / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / "measuring.lock"))
        lock.acquire(timeout=0)
    except Timeout:
        board.note("Another comparison ran at the same time: speeds are lower than they would have been alone.")
        yield
        return
    except (NotImplementedError, OSError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


@dataclass(slots=True)
class _Run:
    """One comparison on its way: which levels still have to be measured, and together with which others."""

    board: Board
    lineup: Lineup
    request: CompareRequest
    progress: Report | None
    base_known: bool = False
    base_error: str = ""

    def all(self) -> None:
        """Measure everything: together where memory suffices, else the reference with one level at a time."""
        self._tell(Progress("compare", 0.0, "starting"))
        levels = [level for level in self.lineup.levels if not level.error]
        if self.request.force or self._need((self.lineup.base, *levels)) <= _SHARE * available_memory():
            self._together(levels)
        else:
            self.board.note(
                "Memory does not suffice for all levels at once: each was measured beside the reference alone, and "
                "speeds were not taken in turns."
            )
            self._one_by_one(levels)

    def _together(self, levels: list[QuantizationLevel]) -> None:
        """Measure all in one worker; where that dies, without the level it died of, or one by one."""
        while True:
            loading = self._try(levels)
            if loading is None:
                return
            guilty = next((level for level in levels if level.name == loading[0]), None)
            if guilty is None:
                break
            self.board.set(guilty.name, error=loading[1])
            levels = [level for level in levels if level is not guilty]
            self._again(levels)
        if not levels:
            self._base_failed(loading[1])
            return
        self.board.note(
            f"The worker with all levels died ({loading[1]}), so each was measured beside the reference alone."
        )
        self._again(levels)
        self._one_by_one(levels)

    def _again(self, levels: Sequence[QuantizationLevel]) -> None:
        for level in (self.lineup.base, *levels):
            self.board.forget_answer(level.name)

    def _one_by_one(self, levels: Sequence[QuantizationLevel]) -> None:
        for level in levels:
            died = self._try([level])
            if died is None:
                self.base_known = True
            elif died[0] == self.lineup.base.name and not self.base_known:
                self._base_failed(died[1])
            else:
                self.board.set(level.name, error=died[1])
        if not levels:
            died = self._try([])
            if died is not None:
                self._base_failed(died[1])

    def _base_failed(self, reason: str) -> None:
        self.base_error = reason
        self.board.set(self.lineup.base.name, error=reason)

    def _try(self, levels: Sequence[QuantizationLevel]) -> tuple[str, str] | None:
        """Run a worker; where it dies, return the level that was being loaded (empty if none was), and the reason."""
        with_base = not self.base_error
        members = (self.lineup.base, *levels) if with_base else tuple(levels)
        if not members:
            return None
        request = replace(self.request, levels=members, has_base=with_base, base_known=self.base_known)
        stage = ""

        def on_progress(event: Progress) -> None:
            nonlocal stage
            stage = event.stage
            if isinstance(event, LevelUpdate):
                self.board.apply(event)
                self._tell(event, event)
            else:
                self._tell(event)

        try:
            self.board.learn(run_job(request, on_progress))
        except EngineCrashed as error:
            return (self.board.running if stage == "load" else ""), error.cause
        except InvalidRequestError:
            raise
        except LlamaMagicError as error:
            return "", str(error)
        return None

    def _need(self, levels: Sequence[QuantizationLevel]) -> int:
        """Return the bytes that levels take in memory together."""
        options = self.request.options.replace(n_ctx=4 * self.request.n_ctx)
        return sum(estimate(read_metadata(level.path), options).total for level in levels)

    def _tell(self, event: Progress, update: LevelUpdate | None = None) -> None:
        if self.progress is not None:
            self.progress(BoardUpdate(event.stage, event.fraction, event.message, board=self.board, update=update))


# -- texts ------------------------------------------------------------------------------------------------------------


def _part(text: TextLike) -> TextPart | None:
    """Return the text to evaluate with; None for none."""
    if text is False:
        return None
    if text is None or text is True:
        return TextPart(EVALUATION_NAME, str(EVALUATION))
    return text if isinstance(text, TextPart) else text_part(text)
