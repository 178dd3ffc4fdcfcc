"""Whether a model fits, asked without loading it."""

from __future__ import annotations

import os
from typing import Any

from llama_magic.api.backends import setup_of
from llama_magic.api.locate import locate
from llama_magic.backends.setup import selected
from llama_magic.engine.client import client_for, get_client
from llama_magic.engine.jobs import run_job
from llama_magic.engine.protocol import StatusRequest
from llama_magic.models.fit import FitReport, FitRequest
from llama_magic.models.gguf import read_metadata
from llama_magic.models.options import LoadOptions
from llama_magic.progress import Report

__all__ = ["fit", "fit_options", "worker_memory"]

#: Bytes of memory read a second, by threads: measured once per process.
_measured: dict[int | None, float] = {}


def fit(ref: str | os.PathLike[str], *, progress: Report | None = None, **options: Any) -> FitReport:
    """Tell what a model would take on each device, whether that fits, and what would, without loading it.

    llama.cpp lays out the model and its context itself, in a worker of its own. Of a model on the Hub that is not in
    the cache, only the header is fetched.

    Parameters
    ----------
    ref
        A file, ``owner/repo[:quant]`` on the Hub, or ``smollm2``.
    progress
        Called meanwhile.
    **options
        Fields of `LoadOptions`: ``n_ctx``, ``cache_type_k``, ``n_gpu_layers`` and so on.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, DownloadError
    TypeError
        An option is unknown; the nearest one is named.
    """
    return fit_options(os.fspath(ref), LoadOptions.from_keywords(**options), progress)


def fit_options(ref: str, options: LoadOptions, progress: Report | None = None, *, whole: bool = False) -> FitReport:
    """Do the same for options that are there; `whole` takes the context the model was trained for."""
    from llama_magic.models.remote import inspect_hub
    from llama_magic.models.resolve import hub_of

    reference = hub_of(ref)
    metadata = read_metadata(locate(ref, progress)) if reference is None else inspect_hub(reference, progress)
    if whole and metadata.n_ctx_train:
        options = options.replace(n_ctx=metadata.n_ctx_train)
    local = os.path.isfile(metadata.path)  # noqa: PTH113 - the path of a file on the Hub is none
    client = get_client()
    held = client.request(StatusRequest()) if client.alive else ()
    request = FitRequest(
        ref, metadata.path, options, metadata, local, sum(info.memory for info in held),
        _measured.get(options.n_threads),
    )  # fmt: skip
    setup = setup_of(options)
    if (setup or selected()).rpc and client_for(setup).alive:
        job: Any = request  # an RPC host serves one process at a time, and this one has it
        report: FitReport = client_for(setup).request(job, progress)
    else:
        report = run_job(request, progress, setup=setup)
    _measured[options.n_threads] = report.bandwidth
    return report


def worker_memory() -> int:
    """Return the bytes that the worker holds now: its own pages and mapped files, shared ones by their share.

    0 where no worker runs.
    """
    import psutil

    pid = get_client().pid
    if pid is None:
        return 0
    try:
        full = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(full, "pss", 0) or full.rss)
