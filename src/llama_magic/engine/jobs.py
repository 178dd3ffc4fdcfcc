"""Long work in a worker of its own: cancel ends it, and what was half written goes.

A job is a frozen dataclass that names its work in `RUNNERS`. The worker imports the function and
calls it with the request and `WorkerTools`; what it returns is the result.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_magic.backends.setup import STOCK, BackendSetup, selected
from llama_magic.engine.spare import end_job, take_spare
from llama_magic.errors import GenerationInterrupted, JobInterrupted
from llama_magic.progress import Report

if TYPE_CHECKING:  # a worker reads this module, too, and needs no client
    from llama_magic.engine.client import Client

__all__ = ["RUNNERS", "job_client", "run_job", "runner_of", "set_job_client"]

#: The function that does each kind of job, by the name of the request's class. It is imported in the worker only.
RUNNERS: dict[str, str] = {
    "PlanRequest": "llama_magic.quantization.plan:run",
    "QuantizeRequest": "llama_magic.quantization.quantizing:run",
    "MicroscopeRequest": "llama_magic.quantization.looking:run",
    "TensorErrorsRequest": "llama_magic.quantization.comparing:run",
    "ImatrixRequest": "llama_magic.quantization.collecting:run",
    "DivergeRequest": "llama_magic.evaluation.diverging:run",
    "EvaluateRequest": "llama_magic.evaluation.evaluating:run",
    "CheckRequest": "llama_magic.quantization.converting:check",
    "ConvertRequest": "llama_magic.quantization.converting:run",
    "FitRequest": "llama_magic.engine.fitting:run",
    "OpenLaneRequest": "llama_magic.engine.measuring:open_lane",
    "TimeLaneRequest": "llama_magic.engine.measuring:time_lane",
    "CloseLanesRequest": "llama_magic.engine.measuring:close_lanes",
    "CompareRequest": "llama_magic.evaluation.comparing:run",
    "DownloadRequest": "llama_magic.models.download:run",
    "SearchRequest": "llama_magic.models.catalogue:run",
    "HubRequest": "llama_magic.backends.hub_probe:run",
    "WarmUpRequest": "llama_magic.engine.job_engine:warm_up",
    "SetUpRequest": "llama_magic.backends.setting_up:run",
    "BackendsRequest": "llama_magic.backends.looking:run",
    "BuildRequest": "llama_magic.backends.building:run",
    "WheelRequest": "llama_magic.backends.wheel:run",
    "RpcServeRequest": "llama_magic.backends.serving:run",
}

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


def runner_of(request: object) -> Callable[..., Any] | None:
    """Return the function that does a job, None where `request` is no job."""
    place = RUNNERS.get(type(request).__name__)
    if place is None:
        return None
    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def job_client(setup: BackendSetup | None = None) -> Client:
    """Return a client with a worker of its own, for jobs that are several requests. Close it."""
    if _make_client is not None:
        return _make_client()
    from llama_magic.engine.client import EngineClient, release_hosts

    chosen = selected() if setup is None else setup
    if chosen.rpc:
        release_hosts(chosen)
    return (take_spare() if chosen.is_stock else None) or EngineClient(chosen)


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
