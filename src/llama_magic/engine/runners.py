"""What a worker does for each kind of job: long work that it imports only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["RUNNERS", "runner_of"]

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
    "SetUpRequest": "llama_magic.backends.setting_up:run",
    "BackendsRequest": "llama_magic.backends.looking:run",
    "BuildRequest": "llama_magic.backends.building:run",
    "WheelRequest": "llama_magic.backends.wheel:run",
    "RpcServeRequest": "llama_magic.backends.serving:run",
}


def runner_of(request: object) -> Callable[..., Any] | None:
    """Return the function that does a job, None where `request` is no job."""
    place = RUNNERS.get(type(request).__name__)
    if place is None:
        return None
    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
