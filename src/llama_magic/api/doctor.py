"""The doctor: one page that answers why something does not work, or is slow."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from llama_magic._version import __version__
from llama_magic.api.backends import loaded_backends
from llama_magic.backends import doctor_graphics as graphics
from llama_magic.backends import doctor_machine as machine
from llama_magic.backends import doctor_software as software
from llama_magic.backends.amx import REINSTALL, amx_trap
from llama_magic.backends.doctor_software import HubProbe, HubRequest
from llama_magic.backends.findings import OK, WARNING, DoctorReport, Finding, guarded
from llama_magic.backends.host import cpu_quota, default_threads, memory_limit
from llama_magic.backends.known import name_of
from llama_magic.backends.modules import Library, Module, compiled_in, find_modules
from llama_magic.backends.prerequisites import check as look_for
from llama_magic.backends.results import LoadedBackends
from llama_magic.backends.rpc_check import check_host
from llama_magic.backends.rpc_hosts import attached_hosts
from llama_magic.backends.setup import STOCK, BackendSetup, Problem, selected
from llama_magic.engine.client import EngineClient
from llama_magic.engine.jobs import job_client, run_job
from llama_magic.errors import LlamaMagicError
from llama_magic.models.places import data_folder, hub_cache
from llama_magic.progress import Progress, Report

__all__ = ["doctor"]

#: Seconds after which what has not answered is a finding itself.
_PATIENCE_S = 15.0
_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def doctor(*, progress: Report | None = None) -> DoctorReport:
    """Look at everything that llama_magic needs here, and return a page of findings.

    llama.cpp and its modules are loaded in workers that are thrown away; the Hub is asked in another one, which
    honours HF_ENDPOINT and HF_HUB_OFFLINE. A check that fails is a finding itself: this never raises for what it finds.

    Returns
    -------
    DoctorReport
        A sequence of `Finding`, each ok, a warning or a problem, with its evidence and a command that helps.
    """
    return _Doctor(progress).report()


class _Doctor:
    """One examination. What takes long runs beside the rest, on threads."""

    def __init__(self, progress: Report | None) -> None:
        self.progress = progress
        self.started = time.perf_counter()
        self.found: list[Finding] = []

    def add(self, area: str, name: str, look: Callable[[], Iterable[Finding] | Finding | None]) -> None:
        if self.progress is not None:
            self.progress(Progress("doctor", min(len(self.found) / 32, 1.0), f"{area}: {name}"))
        self.found += guarded(area, name, look)

    def report(self) -> DoctorReport:
        # Before anything of our own keeps the processors busy.
        self.add("processor", "other work", lambda: machine.check_busy(*machine.watch_processes()))
        pool = ThreadPoolExecutor(4)
        try:
            library = pool.submit(_library)
            hub = pool.submit(_hub)
            smi = pool.submit(_nvidia_smi)
            self._software(library)
            self._machine(library)
            self._graphics(library, smi)
            self._backends(pool, library)
            self.add("Hub", "Hugging Face Hub", lambda: software.check_hub(_wait(hub)))
            self.add("notebook", "front end", lambda: software.check_frontend(software.installed_version, _kernel()))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return DoctorReport(tuple(self.found), time.perf_counter() - self.started)

    def _software(self, library: Future[_Loaded]) -> None:
        version = sys.version_info[:3]
        self.add("llama.cpp", "Python", lambda: software.check_python(version, sys.executable, __version__))
        self.add(
            "llama.cpp", "llama-cpp-python",
            lambda: software.check_llama_cpp_python(software.installed_version("llama-cpp-python"), _tested_versions()),
        )  # fmt: skip

        def worker() -> Finding:
            loaded = _wait(library)
            fix = REINSTALL if amx_trap() else ""
            return software.check_worker(
                loaded.seconds, loaded.found.commit, loaded.found.ggml_version, loaded.problem, fix
            )

        self.add("llama.cpp", "worker", worker)

    def _machine(self, library: Future[_Loaded]) -> None:
        flags = machine.cpu_flags(_text("/proc/cpuinfo"))
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.add("processor", "instruction sets", lambda: machine.check_features(_features(_wait(library)), flags))
        self.add("processor", "AMX", lambda: machine.check_amx(amx_trap(), flags, _features(_wait(library))))
        self.add(
            "processor", "threads",
            lambda: machine.check_threads(os.cpu_count() or 1, usable, cpu_quota(), default_threads()),
        )  # fmt: skip
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        self.add(
            "memory", "memory",
            lambda: machine.check_memory(memory.total, memory.available, memory_limit(), (swap.total, swap.used)),
        )  # fmt: skip
        self.add("memory", "killed for memory", lambda: machine.check_oom_kills(_text("/sys/fs/cgroup/memory.events")))
        for name, folder in (("data folder", data_folder()), ("the Hub's cache", hub_cache())):
            self.add("disk", name, lambda name=name, folder=folder: machine.check_disk(name, folder))  # type: ignore[misc]

    def _graphics(self, library: Future[_Loaded], smi: Future[str]) -> None:
        cards = graphics.pci_cards()

        def used() -> Finding:
            loaded = _wait(library).found
            active = {
                name_of(row.name): [device.name for device in row.devices if device.type in ("gpu", "igpu")]
                for row in loaded.backends
            }
            built = {*compiled_in(), *find_modules(Library(loaded.commit, loaded.ggml_version))}
            return graphics.check_cards(cards, active, built, selected().name)

        self.add("graphics", "graphics devices", used)
        libcuda = ctypes.util.find_library("cuda")
        self.add("graphics", "NVIDIA driver", lambda: graphics.check_nvidia(cards, _wait(smi), libcuda))
        self.add("graphics", "Vulkan", lambda: graphics.check_vulkan(graphics.vulkan_drivers(), cards))

        def metal() -> Finding | None:
            active = [name_of(row.name) for row in _wait(library).found.backends]
            return graphics.check_metal(sys.platform, platform.machine(), active)

        self.add("graphics", "Metal", metal)

    def _backends(self, pool: ThreadPoolExecutor, library: Future[_Loaded]) -> None:
        cards = graphics.pci_cards()
        loaded = library.result().found if library.done() and library.exception() is None else None
        modules = {} if loaded is None else find_modules(Library(loaded.commit, loaded.ggml_version))
        probing = pool.submit(_probe, modules)
        self.add("building", "tools", lambda: software.check_tools(look_for, cards, sys.platform))

        def built() -> list[Finding]:
            return list(software.check_modules(modules, _wait(probing), selected().name, _stale(loaded)))

        self.add("backends", "modules", built)
        for host in attached_hosts():
            self.add("backends", f"RPC host {host}", lambda host=host: _rpc_host(host))  # type: ignore[misc]


class _Loaded:
    """What a worker told of its llama.cpp, or why it did not."""

    def __init__(self, found: LoadedBackends, seconds: float, problem: str = "") -> None:
        self.found, self.seconds, self.problem = found, seconds, problem


def _library() -> _Loaded:
    """Ask a fresh worker for what is selected; without it where that fails."""
    started = time.perf_counter()
    client = job_client(replace(selected(), rpc=()))  # a host that serves another process would keep it waiting
    try:
        found = loaded_backends(client)
    except Exception as exc:  # noqa: BLE001 - whatever it died of is the finding
        return _Loaded(LoadedBackends((), "", ""), 0.0, str(exc).partition("\n")[0])
    finally:
        client.close()
    return _Loaded(found, time.perf_counter() - started)


def _features(loaded: _Loaded) -> str:
    """Return the features of the CPU's backend, in llama.cpp's own words."""
    if loaded.problem:
        raise RuntimeError("llama.cpp could not be asked")
    row = next(row for row in loaded.found.backends if row.name == "CPU")
    return "CPU : " + " | ".join(f"{name} = {value}" for name, value in row.features)


def _hub() -> HubProbe:
    request: Any = HubRequest()
    probe: HubProbe = run_job(request, setup=STOCK)
    return probe


def _probe(modules: dict[str, Module]) -> tuple[Problem, ...]:
    """Load all modules in a worker that is thrown away; returns what it had to leave out."""
    paths = tuple(module.path for module in modules.values() if not module.problem)
    if not paths:
        return ()
    client = job_client(BackendSetup(modules=paths, name="all modules"))
    try:
        loaded_backends(client)
        return client.problems if isinstance(client, EngineClient) else ()
    finally:
        client.close()


def _rpc_host(host: str) -> Finding:
    try:
        answer = check_host(host, timeout=1.5)
    except LlamaMagicError as exc:
        return Finding("backends", f"RPC host {host}", WARNING, str(exc), f"%llama rpc remove {host}")
    return Finding("backends", f"RPC host {host}", OK, f"answers, {len(answer.memory)} device(s)")


def _stale(loaded: LoadedBackends | None) -> int:
    if loaded is None:
        return 0
    own = Library(loaded.commit, loaded.ggml_version).key
    folders = (data_folder() / "backends").glob("*-ggml*")
    return sum(folder.is_dir() and folder.name != own for folder in folders)


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(
            _SMI, capture_output=True, text=True, errors="replace", timeout=5, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _wait(future: Future[Any]) -> Any:
    try:
        return future.result(_PATIENCE_S)
    except FutureTimeout:
        raise TimeoutError(f"no answer within {_PATIENCE_S:.0f} seconds") from None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _tested_versions() -> str:
    """Return the versions of llama-cpp-python that llama_magic names as its requirement."""
    for line in importlib.metadata.requires("llama-magic") or ():
        found = re.match(r"llama-cpp-python\s*\(?([^;)]*)", line)
        if found:
            return found[1].strip()
    return ""


def _kernel() -> str | None:
    return software.installed_version("ipykernel") if "ipykernel" in sys.modules else None
