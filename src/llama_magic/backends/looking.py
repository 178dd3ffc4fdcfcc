"""Tell which backends and devices a worker has: for the worker only."""

from __future__ import annotations

from llama_magic.backends.known import name_of
from llama_magic.backends.results import BackendsRequest, Device, LoadedBackend, LoadedBackends
from llama_magic.native import WorkerTools, library_info
from llama_magic.native.registry import registered

__all__ = ["run"]


def run(_request: BackendsRequest, _tools: WorkerTools) -> LoadedBackends:
    """Answer a `BackendsRequest`."""
    rows = []
    for backend in registered():
        name = name_of(backend.name)
        devices = tuple(
            Device(row.name, row.type, row.description, name, row.memory_free, row.memory_total)
            for row in backend.devices
        )
        rows.append(LoadedBackend(backend.name, backend.features, devices))
    library = library_info()
    return LoadedBackends(tuple(rows), library.commit, library.ggml_version)
