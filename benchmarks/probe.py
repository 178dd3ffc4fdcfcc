"""Clocks around decoding and sampling, in the worker or in any process that uses llama_cpp.

`llama_decode` itself is wrapped, in the low-level module that llama_magic and llama-cpp-python both
call. Sampling is `llama_sampler_sample` there, and `Sampler.sample` in the worker, which takes the peak
of the logits itself when nothing else is asked for. Everything else that happens for a token (filling
the batch, counting, text, sending) is outside and counts as overhead, and so do the clocks: some microseconds,
since the weights of the model have just passed through the processor's caches.

``python -m benchmarks.probe`` is the worker of llama_magic with these clocks; its figures come back as
the last note of each completion.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.runner import ROOT
from llama_magic.engine.client import EngineClient
from llama_magic.engine.process import WorkerProcess
from llama_magic.inference.results import Completion

__all__ = ["Clocks", "probed_workers", "reading"]


class Clocks:
    """Seconds inside decoding and sampling since the first token was sampled.

    What the clocks cost is outside of what they measure and counts as overhead of whoever is measured, so they are as
    light as Python allows: one function around each call, and no attributes.
    """

    def __init__(self) -> None:
        #: Return when the first token was there (`time.perf_counter`) and the seconds inside since.
        self.read: Callable[[], dict[str, float]] = lambda: {"first": 0.0, "inside_s": 0.0}
        #: Wait for the first token of the next generation.
        self.restart: Callable[[], None] = lambda: None

    def install(self, lib: Any, sampler: Any, name: str) -> None:
        """Wrap `llama_decode` of llama_cpp's low-level module, and the function `name` of `sampler`."""
        inside = first = 0.0
        clock, decode, sample = time.perf_counter, lib.llama_decode, getattr(sampler, name)

        def timed_decode(context: Any, batch: Any) -> Any:
            nonlocal inside
            start = clock()
            code = decode(context, batch)
            inside += clock() - start
            return code

        def timed_sample(owner: Any, context: Any, index: Any) -> Any:
            nonlocal inside, first
            start = clock()
            token = sample(owner, context, index)
            end = clock()
            if first:
                inside += end - start
            else:
                inside, first = 0.0, end
            return token

        def restart() -> None:
            nonlocal first
            first = 0.0

        lib.llama_decode = timed_decode
        setattr(sampler, name, timed_sample)
        self.read = lambda: {"first": first, "inside_s": inside}
        self.restart = restart


class _ProbedWorker(WorkerProcess):
    def _spawn(
        self, arguments: list[str], *, pass_fds: tuple[int, ...] = (), stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.probe", *arguments],
            cwd=ROOT,
            env=self._environment,
            stdin=stdin,
            stdout=self._output,
            stderr=self._output,
            pass_fds=pass_fds,
            start_new_session=True,
        )


def probed_workers() -> Callable[[], None]:
    """Let clients start workers with clocks from now on; returns what undoes it."""
    place: Any = EngineClient
    before = place.start_worker
    place.start_worker = staticmethod(_ProbedWorker)

    def undo() -> None:
        place.start_worker = staticmethod(before)

    return undo


def reading(completion: Completion) -> dict[str, float]:
    """Return the figures that a worker with clocks sent along."""
    values: dict[str, float] = ast.literal_eval(completion.notes[-1])
    return values


def _main() -> None:
    from llama_magic.inference.loop import Generation
    from llama_magic.native.library import lib
    from llama_magic.native.sampler import Sampler
    from llama_magic.worker import main

    clocks = Clocks()
    clocks.install(lib, Sampler, "sample")
    run = Generation.run

    def timed_run(self: Generation, *arguments: Any) -> Completion:
        clocks.restart()
        completion = run(self, *arguments)
        # As lightly as that goes: this is between the first token and the end, too.
        object.__setattr__(completion, "notes", (*completion.notes, repr(clocks.read())))
        return completion

    Generation.run = timed_run  # type: ignore[method-assign, assignment]
    main()


if __name__ == "__main__":
    _main()
