"""Hardware backends: which there are, which workers get, and the devices that come with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama_magic.api.watching import Record
from llama_magic.backends.known import find_backend, parse_backends
from llama_magic.backends.modules import Library, Module, compiled_in, find_modules, installed_library
from llama_magic.backends.results import Backends, BackendsRequest, Devices, LoadedBackends
from llama_magic.backends.rpc_hosts import attached_hosts
from llama_magic.backends.setup import BackendSetup, Problem, select, selected
from llama_magic.backends.states import states
from llama_magic.engine.client import Client, EngineClient, client_for, get_client
from llama_magic.engine.jobs import run_job
from llama_magic.errors import BackendError, MissingDependencyError
from llama_magic.inference.results import Completion
from llama_magic.models.options import LoadOptions

__all__ = [
    "backends",
    "client_of",
    "devices",
    "left_out",
    "library",
    "loaded_backends",
    "noting",
    "refuse",
    "rpc_of",
    "setup_for",
    "setup_of",
    "use_backend",
]


def library() -> Library:
    """Return which llama.cpp is installed; a worker is asked once."""

    def ask() -> Library:
        found: LoadedBackends = run_job(BackendsRequest(), setup=BackendSetup())
        return Library(found.commit, found.ggml_version)

    found = installed_library(ask)
    if found is None:
        raise MissingDependencyError("llama-cpp-python is not installed here: pip install llama-cpp-python")
    return found


def setup_for(names: str | Iterable[str] | None) -> BackendSetup:
    """Return the setup of a worker that has these backends, and the CPU's.

    Parameters
    ----------
    names
        Names separated by commas, or several; "default" or None for what is compiled in.

    Raises
    ------
    InvalidRequestError
        There is no such backend.
    BackendError
        It is not built yet, or damaged.
    """
    chosen = None if names is None else parse_backends(names)
    if chosen is None:
        return BackendSetup(name="default")
    inside = compiled_in()
    wanted = [name for name in chosen if name not in inside]
    built = find_modules(library()) if wanted else {}
    paths = [_module(name, built.get(name)).path for name in wanted]
    kept = tuple(find_backend(name).ggml for name in inside if name in chosen)
    return BackendSetup(
        modules=tuple(paths),
        rpc=attached_hosts() if "rpc" in chosen else (),
        keep=None if len(kept) == len(inside) else kept,
        name=",".join(chosen) or "cpu",
    )


def _module(name: str, module: Module | None) -> Module:
    if module is None:
        raise BackendError(f"the backend {name} is not built here yet: %llama build {name}; %llama backends tells more")
    if module.problem:
        raise BackendError(f"the backend {name} can not be used: {module.problem}. %llama build {name} makes it anew")
    return module


def setup_of(options: LoadOptions) -> BackendSetup | None:
    """Return the setup that load options ask for; None where they leave it to what is selected."""
    return None if options.backend is None else setup_for(options.backend)


def client_of(options: LoadOptions) -> Client:
    """Return the client whose worker has the backends that load options ask for."""
    return client_for(setup_of(options))


def use_backend(names: str | Iterable[str]) -> Devices:
    """Select the backends that everything runs on from now on where nothing else is said, and return their devices.

    The worker ends, and a fresh one starts with them. Models are loaded again when they are next used.

    Parameters
    ----------
    names
        "cpu", "blas", "vulkan", or several: ``"vulkan,rpc"``. "default" is what is compiled into llama-cpp-python.

    Raises
    ------
    InvalidRequestError
        There is no such backend.
    BackendError
        It is not built yet, or can not be loaded; what was selected before stays.
    """
    before = selected()
    select(setup_for(names))
    try:
        found = devices()
        refuse(found.problems)
    except BaseException:
        select(before)
        raise
    return found


def refuse(problems: Iterable[Problem]) -> None:
    """Raise `BackendError` where a module could not be loaded; hosts that do not answer are told elsewhere."""
    failed = [problem for problem in problems if Path(problem.what).is_absolute()]
    if failed:
        raise BackendError("; ".join(f"{Path(row.what).name} can not be used: {row.reason}" for row in failed))


def left_out(client: Client) -> tuple[str, ...]:
    """Return in words what the worker of a client had to leave out."""
    problems = client.problems if isinstance(client, EngineClient) else ()
    return tuple(f"without {Path(row.what).name}: {row.reason}" for row in problems)


def rpc_of(client: Client) -> tuple[str, ...]:
    """Return the RPC hosts that a client's worker uses."""
    return client.setup.rpc if isinstance(client, EngineClient) else ()


def noting(client: Client, record: Record) -> Record:
    """Return a function that records an answer and adds, once, what the client's worker had to leave out."""
    told = left_out(client)

    def finish(completion: Completion) -> tuple[str, ...]:
        now = left_out(client)
        return (*record(completion), *(now if now != told else ()))

    return finish


def loaded_backends(client: Client | None = None) -> LoadedBackends:
    """Return what the worker of a client has; None: the session's."""
    request: Any = BackendsRequest()
    found: LoadedBackends = (client or get_client()).request(request)
    return found


def devices() -> Devices:
    """Return the devices that models can run on with the selected backends.

    Returns
    -------
    Devices
        A sequence of `Device`: name, type, free and total memory in bytes.
    """
    client = get_client()
    found = loaded_backends(client)
    return Devices(found.devices, client.problems if isinstance(client, EngineClient) else ())


def backends() -> Backends:
    """Return every backend that this llama.cpp knows: active, built, buildable here, or what is missing.

    Returns
    -------
    Backends
        A sequence of `Backend`, which can also be indexed by name.
    """
    client = get_client()
    loaded = loaded_backends(client)
    problems = client.problems if isinstance(client, EngineClient) else ()
    built = find_modules(Library(loaded.commit, loaded.ggml_version))
    given = client.setup.modules if isinstance(client, EngineClient) else ()
    rows = states(loaded, built, compiled_in(), problems, in_use=given)
    return Backends(rows, problems, loaded.commit, loaded.ggml_version)
