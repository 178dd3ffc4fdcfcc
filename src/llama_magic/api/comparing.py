"""Measure levels whose files are there: together where memory suffices, and whatever becomes of a worker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llama_magic.api.backends import setup_of
from llama_magic.api.levels import Lineup, levels_folder
from llama_magic.backends.host import available_memory
from llama_magic.backends.setup import BackendSetup
from llama_magic.engine.jobs import run_job
from llama_magic.errors import EngineCrashed, InvalidRequestError, JobInterrupted, LlamaMagicError
from llama_magic.evaluation.board import Board
from llama_magic.evaluation.comparison import Comparison
from llama_magic.evaluation.levels import CompareRequest, LevelUpdate, QuantizationLevel
from llama_magic.evaluation.recommend import MAX_KLD
from llama_magic.locks import file_lock
from llama_magic.models.gguf import read_metadata
from llama_magic.models.memory import estimate
from llama_magic.progress import Progress, Report

__all__ = ["BoardUpdate", "measure"]

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


def measure(
    lineup: Lineup,
    request: CompareRequest,
    *,
    max_kld: float = MAX_KLD,
    setups: Sequence[tuple[str, BackendSetup]] = (),
    progress: Report | None = None,
) -> Comparison:
    """Measure levels whose files are there, on each of some backends.

    Raises
    ------
    InvalidRequestError
        The text or the prompt can not be used.
    JobInterrupted
        The user stopped it; the rows so far are its `result`.
    """
    lineups = [_on(lineup, name) for name, _ in setups] or [lineup]
    members = [level for each in lineups for level in (each.base, *each.levels)]
    board = Board(
        members, lineups[0].base.name, model=lineup.model, prompt=request.prompt,
        seed=None if request.prompt is None else request.params.seed, text=request.text.name if request.text else "",
        n_ctx=request.n_ctx if request.text else 0,
    )  # fmt: skip
    for sentence in lineup.notes:
        board.note(sentence)
    if len(lineups) > 1 and request.text is not None:
        board.note(f"Perplexity and KL divergence were computed on {setups[0][0]}; speed on each of the backends.")
    try:
        with _alone(board):
            for number, each in enumerate(lineups):
                setup = setups[number][1] if setups else setup_of(request.options)
                if number == 0:
                    _Run(board, each, request, progress, setup).all()
                else:
                    _Run(board, each, replace(request, text=None, kinds=()), progress, setup, reference=False).all()
    except KeyboardInterrupt:
        rows = board.comparison(interrupted=True, max_kld=max_kld)
        raise JobInterrupted(rows, "stopped; what was measured is kept in the rows.") from None
    return board.comparison(max_kld=max_kld)


def _on(lineup: Lineup, backend: str) -> Lineup:
    """Return a lineup whose levels are named after the backend, too."""
    base, *levels = (replace(level, name=f"{level.name} · {backend}") for level in (lineup.base, *lineup.levels))
    return replace(lineup, base=base, levels=tuple(levels))


@contextlib.contextmanager
def _alone(board: Board) -> Iterator[None]:
    """Note where another comparison measures at the same time."""
    with file_lock(levels_folder() / ".locks" / "measuring.lock", None) as alone:
        if not alone:
            board.note("Another comparison ran at the same time: speeds are lower than they would have been alone.")
        yield


@dataclass(slots=True)
class _Run:
    """One comparison on its way: which levels still have to be measured, and together with which others."""

    board: Board
    lineup: Lineup
    request: CompareRequest
    progress: Report | None
    setup: BackendSetup | None = None
    reference: bool = True
    base_known: bool = False
    base_error: str = ""

    def all(self) -> None:
        """Measure everything: together where memory suffices, else the reference with one level at a time."""
        self._tell(Progress("compare", 0.0, "starting"))
        levels = [level for level in self.lineup.levels if not level.error]
        if not self.reference:
            levels.insert(0, self.lineup.base)
        if self.request.force or self._need({self.lineup.base, *levels}) <= _SHARE * available_memory():
            self._together(levels)
        else:
            self.board.note(
                "Memory does not suffice for all levels at once: each was measured beside the reference alone, and "
                "speeds were not taken in turns."
            )
            self._one_by_one(levels)
        self._explain()

    def _explain(self) -> None:
        """Say of every level without a divergence that it is the reference that failed, where it did."""
        rows = {row.name: row for row in self.board.rows}
        base = rows[self.lineup.base.name]
        if not (self.reference and base.error and self.request.text is not None):
            return
        for level in self.lineup.levels:
            if rows[level.name].kld is None:
                self.board.set(level.name, kld_reason=f"the reference could not be measured ({base.error})")

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
                continue
            if died[0] == self.lineup.base.name and not self.base_known:
                self._base_failed(died[1])
                died = self._try([level])  # alone
            if died is not None:
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
        with_base = self.reference and not self.base_error
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
            self.board.learn(run_job(request, on_progress, setup=self.setup))
        except EngineCrashed as error:
            return (self.board.running if stage == "load" else ""), error.cause
        except (InvalidRequestError, KeyboardInterrupt):
            raise
        except LlamaMagicError as error:
            return "", str(error)
        return None

    def _need(self, levels: Iterable[QuantizationLevel]) -> int:
        """Return the bytes that levels take in memory together."""
        options = self.request.options.replace(n_ctx=4 * self.request.n_ctx)
        return sum(estimate(read_metadata(level.path), options).total for level in levels)

    def _tell(self, event: Progress, update: LevelUpdate | None = None) -> None:
        if self.progress is not None:
            self.progress(BoardUpdate(event.stage, event.fraction, event.message, board=self.board, update=update))
