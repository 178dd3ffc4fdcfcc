"""Long work in a worker of its own: cancel ends it, and what was half written goes.

A job is a frozen dataclass whose work `engine/runners.py` names. The worker imports the function and
calls it with the request and `WorkerTools`; what it returns is the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_magic.backends.setup import STOCK, BackendSetup, selected
from llama_magic.engine.spare import end_job
from llama_magic.errors import GenerationInterrupted, JobInterrupted
from llama_magic.progress import Report

if TYPE_CHECKING:  # a worker reads this module, too, and needs no client
    from llama_magic.engine.client import Client

__all__ = ["job_client", "run_job", "set_job_client"]

#: Jobs that compute nothing with a model: they get no backends beside those compiled in.
_PLAIN = {
    "BuildRequest", "CheckRequest", "ConvertRequest", "DownloadRequest", "MicroscopeRequest", "PlanRequest",
    "QuantizeRequest", "SearchRequest", "TensorErrorsRequest", "WheelRequest",
}  # fmt: skip

_make_client: Callable[[], Client] | None = None


def set_job_client(make: Callable[[], Client] | None) -> None:
    """Let jobs run on clients that `make` returns; None: workers again. For tests."""
    global _make_client  # noqa: PLW0603 - the one seam that tests need
    _make_client = make


def job_client(setup: BackendSetup | None = None) -> Client:
    """Return a client with a worker of its own, for jobs that are several requests. Close it."""
    if _make_client is not None:
        return _make_client()
    from llama_magic.engine.client import EngineClient, release_hosts

    chosen = selected() if setup is None else setup
    if chosen.rpc:
        release_hosts(chosen)
    return EngineClient(chosen)


def run_job(
    request: Any,
    progress: Report | None = None,
    *,
    partial: Iterable[str | Path] = (),
    setup: BackendSetup | None = None,
) -> Any:
    """Run a job in a fresh worker, wait for it, and return its result.

    Parameters
    ----------
    request
        A request whose class is in `RUNNERS`.
    progress
        Called with every `Progress`.
    partial
        Files that are there only until the job is done: removed in any case, also when the worker was killed.
    setup
        The backends that it runs on. None: those that are selected, where it computes with a model.

    Raises
    ------
    JobInterrupted
        The user stopped it; what the job returned all the same is its `result`.
    EngineCrashed
        The worker died.
    """
    if setup is None:
        setup = STOCK if type(request).__name__ in _PLAIN else selected()
    client = job_client(setup)
    done = False
    try:
        result = client.request(request, progress)
        done = True
    except GenerationInterrupted as stopped:
        raise JobInterrupted(stopped.result) from None
    finally:
        end_job(client, wait=not done)
        for path in partial:
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)
    return result
