"""One timed repetition of a test, by llama-bench's method: for the worker only.

As in llama.cpp's ``tools/llama-bench/llama-bench.cpp``: tokens are drawn at random, a text's first one is the token
that begins a text where the vocabulary adds one; a prompt goes in batches of `n_batch`; generating is one token a
decode, waited for before the next. Nothing is tokenized or sampled, and tokens in the cache before are not timed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from llama_magic.evaluation.speed_test import SpeedTest
from llama_magic.models.loading import context_settings
from llama_magic.models.options import LoadOptions
from llama_magic.native import ContextSettings, NativeContext, NativeModel, check
from llama_magic.native.threadpool import ThreadPool

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SpeedLane", "bench_settings"]


def bench_settings(options: LoadOptions, test: SpeedTest, threads: int) -> ContextSettings:
    """Return the context that llama-bench makes for a test; `threads` where the options name none.

    It holds what the test needs and no more, has one number of threads for all, and keeps of layers with a window
    only the window.
    """
    settings = context_settings(options, test.n_ctx, threads)
    return replace(settings, n_threads_batch=settings.n_threads, swa_full=False)


class SpeedLane:
    """A model, a context and a test: `repeat` runs it once and returns the nanoseconds. A context manager.

    Parameters
    ----------
    model
        The model; it is not closed.
    test
        What to run.
    settings
        The context; `bench_settings` makes llama-bench's.
    threadpool
        Attach a pool of threads, as llama-bench does.
    seed
        Seed of the tokens.

    Raises
    ------
    OutOfMemoryError
        There is no room for the context.
    """

    def __init__(
        self,
        model: NativeModel,
        test: SpeedTest,
        settings: ContextSettings,
        *,
        threadpool: bool = True,
        seed: int = 1,
    ) -> None:
        self.test = test
        self.settings = settings
        self.context = NativeContext(model, settings)
        self._model = model
        self._pool = ThreadPool(self.context, settings.n_threads) if threadpool else None
        self._random = np.random.default_rng(seed)
        self._state: memoryview | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context."""
        self.context.close()
        if self._pool is not None:
            self._pool.close()

    def warm_up(self) -> int:
        """Run the prompt once and generate one token, as llama-bench does; returns the nanoseconds."""
        self.context.clear()
        start = time.perf_counter_ns()
        if self.test.n_prompt:
            self._prompt(self.test.n_prompt, 0)
        if self.test.n_gen:
            self._generate(1)
        return time.perf_counter_ns() - start

    def repeat(self) -> int:
        """Run the test once, from an empty cache or behind its depth; returns the nanoseconds.

        Raises
        ------
        Aborted
            `context.abort` was called meanwhile.
        NativeError, OutOfMemoryError
        """
        test = self.test
        self.context.clear()
        if test.n_depth:
            self._fill()
        start = time.perf_counter_ns()
        if test.n_prompt:
            self._prompt(test.n_prompt, test.n_depth)
        if test.n_gen:
            self._generate(test.n_gen)
        return time.perf_counter_ns() - start

    def _fill(self) -> None:
        """Put the depth into the cache: processed once, and then taken from a copy of the cache's state."""
        if self._state is not None and self.context.put_state(0, self._state):
            return
        self._prompt(self.test.n_depth, 0)
        self._state = self.context.state(0)

    def _draw(self, count: int) -> list[int]:
        tokens: list[int] = self._random.integers(0, self._model.n_vocab, count).tolist()
        return tokens

    def _prompt(self, count: int, start: int) -> None:
        context, batch = self.context, self.context.n_batch
        tokens = self._draw(count)
        if self._model.add_bos:
            tokens[0] = self._model.bos
        for done in range(0, count, batch):
            piece = tokens[done : done + batch]
            context.prefill(piece, start + done, 0, logits=True)
        context.synchronize()

    def _generate(self, count: int) -> None:
        context = self.context
        decode, handle, batch, token = context.single(0)
        tokens = self._draw(count)
        if self._model.add_bos:
            tokens[0] = self._model.bos
        for drawn in tokens:
            token.value = drawn
            code = decode(handle, batch)
            if code:
                check(code)
            context.synchronize()
