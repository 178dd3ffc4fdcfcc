"""Several models read the same windows of tokens, and each is scored against the base: no logits are ever stored.

A few windows are read by one model after the other. What is kept of the base meanwhile is a row of logits for each
token that is scored. While that fits (`plan`), a model has a context only while it reads, so memory does not grow with
the number of models: making one takes some milliseconds, reading takes seconds. Where windows are so long that it does
not fit, all contexts stay, and the models take turns within a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llama_magic.backends.host import default_threads
from llama_magic.errors import LlamaMagicError, NativeError
from llama_magic.evaluation.scoring import BaseRows, NotANumber, Scorer
from llama_magic.evaluation.statistics import TokenScores
from llama_magic.evaluation.windows import Windows
from llama_magic.models.loading import context_settings
from llama_magic.models.options import LoadOptions
from llama_magic.native import Aborted, NativeContext, NativeModel
from llama_magic.native.adapter import NativeAdapter

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Inspect", "LockStep", "Plan", "Reader", "Stopped", "plan"]

#: Looks at rows of logits that were scored, and at the tokens that follow: reader, logits, tokens.
Inspect = Callable[["Reader", npt.NDArray[np.float32], npt.NDArray[np.int32]], None]

#: Bytes for logits, at a vocabulary of up to `_VOCABULARY`; larger ones get as many more.
_BUDGET, _VOCABULARY = 310 << 20, 49152
#: Rows of logits that a model gives at once, where memory allows, and windows that it reads side by side.
_MOST_ROWS, _MOST_SIDE = 256, 4
#: Seconds between two looks at whether the user stopped it.
_LOOK_S = 0.05


class Stopped(Exception):  # noqa: N818 - not an error: the user stopped it
    """The user stopped it while a model read."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How windows are read.

    Attributes
    ----------
    side
        Windows that a model reads at once.
    rows
        Most rows of logits that it gives at once.
    spans
        Places of a window, (start, end), that one model reads before the next goes on.
    keep
        Contexts stay open from one span to the next.
    """

    side: int
    rows: int
    spans: tuple[tuple[int, int], ...]
    keep: bool


def plan(windows: Windows, *, n_vocab: int, models: int, has_base: bool, most_side: int = _MOST_SIDE) -> Plan:
    """Choose how to read, so that logits take no more memory than `_BUDGET` says."""
    rows = int(_BUDGET * max(1.0, n_vocab / _VOCABULARY)) // (4 * n_vocab)  # all rows that fit
    kept = windows.scored if has_base else 0
    for side in range(min(most_side, len(windows)), 0, -1):
        # a context has the rows twice: where they are computed, and where they are taken from
        if side * kept + 2 * min(_MOST_ROWS, side * windows.scored) <= rows:
            return Plan(side, _MOST_ROWS, ((0, windows.n_ctx),), keep=False)
    share = max(16, rows // (2 * models + 1))
    edges = [0, *range(windows.first + share, windows.n_ctx - 1, share), windows.n_ctx]
    return Plan(1, share, tuple(itertools.pairwise(edges)), keep=True)


@dataclass(slots=True)
class Reader:
    """A model that reads, its windows, and what came of them.

    Attributes
    ----------
    name
        For messages.
    model, options
        The model, and the options of its contexts.
    windows
        What it reads.
    parts
        Scores of each window so far.
    failure
        Why it takes part no more; empty while it does.
    """

    name: str
    model: NativeModel
    options: LoadOptions
    windows: Windows
    parts: list[TokenScores] = field(default_factory=list)
    failure: str = ""
    adapters: list[tuple[NativeAdapter, float]] = field(default_factory=list)
    _context: NativeContext | None = None

    @property
    def context(self) -> NativeContext:
        """The context, which `open` made."""
        assert self._context is not None
        return self._context

    def open(self, plan: Plan) -> NativeContext:
        """Make the context, or return the one that is there."""
        if self._context is None:
            threads = self.options.n_threads_batch or self.options.n_threads or default_threads()
            n_ubatch = max(min(self.options.n_ubatch, self.options.n_batch), plan.side)
            size = max(n_ubatch, plan.side)
            settings = replace(
                context_settings(self.options, self.windows.n_ctx * plan.side, threads, n_seq_max=plan.side),
                n_batch=size,
                n_ubatch=size,
                n_threads_batch=threads,
                separate=True,
                n_outputs_max=min(size, max(plan.rows, plan.side)),
            )
            self._context = NativeContext(self.model, settings)
            if self.adapters:
                self._context.use_adapters(self.adapters)
        return self._context

    def close(self) -> None:
        """Free the context; the model stays."""
        if self._context is not None:
            self._context.close()
            self._context = None


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
        everyone = [*([base] if base else []), *self.readers]
        self.total = max(len(reader.windows) for reader in everyone)
        self._cancelled = cancelled
        self._tolerant = tolerant
        n_vocab = max(reader.model.n_vocab for reader in everyone)
        most_side = min(max(1, reader.options.n_batch // reader.windows.n_ctx) for reader in everyone)
        longest = max((reader.windows for reader in everyone), key=len)
        self.plan = plan(longest, n_vocab=n_vocab, models=len(everyone), has_base=base is not None, most_side=most_side)
        options = everyone[0].options
        threads = options.n_threads_batch or options.n_threads or default_threads()
        self._scorers = {
            size: Scorer(size, threads, round_base=round_base) for size in {r.model.n_vocab for r in everyone}
        }
        rows = self.plan.side * longest.scored if not self.plan.keep else self.plan.rows
        self._kept = np.empty((rows if base is not None else 0, n_vocab), dtype=np.float32)
        self._reading: NativeContext | None = None
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
        for reader in [*self.readers, *([self.base] if self.base else [])]:
            reader.close()
        for scorer in self._scorers.values():
            scorer.close()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            context = self._reading
            if context is not None and self._cancelled():
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
        end = min(self.done + self.plan.side, self.total)
        found: dict[int, list[list[TokenScores]]] = {}
        for span in self.plan.spans:
            rows: dict[tuple[int, int], BaseRows] = {}
            if self.base is not None:
                self._take(self.base, end, span, rows, found.setdefault(-1, self._empty(end)))
            for place, reader in enumerate(self.readers):
                if not reader.failure and len(reader.windows) > self.done:
                    self._guarded(reader, end, span, rows, found.setdefault(place, self._empty(end)))
        for place, windows in found.items():
            one = self.readers[place] if place >= 0 else self.base
            if one is not None and not one.failure:
                one.parts += [TokenScores.joined(parts) for parts in windows if parts]
        self.done = end

    def _empty(self, end: int) -> list[list[TokenScores]]:
        return [[] for _ in range(self.done, end)]

    def _guarded(self, reader: Reader, *arguments: Any) -> None:
        try:
            self._take(reader, *arguments)
        except LlamaMagicError as error:
            if not self._tolerant:
                raise
            reader.failure = str(error)
            reader.close()

    def _take(
        self,
        reader: Reader,
        end: int,
        span: tuple[int, int],
        rows: dict[tuple[int, int], BaseRows],
        found: list[list[TokenScores]],
    ) -> None:
        """Let one model read a span of the windows, and score it."""
        windows = reader.windows
        stop = min(end, len(windows))
        targets, inputs = windows.targets[self.done : stop], windows.inputs(self.done, stop)
        scorer = self._scorers[reader.model.n_vocab]
        used = 0
        for start, finish, scored in self._pieces(reader, span, stop - self.done):
            self._decode(reader, inputs[:, start:finish], start, scored=scored)
            if not scored:
                continue
            length = finish - start
            for window, tokens in enumerate(targets):
                following = tokens[start + 1 : finish + 1]  # the last place of a window has none
                if not len(following):
                    continue
                logits = reader.context.logits_of(window * length, len(following))
                try:
                    if reader is self.base:
                        kept = self._kept[used : used + len(following)]
                        used += len(following)
                        rows[window, start] = scorer.base(logits, following, kept)
                        scores = TokenScores(rows[window, start].nll)
                    elif self.base is not None:
                        scores = scorer.against(rows[window, start], logits, following)
                    else:
                        scores = scorer.alone(logits, following)
                except NotANumber:
                    raise self._broken(reader, self.done + window) from None
                found[window].append(scores)
                if self._inspect is not None:
                    self._inspect(reader, logits, following)
        if not self.plan.keep:
            reader.close()

    def _pieces(self, reader: Reader, span: tuple[int, int], count: int) -> Iterator[tuple[int, int, bool]]:
        """Cut a span into what is decoded at once: (start, end, whether it is scored)."""
        start, end = span
        context = reader.open(self.plan)
        if start == 0:
            context.clear()
        first = reader.windows.first
        for low, high, scored in ((start, min(end, first), False), (max(start, first), end, True)):
            most = max(1, min(context.n_ubatch, self.plan.rows if scored else context.n_ubatch) // count)
            parts = -(-(high - low) // most)
            edges = [low + (high - low) * number // parts for number in range(parts + 1)] if high > low else []
            yield from ((a, b, scored) for a, b in itertools.pairwise(edges))

    def _decode(self, reader: Reader, tokens: npt.NDArray[np.int32], start: int, *, scored: bool) -> None:
        count, length = tokens.shape
        positions: Any = np.tile(np.arange(start, start + length, dtype=np.int32), count)
        sequences: Any = np.repeat(np.arange(count, dtype=np.int32), length)
        flat: Any = tokens.reshape(-1)
        self._reading = reader.context
        try:
            reader.context.step(flat, positions, sequences, logits=scored)
        except Aborted:
            raise Stopped from None
        finally:
            self._reading = None
        if self._cancelled():
            raise Stopped

    def _broken(self, reader: Reader, window: int) -> NativeError:
        return NativeError(
            f"{reader.name} gives logits that are no numbers (NaN) in chunk {window + 1:,} of {self.total:,}: its file "
            "is damaged, or its numbers leave the range of a type. %llama load with --check-tensors looks for the first"
        )
