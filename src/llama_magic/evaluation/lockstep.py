"""Several models read the same windows of tokens, and each is scored against the base: no logits are ever stored.

A few windows, a turn, are read by one model after the other. What is kept of the base meanwhile is a row of logits for
each token that is scored. While that fits (`plan`), a model has contexts only while it reads, so memory does not grow
with the number of models: making one takes some milliseconds, reading takes seconds. Where windows are so long that it
does not fit, all contexts stay, and the models take turns within a window.

On processors alone, windows are read in lanes: each has a context of each model and a share of the threads, and reads
its windows for itself, with one model after the other. Threads that share one window wait for each other at every
operation of the graph, some hundreds of times.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llama_magic.errors import LlamaMagicError, NativeError
from llama_magic.evaluation.reader import Reader, lanes_for, plan
from llama_magic.evaluation.scoring import BaseRows, NotANumber, Scorer
from llama_magic.evaluation.statistics import TokenScores
from llama_magic.native import Aborted, NativeContext

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Inspect", "LockStep", "Stopped"]

#: Looks at rows of logits that were scored, and at the tokens that follow: reader, logits, tokens.
Inspect = Callable[["Reader", npt.NDArray[np.float32], npt.NDArray[np.int32]], None]

#: Seconds between two looks at whether the user stopped it.
_LOOK_S = 0.05


class Stopped(Exception):  # noqa: N818 - not an error: the user stopped it
    """The user stopped it while a model read."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """One of the lanes of a turn: its number, how many there are, and the windows that it reads, (start, end)."""

    number: int
    count: int
    windows: tuple[int, int]


class LockStep:
    """Lets models read windows in turns; a context manager.

    Parameters
    ----------
    readers
        The models to score.
    base
        The one they are scored against, or None.
    cancelled
        True once the user stopped it.
    tolerant
        A model that fails is left out and says why in `Reader.failure`; otherwise it is an error.
    round_base
        See `Scorer`.
    inspect
        Called with each model's logits once they are scored; they are gone afterwards.

    Attributes
    ----------
    done
        Windows that all have read.
    total
        Windows that there are, of the model that has most.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        base: Reader | None,
        cancelled: Callable[[], bool],
        *,
        tolerant: bool = False,
        round_base: bool = False,
        inspect: Inspect | None = None,
    ) -> None:
        self._inspect = inspect
        self.readers = list(readers)
        self.base = base
        self.done = 0
        everyone = self._everyone = [*([base] if base else []), *self.readers]
        self.total = max(len(reader.windows) for reader in everyone)
        self._cancelled = cancelled
        self._tolerant = tolerant
        n_vocab = max(reader.model.n_vocab for reader in everyone)
        most_side = min(max(1, reader.options.n_batch // reader.windows.n_ctx) for reader in everyone)
        longest = max((reader.windows for reader in everyone), key=len)
        threads = everyone[0].n_threads
        self.plan = plan(
            longest,
            n_vocab=n_vocab,
            models=len(everyone),
            has_base=base is not None,
            most_side=most_side,
            lanes=lanes_for(threads, longest.n_ctx) if inspect is None else 1,  # what looks at rows gets them in order
        )
        lanes = self.plan.lanes
        # all read in the same pieces, so that the rows of a model meet those of the base
        self._ubatch = min(max(reader.n_ubatch, self.plan.side) for reader in everyone)
        self._scorers = [
            {
                size: Scorer(size, max(1, threads // lanes), round_base=round_base)
                for size in {reader.model.n_vocab for reader in everyone}
            }
            for _ in range(lanes)
        ]
        #: Rows of logits that are kept of each window of a turn.
        self._width = self.plan.rows if self.plan.keep else longest.scored
        self._kept = np.empty((self.plan.turn * self._width if base is not None else 0, n_vocab), dtype=np.float32)
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane") if lanes > 1 else None
        self._reading: set[NativeContext] = set()
        self._over = Event()
        self._watch = Thread(target=self._look, name="evaluation-watch", daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watch.join()
        for reader in self._everyone:
            reader.close()
        if self._pool is not None:
            self._pool.shutdown()
        for scorer in itertools.chain(*(scorers.values() for scorers in self._scorers)):
            scorer.close()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            if self._reading and self._cancelled():
                for context in tuple(self._reading):
                    context.abort()

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Let every model read the next windows.

        Raises
        ------
        Stopped
            The user stopped it; nothing of these windows counts.
        NativeError, OutOfMemoryError
            A model failed, or the base.
        """
        end = min(self.done + self.plan.turn, self.total)
        starts = range(self.done, end, self.plan.side)
        lanes = [
            _Lane(number, len(starts), (start, min(start + self.plan.side, end))) for number, start in enumerate(starts)
        ]
        if self._pool is None or len(lanes) == 1:
            found = [self._read_lane(lanes[0])]
        else:
            working = [self._pool.submit(self._read_lane, lane) for lane in lanes]
            errors = [error for error in [work.exception() for work in working] if error is not None]
            if errors:
                raise errors[0]
            found = [work.result() for work in working]
        for place, reader in enumerate(self._everyone):
            if not reader.failure:
                reader.parts += itertools.chain(*(scores[place] for scores in found))
        self.done = end

    def _read_lane(self, lane: _Lane) -> list[list[TokenScores]]:
        """Let one model after the other read the windows of a lane; returns the scores of each, by windows."""
        start, end = lane.windows
        found: list[list[list[TokenScores]]] = [[[] for _ in range(start, end)] for _ in self._everyone]
        for span in self.plan.spans:
            rows: dict[tuple[int, int], BaseRows] = {}
            for reader, windows in zip(self._everyone, found, strict=True):
                if reader.failure or len(reader.windows) <= start:
                    continue
                try:
                    self._read_span(reader, lane, span, rows, windows)
                except LlamaMagicError as error:
                    if reader is self.base or not self._tolerant:
                        raise
                    reader.failure = str(error)
                    reader.close(lane.number)
                if not self.plan.keep:
                    reader.close(lane.number)
        return [[TokenScores.joined(parts) for parts in windows if parts] for windows in found]

    def _read_span(
        self,
        reader: Reader,
        lane: _Lane,
        span: tuple[int, int],
        rows: dict[tuple[int, int], BaseRows],
        found: list[list[TokenScores]],
    ) -> None:
        """Let one model read a span of a lane's windows, and score it against `rows`, or fill them as the base."""
        context = reader.open(self.plan, lane.number, lane.count)
        scorer = self._scorers[lane.number][reader.model.n_vocab]
        first_window, end_window = lane.windows
        end_window = min(end_window, len(reader.windows))
        inputs = reader.windows.inputs(first_window, end_window)
        targets = reader.windows.targets[first_window:end_window]
        start, end = span
        if start == 0:
            context.clear()
        for low, first, high in self._pieces(start, end, reader.windows.first):
            self._decode(context, inputs[:, low:high], low, high - first)
            for window, tokens in enumerate(targets[:, first + 1 : high + 1]):
                if len(tokens):  # nothing follows the last place of a window
                    logits = context.logits_of(window * (high - low) + first - low, len(tokens))
                    place = (first_window + window, first)
                    found[window].append(self._score(reader, scorer, rows, place, logits, tokens, start))

    def _score(
        self,
        reader: Reader,
        scorer: Scorer,
        rows: dict[tuple[int, int], BaseRows],
        place: tuple[int, int],
        logits: npt.NDArray[np.float32],
        following: npt.NDArray[np.int32],
        start: int,
    ) -> TokenScores:
        """Score what one window's tokens have brought; `place` is the window and the first of them."""
        window, first = place
        try:
            if reader is self.base:
                at = (window - self.done) * self._width + first - max(start, reader.windows.first)
                base = rows[place] = scorer.base(logits, following, self._kept[at : at + len(following)])
                scores = TokenScores(base.nll)
            elif self.base is not None:
                scores = scorer.against(rows[place], logits, following)
            else:
                scores = scorer.alone(logits, following)
        except NotANumber:
            raise self._broken(reader, window) from None
        if self._inspect is not None:
            self._inspect(reader, logits, following)
        return scores

    def _pieces(self, start: int, end: int, first: int) -> Iterator[tuple[int, int, int]]:
        """Cut a span into what is decoded at once: (start, first place that is scored, end)."""
        most = max(1, self._ubatch // self.plan.side)
        scored = max(start, min(first, end))
        parts = max(1, -(-(end - scored) // max(1, min(most, self.plan.rows // self.plan.side))))
        edges = [scored + (end - scored) * number // parts for number in range(parts + 1)]
        for low, high in itertools.pairwise(edges):
            while high - start > most:
                after = min(start + most, low)
                yield start, after, after
                start = after
            if high > start:
                yield start, low, high
            start = high

    def _decode(self, context: NativeContext, tokens: npt.NDArray[np.int32], start: int, scored: int) -> None:
        """Decode tokens of windows, shape (windows, tokens), with logits for the last `scored` of each."""
        count, length = tokens.shape
        positions: Any = np.tile(np.arange(start, start + length, dtype=np.int32), count)
        sequences: Any = np.repeat(np.arange(count, dtype=np.int32), length)
        flat: Any = tokens.reshape(-1)
        logits: Any = np.tile(np.arange(length) >= length - scored, count)
        self._reading.add(context)
        try:
            context.step(flat, positions, sequences, logits=logits)
        except Aborted:
            raise Stopped from None
        finally:
            self._reading.discard(context)
        if self._cancelled():
            raise Stopped

    def _broken(self, reader: Reader, window: int) -> NativeError:
        return NativeError(
            f"{reader.name} gives logits that are no numbers (NaN) in chunk {window + 1:,} of {self.total:,}: its file "
            "is damaged, or its numbers leave the range of a type. %llama load with --check-tensors looks for the first"
        )
