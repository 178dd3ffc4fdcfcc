"""The doctor's checks of the machine: processor, threads, memory, disk. Each takes what it looks at."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from llama_magic.backends.amx import REINSTALL
from llama_magic.backends.findings import OK, PROBLEM, WARNING, Finding
from llama_magic.units import format_bytes

__all__ = [
    "check_amx",
    "check_busy",
    "check_disk",
    "check_features",
    "check_memory",
    "check_oom_kills",
    "check_threads",
    "compiled_features",
    "cpu_flags",
    "watch_processes",
]

#: What llama.cpp calls the instruction sets it was compiled with, and the processor's flag of each (Linux).
_FLAGS = {
    "SSE3": "pni", "SSSE3": "ssse3", "AVX": "avx", "AVX_VNNI": "avx_vnni", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma",
    "BMI2": "bmi2", "AVX512": "avx512f", "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16", "AMX_INT8": "amx_int8", "NEON": "asimd", "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm", "FP16_VA": "asimdhp", "SVE": "sve", "SME": "sme",
}  # fmt: skip
#: Those that make llama.cpp clearly faster where they are missing. AMX is left out on purpose, see `amx`.
_FASTER = ("AVX", "AVX2", "F16C", "FMA", "AVX512", "AVX512_VNNI", "AVX512_BF16", "DOTPROD", "MATMUL_INT8", "SVE")

_REBUILD = "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"
_GIB = 1 << 30


def cpu_flags(cpuinfo: str) -> set[str]:
    """Return the flags of the first processor in the text of /proc/cpuinfo."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return set(found[1].split()) if found else set()


def compiled_features(system_info: str) -> set[str]:
    """Return what llama.cpp says of itself (`llama_print_system_info`): the names with value 1, of the CPU's part."""
    part = next((part for part in re.split(r"(?=\b\w+ : )", system_info) if part.startswith("CPU :")), system_info)
    return set(re.findall(r"(\w+) = 1\b", part))


def check_features(system_info: str, flags: set[str]) -> Finding:
    """Compare the instruction sets that were compiled in with those of the processor."""
    compiled = compiled_features(system_info)
    known = [name for name in _FLAGS if name in compiled]
    used = ", ".join(known) or "none that is known here"
    if not flags:
        return Finding("processor", "instruction sets", OK, f"compiled in: {used}; the processor's are not told here")
    lacking = [name for name in known if _FLAGS[name] not in flags]
    rebuild = REINSTALL if "amx_int8" in flags else _REBUILD
    unused = [name for name in _FASTER if name not in compiled and _FLAGS[name] in flags]
    if lacking:
        words = f"llama.cpp was compiled for {', '.join(lacking)}, which this processor lacks: it ends with SIGILL"
        return Finding("processor", "instruction sets", PROBLEM, words, rebuild)
    if unused:
        words = (
            f"the processor has {', '.join(unused)}, and llama.cpp was compiled without: it is slower than it could be "
            f"(compiled in: {used}). llama-cpp-python built here uses them; or %llama build cpu-variants"
        )
        return Finding("processor", "instruction sets", WARNING, words, rebuild)
    return Finding("processor", "instruction sets", OK, f"{used}: what the processor has")


def check_amx(trap: bool, flags: set[str], system_info: str) -> Finding | None:
    """Tell of AMX, where the processor has it."""
    if "amx_int8" not in flags:
        return None
    if trap:
        words = "llama.cpp was compiled with AMX by a GCC that leaves out part of its set-up: the first prompt crashes"
        return Finding("processor", "AMX", PROBLEM, words, REINSTALL)
    used = "AMX_INT8" in compiled_features(system_info)
    return Finding("processor", "AMX", OK, "compiled in" if used else "left out of llama.cpp, as it should be with GCC")


def check_threads(logical: int, usable: int, quota: float | None, threads: int) -> Finding:
    """Compare the threads that are used with what the container allows.

    Parameters
    ----------
    logical, usable
        Hardware threads of the machine, and those this process may run on.
    quota
        Processors of the container's quota, None without.
    threads
        What llama_magic computes with.
    """
    limit = f"a quota of {quota:g} processors" if quota is not None else "no quota"
    words = f"{threads} of {logical} hardware threads, {usable} of them allowed, {limit}"
    if quota is not None and quota < 1:
        words = f"the container may use {quota:g} of a processor: everything is slow ({words})"
        return Finding("processor", "threads", WARNING, words)
    if quota is not None and threads > math.ceil(quota):
        words = f"{words}: more threads than the quota allows wait for each other"
        return Finding("processor", "threads", WARNING, words, f"%llama config n_threads={math.ceil(quota)}")
    return Finding("processor", "threads", OK, words)


def watch_processes(seconds: float = 0.3) -> tuple[float, list[tuple[str, float]]]:
    """Return the busy part of all processors (0 to 1), and the names and processors' worth of who used most."""
    before = _times()
    psutil.cpu_percent()
    time.sleep(seconds)
    share, after = psutil.cpu_percent() / 100, _times()
    used = [(name, (spent - before[pid][1]) / seconds) for pid, (name, spent) in after.items() if pid in before]
    return share, sorted(used, key=lambda row: -row[1])[:3]


def _times() -> dict[int, tuple[str, float]]:
    found = {}
    for process in psutil.process_iter(["pid", "name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None and process.info["pid"] != os.getpid():
            found[process.info["pid"]] = (str(process.info["name"]), float(times.user + times.system))
    return found


def check_busy(share: float, users: Sequence[tuple[str, float]]) -> Finding:
    """Tell whether other work takes the processors."""
    if share < 0.5:
        return Finding("processor", "other work", OK, f"{100 * share:.0f} % of the processors are busy")
    busy = ", ".join(f"{name} ({cpus:.1f} processors)" for name, cpus in users if cpus >= 0.2)
    words = (
        f"{100 * share:.0f} % of the processors are busy with other work{f': {busy}' if busy else ''}. "
        "Threads of llama.cpp then wait for each other; fewer (-t) can be faster"
    )
    return Finding("processor", "other work", WARNING, words)


def check_memory(total: int, available: int, limit: tuple[int, int] | None, swap: tuple[int, int]) -> Iterator[Finding]:
    """Tell of main memory and swap.

    Parameters
    ----------
    total, available
        Bytes of the machine.
    limit
        The container's (limit, used) bytes, None without a limit.
    swap
        (total, used) bytes.
    """
    free = available if limit is None else max(0, min(available, limit[0] - limit[1]))
    words = f"{format_bytes(free)} free of {format_bytes(total)}"
    if limit is not None and limit[0] < total:
        words = f"{format_bytes(free)} free of {format_bytes(limit[0])} that the container may use"
    if free < _GIB // 2:
        words += ": most models do not fit. %llama unload gives memory back; a smaller quantization needs less"
        yield Finding("memory", "memory", PROBLEM, words)
    elif free < 2 * _GIB:
        yield Finding("memory", "memory", WARNING, f"{words}: room for small models only; %llama fit MODEL tells more")
    else:
        yield Finding("memory", "memory", OK, words)
    if not swap[0]:
        yield Finding("memory", "swap", OK, "none: what does not fit into memory is refused or killed, never slow")
    elif swap[1] > max(swap[0] // 4, _GIB // 4):
        words = (
            f"{format_bytes(swap[1])} of {format_bytes(swap[0])} in use: memory is short, and what is swapped is slow"
        )
        yield Finding("memory", "swap", WARNING, words)
    else:
        yield Finding("memory", "swap", OK, f"{format_bytes(swap[1])} of {format_bytes(swap[0])} in use")


def check_oom_kills(events: str) -> Finding | None:
    """Tell whether the container's memory limit has ended processes; `events` is the text of memory.events."""
    found = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
    if found is None or found[1] == "0":
        return None
    words = f"the container's memory limit has ended {found[1]} process(es) so far: a smaller model or context helps"
    return Finding("memory", "killed for memory", WARNING, words)


def check_disk(name: str, folder: Path, least: int = 5 * _GIB) -> Finding:
    """Tell of the room in a folder (of its nearest parent that is there), and whether it can be written to."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    words = f"{format_bytes(free)} free in {folder}"
    if not os.access(there, os.W_OK):
        return Finding("disk", name, PROBLEM, f"{folder} can not be written to", f"ls -ld {there}")
    if free < _GIB // 4:
        return Finding("disk", name, PROBLEM, f"{words}: nothing more can be kept there", "%llama models")
    if free < least:
        return Finding("disk", name, WARNING, f"{words}: room for small models only")
    return Finding("disk", name, OK, words)
