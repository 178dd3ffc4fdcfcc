"""Processors and memory that this process may really use.

Binder and JupyterHub run notebooks in containers: `os.cpu_count()` and the machine's free
memory tell of the whole machine there. The container's own limits are in its control group
(https://docs.kernel.org/admin-guide/cgroup-v2.html, and v1's cpu and memory controllers).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

__all__ = ["available_memory", "busy_share", "cpu_quota", "default_threads", "memory_limit"]

_ROOT = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


def _psutil() -> Any:
    import psutil  # not every worker asks, and this takes a while

    return psutil


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _groups(root: Path, own: Path) -> list[Path]:
    """Return the folders of this process's control groups, innermost first, for v2 and v1."""
    found = []
    for line in (_read(own) or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, path = parts
        bases = [root] if not controllers else [root / controllers, *(root / name for name in controllers.split(","))]
        for base in bases:
            inner = base / path.lstrip("/")
            found += [folder for folder in (inner, *inner.parents) if folder == base or base in folder.parents]
    return [*found, root, root / "cpu", root / "memory", root / "cpu,cpuacct"]


def cpu_quota(root: Path = _ROOT, own: Path = _SELF) -> float | None:
    """Return the processors that the container may use (1.5 is one and a half), None without a quota."""
    quotas = []
    for folder in _groups(root, own):
        both = (_read(folder / "cpu.max") or "").split()
        if len(both) == 2 and both[0] != "max":
            quotas.append(int(both[0]) / int(both[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _usable_cpus() -> int:
    """Return physical cores among the processors this process may run on."""
    try:
        logical = len(os.sched_getaffinity(0))
    except AttributeError:
        logical = os.cpu_count() or 1
    physical = _psutil().cpu_count(logical=False) or logical
    # Two hardware threads of one core share its arithmetic units; llama.cpp is fastest with one each.
    return max(1, min(logical, physical))


def default_threads(root: Path = _ROOT, own: Path = _SELF) -> int:
    """Return how many threads to compute with: physical cores within affinity and quota."""
    quota = cpu_quota(root, own)
    cpus = _usable_cpus()
    return cpus if quota is None else max(1, min(cpus, math.floor(quota + 0.5)))


def busy_share(seconds: float = 0.3) -> float:
    """Return which part of the machine's processors was busy during some seconds, from 0 to 1; this call only waits."""
    return float(_psutil().cpu_percent(seconds)) / 100


def memory_limit(root: Path = _ROOT, own: Path = _SELF) -> tuple[int, int] | None:
    """Return the container's (limit, used) memory in bytes, None without a limit."""
    limits = []
    for folder in _groups(root, own):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _read(folder / limit_name), _read(folder / used_name)
            # v1 writes "no limit" as a number near 2**63.
            if limit and limit.isdigit() and used and used.isdigit() and int(limit) < 1 << 60:
                limits.append((int(limit), max(0, int(used) - _reclaimable(folder))))
    return min(limits, key=lambda pair: pair[0] - pair[1], default=None)


def _reclaimable(folder: Path) -> int:
    """Return bytes of file cache that the kernel gives back when memory is short."""
    for line in (_read(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def available_memory(root: Path = _ROOT, own: Path = _SELF) -> int:
    """Return bytes that can still be taken without swapping, within the container's limit."""
    free = int(_psutil().virtual_memory().available)
    limit = memory_limit(root, own)
    return free if limit is None else max(0, min(free, limit[0] - limit[1]))
