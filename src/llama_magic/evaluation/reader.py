"""A model that reads windows of tokens, and the plan of how all of them do (evaluation/lockstep.py)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from llama_magic.backends.host import default_threads
from llama_magic.evaluation.statistics import TokenScores
from llama_magic.evaluation.windows import Windows
from llama_magic.models.loading import context_settings
from llama_magic.models.options import LoadOptions
from llama_magic.native import NativeContext, NativeModel, list_devices
from llama_magic.native.adapter import NativeAdapter

__all__ = ["Plan", "Reader", "lanes_for", "plan"]

#: Bytes for logits, at a vocabulary of up to `_VOCABULARY`; larger ones get as many more.
_BUDGET, _VOCABULARY = 310 << 20, 49152
#: Rows of logits that a model gives at once, where memory allows, windows that it reads side by side, and its lanes.
#: They leave 64 tokens or more of a window for each call: with fewer, ggml's flash attention on processors adds up in
#: 16 bits (ggml-cpu/ops.cpp, `ggml_fa_tile_config::Q`), which is slower and less exact.
_MOST_ROWS, _MOST_SIDE, _MOST_LANES = 256, 4, 2
#: Tokens of a window that are enough for a lane: the matrices of shorter ones are too small to be computed well.
_LANE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """How windows are read.

    Attributes
    ----------
    side
        Windows that a context reads at once.
    rows
        Most rows of logits that a context gives at once.
    spans
        Places of a window, (start, end), that one model reads before the next goes on.
    keep
        Contexts stay open from one span to the next.
    lanes
        How many contexts read at the same time.
    """

    side: int
    rows: int
    spans: tuple[tuple[int, int], ...]
    keep: bool
    lanes: int = 1

    @property
    def turn(self) -> int:
        """Windows that a model reads before the next goes on."""
        return self.lanes * self.side


def plan(
    windows: Windows, *, n_vocab: int, models: int, has_base: bool, most_side: int = _MOST_SIDE, lanes: int = 1
) -> Plan:
    """Choose how to read, so that logits take no more memory than `_BUDGET` says."""
    rows = int(_BUDGET * max(1.0, n_vocab / _VOCABULARY)) // (4 * n_vocab)  # all rows that fit
    kept = windows.scored if has_base else 0
    whole = ((0, windows.n_ctx),)
    # a context has its rows twice: where they are computed, and where they are taken from
    for count in range(min(lanes, len(windows)), 1, -1):
        each = _MOST_ROWS // count
        if count * (kept + 2 * min(each, windows.scored)) <= rows:
            return Plan(1, each, whole, keep=False, lanes=count)
    for side in range(min(most_side, len(windows)), 0, -1):
        if side * kept + 2 * min(_MOST_ROWS, side * windows.scored) <= rows:
            return Plan(side, _MOST_ROWS, whole, keep=False)
    share = max(16, rows // (2 * models + 1))
    edges = [0, *range(windows.first + share, windows.n_ctx - 1, share), windows.n_ctx]
    return Plan(1, share, tuple(itertools.pairwise(edges)), keep=True)


def lanes_for(threads: int, n_ctx: int) -> int:
    """Return into how many lanes to part the threads, so that as few as can be are left over."""
    if n_ctx < _LANE_TOKENS or any(device.type != "cpu" for device in list_devices()):
        return 1
    return max(range(1, _MOST_LANES + 1), key=lambda lanes: (threads // lanes * lanes, lanes))


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
    _contexts: dict[int, NativeContext] = field(default_factory=dict)

    @property
    def n_threads(self) -> int:
        """Threads that it may use."""
        return self.options.n_threads_batch or self.options.n_threads or default_threads()

    @property
    def n_ubatch(self) -> int:
        """Most tokens that it computes at once."""
        return min(self.options.n_ubatch, self.options.n_batch)

    def open(self, plan: Plan, lane: int = 0, lanes: int = 1) -> NativeContext:
        """Make the context of a lane, which gets its share of the threads, or return the one that is there."""
        context = self._contexts.get(lane)
        if context is None:
            threads = max(1, self.n_threads // lanes)
            size = max(self.n_ubatch, plan.side)
            settings = replace(
                context_settings(self.options, self.windows.n_ctx * plan.side, threads, n_seq_max=plan.side),
                n_batch=size,
                n_ubatch=size,
                n_threads_batch=threads,
                separate=True,
                n_outputs_max=min(size, max(plan.rows, plan.side)),
            )
            context = self._contexts[lane] = NativeContext(self.model, settings)
            if self.adapters:
                context.use_adapters(self.adapters)
        return context

    def close(self, lane: int | None = None) -> None:
        """Free the context of a lane, or all; the model stays."""
        for number in [lane] if lane is not None else list(self._contexts):
            context = self._contexts.pop(number, None)
            if context is not None:
                context.close()
