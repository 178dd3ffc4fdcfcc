"""Building backends: prerequisites first, then a module that is probed before it is installed, or a whole wheel."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from llama_magic.api.backends import library, loaded_backends, setup_for
from llama_magic.backends.built import BuildResult, WheelResult
from llama_magic.backends.cpu_variants import best_variant
from llama_magic.backends.known import KnownBackend, driver_of, find_backend
from llama_magic.backends.modules import (
    MANIFEST,
    Library,
    Module,
    compiled_in,
    find_modules,
    module_folder,
    remove_modules,
)
from llama_magic.backends.prerequisites import check_all, missing, vulkan_headers
from llama_magic.backends.recipes import BuildRequest, StagedModule, parse_defines
from llama_magic.backends.results import Device
from llama_magic.backends.setup import BackendSetup, select, selected
from llama_magic.backends.wheel_request import WheelRequest
from llama_magic.engine.client import EngineClient, live_clients
from llama_magic.engine.jobs import run_job
from llama_magic.engine.spare import drop_spare
from llama_magic.errors import BackendError, BuildError, DiskFullError, InvalidRequestError, LlamaMagicError
from llama_magic.models.places import data_folder
from llama_magic.progress import Progress, Report
from llama_magic.units import format_bytes

__all__ = ["build_backend", "build_wheel", "check_prerequisites"]

#: Bytes that a build takes while it runs.
_ROOM = {"cuda": 6 << 30, "hip": 6 << 30, "sycl": 3 << 30, "vulkan": 600 << 20}
_ROOM_ELSE = 150 << 20
_WHEEL_ROOM = 1 << 30
_LOGS_KEPT = 12


def build_backend(
    name: str | Iterable[str],
    *,
    defines: Iterable[str] = (),
    jobs: int | None = None,
    debug: bool = False,
    progress: Report | None = None,
) -> BuildResult:
    """Build backends as loadable modules, for exactly the llama.cpp that is installed.

    Its source comes through pip and is kept. What is built is loaded into a throw-away worker first, and
    installed only if that works; then it is there as a whole or not at all.

    Parameters
    ----------
    name
        A backend, or several: "blas", "vulkan", "cuda", "hip", "metal", "opencl", "sycl", "rpc".
    defines
        Further definitions for CMake: ``["GGML_CUDA_FA=OFF"]``.
    jobs
        Compilers at once. None: as many as processors and memory allow.
    debug
        Build with assertions and debugging symbols.
    progress
        Called with every `Progress`.

    Raises
    ------
    BackendError
        Something that the build needs is missing; the message names it and the command that installs it.
    BuildError
        It failed: with the end of the log, and where all of it is.
    DiskFullError, DownloadError
    JobInterrupted
        The user stopped it; nothing half-done is left.
    """
    backends = _backends(name)
    definitions = parse_defines([defines] if isinstance(defines, str) else list(defines))
    if jobs is not None and jobs < 1:
        raise InvalidRequestError(f"jobs is a number of 1 or more, or None; got {jobs}")
    for backend in backends:
        check_prerequisites(backend, definitions)
    target = library()
    folder = module_folder(target)
    _room(folder, sum(_ROOM.get(backend.name, _ROOM_ELSE) for backend in backends))
    log = _log_file("-".join(backend.name for backend in backends))
    staging = folder / f".build-{os.getpid()}-{secrets.token_hex(4)}"
    started = time.monotonic()
    try:
        _sweep(folder)
        staging.mkdir(parents=True)
        request = BuildRequest(
            tuple(backend.name for backend in backends), str(staging), str(log), definitions, jobs, debug
        )
        staged: tuple[StagedModule, ...] = run_job(request, progress)
        devices = [_probe(module, log, progress) for module in staged]
        modules = tuple(_install(module, target, log) for module in staged)
    except OSError as exc:
        if isinstance(exc, LlamaMagicError):
            raise
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"the disk of {folder} is full; nothing of the build was installed") from exc
        raise BuildError(f"the build can not be kept in {folder}: {exc.strerror or exc}", str(log)) from exc
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if set(selected().name.split(",")) & {module.name for module in modules}:
        select(setup_for(selected().name))  # a fresh worker takes the new file
    return BuildResult(modules, tuple(row for rows in devices for row in rows), time.monotonic() - started, str(log))


def _backends(name: str | Iterable[str]) -> list[KnownBackend]:
    words = [part for word in ([name] if isinstance(name, str) else name) for part in word.split(",") if part.strip()]
    if not words:
        raise InvalidRequestError("name a backend to build: blas, rpc, vulkan, cuda, …; %llama backends lists them all")
    if "cpu" in {word.strip().lower() for word in words}:
        raise InvalidRequestError(
            "the CPU's code is compiled in. For this very processor: %llama build cpu-variants makes a module in its "
            "place, %llama build --wheel cpu compiles llama-cpp-python anew"
        )
    return list(dict.fromkeys(find_backend(word) for word in words))


def check_prerequisites(backend: KnownBackend, defines: Sequence[str] = ()) -> None:
    """Raise `BackendError` where a backend can not be built here: what is missing, and the command that helps."""
    if backend.systems and sys.platform not in backend.systems:
        raise BackendError(f"{backend.title} can not be built on this system: {backend.hint}")
    if backend.name == "cpu-variants":
        best_variant()  # says where there is none
    if backend.name in compiled_in():
        raise BackendError(
            f"{backend.title} is compiled into this llama-cpp-python: %llama backend {backend.name} takes it"
        )
    given = {define.partition("=")[0].partition(":")[0]: define.partition("=")[2] for define in defines}
    rows = list(check_all(backend))
    if "Vulkan_INCLUDE_DIR" in given:
        headers = vulkan_headers([Path(given["Vulkan_INCLUDE_DIR"]).expanduser()])
        if headers is not None and headers[1]:
            rows = [row for row in rows if row.key != "vulkan-headers"]
    if given.keys() & {"BLAS_INCLUDE_DIRS", "BLAS_LIBRARIES", "GGML_BLAS_VENDOR"}:
        rows = [row for row in rows if row.key != "openblas"]
    what, fix = missing(rows)
    if what:
        raise BackendError(
            f"{backend.title} can not be built here yet: {what}. {f'What helps: {fix}' if fix else ''}".strip()
        )


def _room(folder: Path, need: int) -> None:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise DiskFullError(
            f"a build takes up to {format_bytes(need)}, but {format_bytes(free)} are free in {place}; free some space, "
            "or let LLAMA_MAGIC_HOME name another disk"
        )


def _log_file(name: str) -> Path:
    folder = data_folder() / "backends" / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[: -_LOGS_KEPT + 1]:
            old.unlink(missing_ok=True)
    except OSError as exc:
        raise BuildError(f"{folder} can not be written to: {exc.strerror}") from exc
    return folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.log"


def _sweep(folder: Path) -> None:
    """Remove what builds of processes left that are gone."""
    for old in folder.glob(".build-*"):
        number = old.name.split("-")[1]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(old, ignore_errors=True)


def _probe(module: StagedModule, log: Path, progress: Report | None) -> tuple[Device, ...]:
    """Load a module into a throw-away worker."""
    backend = find_backend(module.name)
    if progress is not None:
        progress(Progress("build", 1.0, f"{backend.title}: loading it into a worker to see whether it works"))
    client = EngineClient(BackendSetup(modules=(module.path,), name=module.name))
    try:
        found = loaded_backends(client)
        if client.problems:
            raise BuildError(
                f"{backend.title} was built and can not be loaded: {client.problems[0].reason}. It was not installed",
                str(log),
            )
    finally:
        client.close()
    return tuple(device for device in found.devices if device.backend == driver_of(backend.name))


def _install(staged: StagedModule, target: Library, log: Path) -> Module:
    """Give a module its final place, with one rename."""
    source = Path(staged.path)
    content = source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    folder = module_folder(target) / f"{staged.name}-{digest[:12]}"
    module = Module(
        staged.name,
        str(folder / source.name),
        len(content),
        digest,
        target.commit,
        target.ggml_version,
        staged.options,
        staged.seconds,
        str(log),
    )
    part = source.parent / f"{staged.name}-install"
    part.mkdir()
    shutil.move(source, part / source.name)
    manifest = {name: value for name, value in module.to_dict().items() if name != "problem"}
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    remove_modules(staged.name, target, keep=folder)
    return find_modules(target)[staged.name]


def build_wheel(
    name: str | Iterable[str],
    *,
    defines: Iterable[str] = (),
    progress: Report | None = None,
) -> WheelResult:
    """Build llama-cpp-python anew with backends inside, and install it in place of the one that is there.

    The wheel is built first, and installed only when that has worked. The worker picks it up at its next start,
    which is the next request: the kernel goes on as it is.

    Parameters
    ----------
    name
        A backend, or several; "cpu" for none.
    defines
        Further definitions for CMake.
    progress
        Called with every `Progress`.

    Raises
    ------
    BackendError, BuildError, DiskFullError
    JobInterrupted
        The user stopped it; the old one is still installed.
    """
    words = [part for word in ([name] if isinstance(name, str) else name) for part in word.split(",") if part.strip()]
    backends = [backend for backend in dict.fromkeys(map(find_backend, words)) if backend.name != "cpu"]
    definitions = parse_defines([defines] if isinstance(defines, str) else list(defines))
    inside = compiled_in()
    for backend in backends:
        if backend.name not in inside:
            check_prerequisites(backend, definitions)
    _room(data_folder(), _WHEEL_ROOM + sum(_ROOM.get(backend.name, _ROOM_ELSE) for backend in backends))
    names = tuple(backend.name for backend in backends) or ("cpu",)
    log = _log_file("wheel-" + "-".join(names))
    started = time.monotonic()
    version: str = run_job(WheelRequest(names, str(log), definitions), progress)
    for client in live_clients():  # the next request starts a worker with the new library
        client.close()
    drop_spare()
    return WheelResult(names, version, time.monotonic() - started, str(log))
