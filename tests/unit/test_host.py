"""Threads and memory as the container allows them, from made-up control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_magic.backends import host


def group(tmp_path: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    membership = tmp_path / "own"
    membership.write_text(own)
    return root, membership


def test_no_quota(tmp_path: Path) -> None:
    root, own = group(tmp_path, "0::/\n", {"cpu.max": "max 100000"})
    assert host.cpu_quota(root, own) is None
    assert host.memory_limit(root, own) is None


def test_version_2_takes_the_tightest_of_all_levels(tmp_path: Path) -> None:
    root, own = group(
        tmp_path,
        "0::/a/b\n",
        {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "a/b/memory.max": "2147483648",
         "a/b/memory.current": "1073741824", "a/b/memory.stat": "anon 1\ninactive_file 73741824\n"},
    )  # fmt: skip
    assert host.cpu_quota(root, own) == 1.5
    assert host.memory_limit(root, own) == (2147483648, 1000000000)


def test_version_1(tmp_path: Path) -> None:
    root, own = group(
        tmp_path,
        "4:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n",
        {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "50000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
         "memory/docker/x/memory.limit_in_bytes": "1000000", "memory/docker/x/memory.usage_in_bytes": "400000",
         "memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"},
    )  # fmt: skip
    assert host.cpu_quota(root, own) == 0.5
    assert host.memory_limit(root, own) == (1000000, 400000)
    assert host.default_threads(root, own) == 1


@pytest.mark.parametrize(("quota", "threads"), [("100000 100000", 1), ("200000 100000", 2), ("1600000 100000", 4)])
def test_threads_follow_quota_and_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, threads: int
) -> None:
    root, own = group(tmp_path, "0::/\n", {"cpu.max": quota})
    monkeypatch.setattr(host, "_usable_cpus", lambda: 4)
    assert host.default_threads(root, own) == threads


def test_available_memory_is_within_the_limit(tmp_path: Path) -> None:
    root, own = group(tmp_path, "0::/\n", {"memory.max": "100000000", "memory.current": "60000000"})
    assert host.available_memory(root, own) == 40_000_000


def test_a_crash_in_amx_code_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import signal
    from types import SimpleNamespace

    from llama_magic.engine import process

    library = tmp_path / "llama_cpp" / "lib" / "libggml-cpu.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF AMX is not ready to be used!")
    origin = str(tmp_path / "llama_cpp" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: SimpleNamespace(origin=origin))
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : avx2 amx_tile amx_int8\n")
    assert "-U__AMX_INT8__" in process._amx(-signal.SIGSEGV, cpuinfo)
    assert "-U__AMX_INT8__" in process._amx(-signal.SIGILL, cpuinfo)
    assert process._amx(-signal.SIGABRT, cpuinfo) == ""
    library.write_bytes(b"\x7fELF")
    assert process._amx(-signal.SIGSEGV, cpuinfo) == ""
    library.write_bytes(b"\x7fELF AMX is not ready to be used!")
    cpuinfo.write_text("flags : avx2\n")
    assert process._amx(-signal.SIGSEGV, cpuinfo) == ""
