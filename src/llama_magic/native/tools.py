"""What a worker hands to work that takes long: where progress goes, whether to stop, the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llama_magic.native.log import LogCapture
from llama_magic.progress import Report

__all__ = ["WorkerTools"]


@dataclass(frozen=True, slots=True)
class WorkerTools:
    """Given to every job.

    Attributes
    ----------
    report
        Takes each `Progress`.
    cancelled
        True once the user stopped the job; ask it often, raise `JobInterrupted` or return what there is.
    log
        llama.cpp's log.
    """

    report: Report
    cancelled: Callable[[], bool]
    log: LogCapture
