"""Work of the panel, off the main thread: progress, Stop, and errors in words."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llama_magic.engine.stopping import Stopper, asking_as, stopping
from llama_magic.errors import GenerationInterrupted, LlamaMagicError
from llama_magic.progress import Progress

__all__ = ["Job", "Runner"]

#: Seconds between two reports of a job's progress.
_GAP_S = 0.1


@dataclass(slots=True)
class Job:
    """One piece of work.

    Attributes
    ----------
    lane
        The place in the panel it belongs to: a lane does one thing at a time.
    title
        What a person reads while it runs.
    owner
        The panel it was started from.
    state
        "running", "stopping", "done", "stopped" or "failed".
    fraction, message
        How far it is.
    error, detail
        What went wrong, in words; the traceback where it is a bug.
    """

    lane: str
    title: str
    owner: str = ""
    state: str = "running"
    fraction: float | None = None
    message: str = ""
    error: str = ""
    detail: str = ""
    started: float = field(default_factory=time.time)
    ended: float = 0.0
    stopper: Stopper = field(default_factory=Stopper)

    @property
    def active(self) -> bool:
        """True until it is over."""
        return self.state in ("running", "stopping")

    def to_dict(self) -> dict[str, Any]:
        """Return what a view shows."""
        return {
            "title": self.title, "state": self.state, "fraction": self.fraction, "message": self.message,
            "error": self.error, "detail": self.detail, "started": self.started, "ended": self.ended,
        }  # fmt: skip


class Runner:
    """Runs jobs, each on a thread of its own.

    Parameters
    ----------
    post
        Runs a function on the thread that owns the panel's state.
    changed
        Called there with a job whenever something about it changed.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None], changed: Callable[[Job], None]) -> None:
        self._post = post
        self._changed = changed
        self.jobs: dict[str, Job] = {}

    def busy(self, lane: str) -> bool:
        """Tell whether a lane is doing something."""
        job = self.jobs.get(lane)
        return job is not None and job.active

    def start(
        self,
        lane: str,
        title: str,
        work: Callable[[Job, Callable[[Progress], None]], Any],
        done: Callable[[Any], None] = lambda _value: None,
        *,
        owner: str = "",
        ended: Callable[[Job], None] = lambda _job: None,
    ) -> Job | None:
        """Start a job; None where its lane is busy.

        Parameters
        ----------
        work
            Does it, on a thread of its own; gets the job and a function that reports progress.
        done, ended
            Called on the state's thread with what `work` returned, and with the job however it ended.
        """
        if self.busy(lane):
            return None
        job = self.jobs[lane] = Job(lane, title, owner)
        self._changed(job)
        thread = threading.Thread(
            target=self._run, args=(job, work, done, ended), name=f"llama-magic-{lane}", daemon=True
        )
        thread.start()
        return job

    def stop(self, lane: str) -> bool:
        """Stop what a lane is doing; False where it does nothing."""
        job = self.jobs.get(lane)
        if job is None or not job.active:
            return False
        job.state = "stopping"
        self._changed(job)
        job.stopper.stop()
        return True

    def stop_of(self, owner: str) -> None:
        """Stop all that was started from one panel."""
        for lane, job in list(self.jobs.items()):
            if job.owner == owner and job.active:
                self.stop(lane)

    def hand_over(self, owner: str, heir: str) -> None:
        """Let another panel go on with what was started from one."""
        for job in self.jobs.values():
            if job.owner == owner:
                job.owner = heir

    def _run(
        self,
        job: Job,
        work: Callable[[Job, Callable[[Progress], None]], Any],
        done: Callable[[Any], None],
        ended: Callable[[Job], None],
    ) -> None:
        value: Any = None
        state, error, detail = "done", "", ""
        try:
            with stopping(job.stopper), asking_as("the panel"):
                value = work(job, self._reporter(job))
        except GenerationInterrupted as stopped:
            state, error = "stopped", str(stopped) if stopped.result is not None else ""
        except KeyboardInterrupt:
            state = "stopped"
        except LlamaMagicError as exc:
            state, error = "failed", str(exc)
        except Exception as exc:  # noqa: BLE001 - a bug: it is told where it happened, the kernel goes on
            state, error = "failed", f"This is a bug in llama_magic: {type(exc).__name__}: {exc}"
            detail = traceback.format_exc()

        def end() -> None:
            job.state, job.error, job.detail, job.ended = state, error, detail, time.time()
            job.fraction = None
            if state == "done":
                done(value)
            ended(job)
            self._changed(job)

        self._post(end)

    def _reporter(self, job: Job) -> Callable[[Progress], None]:
        last = 0.0

        def report(progress: Progress) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _GAP_S and (progress.fraction or 0.0) < 1.0 and progress.stage != "wait":
                return
            last = now

            def note() -> None:
                if job.active:
                    job.fraction = progress.fraction
                    job.message = progress.message or progress.stage
                    self._changed(job)

            self._post(note)

        return report
