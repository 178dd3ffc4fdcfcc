"""Set a worker's backends up: for the worker only."""

from __future__ import annotations

from llama_magic.backends.reasons import explain
from llama_magic.backends.rpc_check import check_host
from llama_magic.backends.rpc_watch import watch
from llama_magic.backends.setup import Problem, SetUpRequest
from llama_magic.errors import LlamaMagicError
from llama_magic.native import WorkerTools
from llama_magic.native.registry import add_rpc_host, load_module, registered, unregister

__all__ = ["run"]


def run(request: SetUpRequest, tools: WorkerTools) -> tuple[Problem, ...]:
    """Answer a `SetUpRequest`: what can not be loaded is left out and told."""
    setup, problems = request.setup, []
    if setup.keep is not None:
        kept = {"CPU", *setup.keep}
        for backend in registered():
            if backend.name not in kept:
                unregister(backend.name)
    for path in setup.modules:
        try:
            if load_module(path, tools.log) == "CPU":
                unregister("CPU")  # the one that is compiled in: it came first
        except LlamaMagicError as exc:
            problems.append(Problem(path, explain(str(exc))))
    for endpoint in setup.rpc:
        try:
            check_host(endpoint)
            add_rpc_host(endpoint)
        except LlamaMagicError as exc:
            problems.append(Problem(endpoint, str(exc)))
    if setup.rpc:
        watch(setup.rpc)
    return tuple(problems)
