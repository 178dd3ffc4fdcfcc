"""Several models read the same windows of tokens, and each is scored against the base: no logits are ever stored.

A few windows, a turn, are read by one model after the other. What is kept of the base meanwhile is a row of logits for
each token that is scored. While that fits (`plan`), a model has contexts only while it reads, so memory does not grow
with the number of models: making one takes some milliseconds, reading takes seconds. Where windows are so long that it
does not fit, all contexts stay, and the models take turns within a window.

On processors alone, windows are read in lanes: each has a context of each model and a share of the threads, and reads
its windows for itself, with one model after the other. Threads that share one window wait for each other at every
operation of the graph, some hundreds of times. At the end, a lane that is done takes models from one that is not.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition, Event, Thread
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


@dataclass(slots=True)
class _Unit:
    """Windows that a context reads at once, and what becomes of them; places are those of the models.

    Attributes
    ----------
    windows
        The first, and the end.
    slot
        Where the base's rows of them are kept.
    waiting
        Models that have not begun.
    left
        How many have not finished.
    ready
        The base's rows are there, where there is a base.
    rows
        These rows, by window and first token.
    found
        Scores of each model, of each window.
    """

    windows: tuple[int, int]
    slot: int
    waiting: list[int]
    left: int
    ready: bool
    rows: dict[tuple[int, int], BaseRows]
    found: list[list[list[TokenScores]]]


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
        #: Windows that are read in lanes, from the first.
        self._in_lanes = self.total - self.total % self.plan.turn if lanes > 1 else 0
        self._begun = False
        self._next = 0
        self._units: deque[_Unit] = deque()  # those under way, in order
        self._error: BaseException | None = None
        self._changed = Condition()
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
        with self._changed:
            self._changed.notify_all()
        for context in tuple(self._reading):
            context.abort()
        if self._pool is not None:
            self._pool.shutdown()
        for reader in self._everyone:
            reader.close()
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
            The user stopped it; windows that not all have read do not count.
        NativeError, OutOfMemoryError
            A model failed, or the base.
        """
        if self.done >= self._in_lanes:  # what would leave lanes empty has all threads for each window
            unit = self._new_unit(0, self.total)
            assert unit is not None
            for span in self.plan.spans:
                unit.rows.clear()
                for place in range(len(self._everyone)):
                    self._read_one(unit, place, 0, span)
            unit.left = 0
        elif self._pool is not None and not self._begun:
            self._begun = True
            for lane in range(self.plan.lanes):
                self._pool.submit(self._work, lane)
        with self._changed:
            self._changed.wait_for(lambda: self._error or (self._units and self._units[0].left == 0))
            while self._units and self._units[0].left == 0:
                self._finish(self._units.popleft())
            if self._error is not None:
                raise self._error

    def _new_unit(self, slot: int, end: int) -> _Unit | None:
        """Return the windows that come next, None where there are none before `end`."""
        if self._next >= end:
            return None
        start, self._next = self._next, min(self._next + self.plan.side, end)
        models = range(len(self._everyone))
        found: list[list[list[TokenScores]]] = [[[] for _ in range(start, self._next)] for _ in models]
        unit = _Unit((start, self._next), slot, list(models), len(models), self.base is None, {}, found)
        self._units.append(unit)
        return unit

    def _finish(self, unit: _Unit) -> None:
        for reader, windows in zip(self._everyone, unit.found, strict=True):
            if not reader.failure:
                reader.parts += [TokenScores.joined(parts) for parts in windows if parts]
        self.done = unit.windows[1]

    # -- lanes -----------------------------------------------------------------------------------------------------

    def _work(self, lane: int) -> None:
        """Read what is to be read, until nothing is left; on a thread of its own."""
        own: _Unit | None = None
        try:
            while True:
                with self._changed:
                    unit = self._claim(own, lane)
                    if unit is None:
                        return
                    if unit.slot == lane:
                        own = unit
                        place = unit.waiting.pop(0)
                    else:
                        place = unit.waiting.pop()
                self._read_one(unit, place, lane, self.plan.spans[0])
                with self._changed:
                    unit.left -= 1
                    unit.ready = True  # the base is the first that reads
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _claim(self, own: _Unit | None, lane: int) -> _Unit | None:
        """Return whose models a lane reads with next: its own windows', new ones', at the end those of another lane.

        Cores are not equally fast, and so neither are lanes.
        """
        while not (self._error or self._over.is_set()):
            if own is not None and own.waiting:
                return own
            if (unit := self._new_unit(lane, self._in_lanes)) is not None:
                return unit
            others = [unit for unit in self._units if unit.waiting]
            if not others:
                return None
            if ready := [unit for unit in others if unit.ready]:
                return ready[0]
            self._changed.wait()
        return None

    def _read_one(self, unit: _Unit, place: int, lane: int, span: tuple[int, int]) -> None:
        """Let one model read a span of some windows; one that fails is left out where that is allowed."""
        reader = self._everyone[place]
        if reader.failure or len(reader.windows) <= unit.windows[0]:
            return
        try:
            self._read_span(unit, place, lane, span)
        except LlamaMagicError as error:
            if reader is self.base or not self._tolerant:
                raise
            reader.failure = str(error)
            reader.close(lane)
        if not self.plan.keep:
            reader.close(lane)

    def _read_span(self, unit: _Unit, place: int, lane: int, span: tuple[int, int]) -> None:
        """Let one model read, and score it against the base's rows, or fill these."""
        reader = self._everyone[place]
        context = reader.open(self.plan, lane, self.plan.lanes if unit.windows[0] < self._in_lanes else 1)
        scorer = self._scorers[lane][reader.model.n_vocab]
        first_window, end_window = unit.windows[0], min(unit.windows[1], len(reader.windows))
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
                    at = unit.slot * self.plan.side + window, first - max(start, reader.windows.first)
                    scores = self._score(reader, scorer, unit.rows, (first_window + window, first), at, logits, tokens)
                    unit.found[place][window].append(scores)

    def _score(
        self,
        reader: Reader,
        scorer: Scorer,
        rows: dict[tuple[int, int], BaseRows],
        place: tuple[int, int],
        at: tuple[int, int],
        logits: npt.NDArray[np.float32],
        following: npt.NDArray[np.int32],
    ) -> TokenScores:
        """Score what tokens brought: `place` is their window and the first of them, `at` where a base's rows go."""
        try:
            if reader is self.base:
                low = at[0] * self._width + at[1]
                base = rows[place] = scorer.base(logits, following, self._kept[low : low + len(following)])
                scores = TokenScores(base.nll)
            elif self.base is not None:
                scores = scorer.against(rows[place], logits, following)
            else:
                scores = scorer.alone(logits, following)
        except NotANumber:
            raise self._broken(reader, place[0]) from None
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
            if self._over.is_set():
                raise Stopped
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
