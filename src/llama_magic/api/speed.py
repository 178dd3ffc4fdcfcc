"""Workers that measure: one for each set of backends, kept to the end and asked for one repetition at a time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llama_magic.backends.host import busy_share
from llama_magic.engine.client import Client, EngineClient
from llama_magic.engine.jobs import job_client
from llama_magic.evaluation.speed_test import (
    CloseLanesRequest,
    LaneFacts,
    OpenLaneRequest,
    SpeedTest,
    TimeLaneRequest,
)
from llama_magic.models.options import ModelSpec
from llama_magic.progress import Report

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Lane", "SpeedWorkers", "busy_note"]

#: Part of the processors that other work may take before figures are doubted.
_BUSY = 0.3


def busy_note() -> str:
    """Return a sentence where the machine is busy with other work, empty where it is quiet."""
    share = busy_share()
    if share < _BUSY:
        return ""
    return (
        f"other work took {100 * share:.0f} % of the processors before it began: figures are those of a busy machine, "
        "and more threads look worse than they are"
    )


@dataclass(frozen=True, slots=True)
class Lane:
    """A test that is ready to be timed: its number, its worker's backends, and what the worker knows of it."""

    number: int
    backend: str | None
    test: SpeedTest
    facts: LaneFacts


class SpeedWorkers:
    """The workers of one measurement. A context manager: they end with it, however it ends."""

    def __init__(self) -> None:
        self._clients: dict[str | None, Client] = {}
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def open(
        self,
        spec: ModelSpec,
        test: SpeedTest,
        *,
        backend: str | None = None,
        as_loaded: str | None = None,
        warmup: bool = True,
        force: bool = False,
        progress: Report | None = None,
    ) -> Lane:
        """Make a test ready: load the model where need be, make its context, warm it up.

        Parameters
        ----------
        backend
            Names of backends, as for `setup_for`; None: those that are selected.
        as_loaded, warmup, force
            See `OpenLaneRequest`.

        Raises
        ------
        OutOfMemoryError
            It does not fit beside the lanes that are open.
        LlamaMagicError
            The model or its options can not be used.
        """
        number = next(self._numbers)
        request: Any = OpenLaneRequest(number, spec, test, as_loaded, warmup, force)
        return Lane(number, backend, test, self._client(backend).request(request, progress))

    def time(self, lane: Lane) -> int:
        """Run a lane's test once; returns nanoseconds."""
        request: Any = TimeLaneRequest(lane.number)
        return int(self._client(lane.backend).request(request))

    def close(self, *lanes: Lane) -> None:
        """Close lanes, all without any; workers stay."""
        for backend, client in self._clients.items():
            numbers = tuple(lane.number for lane in lanes if lane.backend == backend)
            if (numbers or not lanes) and client.alive:
                request: Any = CloseLanesRequest(numbers if lanes else None)
                client.request(request)

    def _client(self, backend: str | None) -> Client:
        client = self._clients.get(backend)
        if client is None:
            client = self._clients[backend] = self._start(backend)
        return client

    @staticmethod
    def _start(backend: str | None) -> Client:
        from llama_magic.api.backends import loaded_backends, refuse, setup_for

        if backend is None:
            return job_client()
        client = job_client(setup_for(backend))
        try:
            loaded_backends(client)  # starts the worker
            refuse(client.problems if isinstance(client, EngineClient) else ())
        except BaseException:
            client.close()
            raise
        return client
