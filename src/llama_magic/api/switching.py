"""Other backends for a session: a fresh worker, and the model that was loaded is loaded on it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llama_magic.api.backends import devices, use_backend
from llama_magic.api.session import Session
from llama_magic.backends.results import Devices
from llama_magic.backends.setup import select, selected
from llama_magic.engine.client import get_client
from llama_magic.engine.protocol import LoadRequest
from llama_magic.models.options import ModelInfo
from llama_magic.progress import Report

__all__ = ["Switched", "reloading", "switch_backend"]


@dataclass(frozen=True, slots=True)
class Switched:
    """What a session runs on now: names of the backends, devices, the model that was loaded again, seconds."""

    names: str
    devices: Devices
    info: ModelInfo | None
    seconds: float


def switch_backend(session: Session, names: str | Iterable[str], progress: Report | None = None) -> Switched:
    """Let a session run on other backends. Conversations keep their text; what the cache held is processed again.

    Raises
    ------
    InvalidRequestError, BackendError
        There is no such backend, or it can not be used; all stays as it was.
    OutOfMemoryError
        The model that is loaded does not fit there; all stays as it was.
    """
    return reloading(session, lambda: use_backend(names), progress)


def reloading(session: Session, change: Callable[[], object], progress: Report | None = None) -> Switched:
    """Make a change to the selected backends, and load again what was loaded; undo it where that fails."""
    started = time.perf_counter()
    before, resident = selected(), _resident(session)
    change()
    try:
        found = devices()
        if resident:
            spec = session.spec()
            info = get_client().request(LoadRequest(spec), progress)
            assert isinstance(info, ModelInfo)
            session.info = info
    except BaseException:
        select(before)
        raise
    return Switched(selected().name, found, session.info if resident else None, time.perf_counter() - started)


def _resident(session: Session) -> bool:
    """Whether the session's model is loaded, and on the selected backends."""
    model = session.model
    return session.info is not None and model is not None and model.options.backend is None and get_client().alive
