"""What a worker needs that does nothing but jobs: it starts in half the time of one that can load models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_magic.engine.flag import Flag
from llama_magic.engine.protocol import Event, Log, Request
from llama_magic.engine.runners import runner_of
from llama_magic.errors import EngineProtocolError
from llama_magic.native.log import LogCapture
from llama_magic.native.tools import WorkerTools

__all__ = ["JobEngine"]


class JobEngine:
    """Answers jobs, one at a time; `cancel` may be called from any thread meanwhile.

    Parameters
    ----------
    emit
        Called with every event of the job, but not with its end.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._cancel = Flag()
        self._log = LogCapture(lambda level, text: self._emit(Log(level, text)))
        self._log.install()

    def answer(self, request: Request) -> Any:
        """Return the result of a job."""
        job = runner_of(request)
        if job is None:
            raise EngineProtocolError(f"{type(request).__name__} is no job")
        return job(request, WorkerTools(self._emit, self._cancel.is_set, self._log))

    def cancel(self) -> None:
        """Tell the job to stop."""
        self._cancel.set()

    def ready(self) -> None:
        """Forget an earlier cancel; to be called before each job."""
        self._cancel.clear()
