"""A sign of life from the Hugging Face Hub: for a worker, which can be ended at any moment."""

from __future__ import annotations

import time

from llama_magic.backends.doctor_software import HubProbe, HubRequest
from llama_magic.models.hub import endpoint
from llama_magic.native import WorkerTools

__all__ = ["run"]


def run(request: HubRequest, _tools: WorkerTools) -> HubProbe:
    """Ask the Hub, as huggingface_hub would: its endpoint, its proxies; one small question."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    place, token = endpoint(), bool(get_token())
    if constants.HF_HUB_OFFLINE:
        return HubProbe(place, offline=True, token=token)
    started = time.perf_counter()
    try:
        answer = get_session().head(f"{place}/api/models?limit=1", timeout=request.timeout_s, follow_redirects=False)
    except Exception as exc:  # noqa: BLE001 - whatever the network gives is what is to be told
        words = str(exc).partition("\n")[0] or type(exc).__name__
        return HubProbe(place, time.perf_counter() - started, token=token, error=words)
    return HubProbe(place, time.perf_counter() - started, int(answer.status_code), token=token)
