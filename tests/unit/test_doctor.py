"""The doctor's checks, each with an environment made for it; and what the page makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import llama_magic as lm
from llama_magic.api import doctor as examining
from llama_magic.backends import doctor_graphics as graphics
from llama_magic.backends import doctor_machine as machine
from llama_magic.backends import doctor_software as software
from llama_magic.backends.amx import amx_trap
from llama_magic.backends.doctor_software import HubProbe
from llama_magic.backends.findings import DoctorReport, Finding, guarded
from llama_magic.backends.modules import Module
from llama_magic.backends.prerequisites import Prerequisite
from llama_magic.backends.setup import Problem
from llama_magic.engine.jobs import set_job_client
from llama_magic.notebook.subcommands import SUBCOMMANDS

GIB = 1 << 30
SYSTEM = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | OPENMP = 1 | CUDA : ARCHS = 890 |"
FLAGS = {"pni", "avx", "avx2", "f16c", "fma", "bmi2"}


# the processor


def test_instruction_sets() -> None:
    cpuinfo = "processor\t: 0\nflags\t\t: fpu pni avx avx2 f16c fma bmi2\nprocessor\t: 1\nflags : none\n"
    assert machine.cpu_flags(cpuinfo) == FLAGS | {"fpu"}
    assert machine.cpu_flags("processor : 0\nFeatures\t: fp asimd asimddp i8mm\n") == {"fp", "asimd", "asimddp", "i8mm"}
    assert machine.cpu_flags("") == set()
    assert machine.compiled_features(SYSTEM) == {"SSE3", "AVX", "AVX2", "F16C", "FMA", "BMI2", "OPENMP"}
    assert machine.check_features(SYSTEM, FLAGS).state == "ok"
    lacking = machine.check_features(SYSTEM, FLAGS - {"avx2"})
    assert (lacking.state, "compiled for AVX2, which this processor lacks" in lacking.evidence) == ("problem", True)
    assert lacking.fix.startswith("pip install --force-reinstall")
    unused = machine.check_features(SYSTEM, FLAGS | {"avx512f", "avx512_vnni"})
    assert (unused.state, "has AVX512, AVX512_VNNI" in unused.evidence) == ("warning", True)
    assert "-U__AMX_INT8__" in machine.check_features(SYSTEM, FLAGS | {"avx512f", "amx_int8"}).fix
    assert machine.check_features("CPU : NEON = 1 | DOTPROD = 1 |", {"asimd", "asimddp", "i8mm"}).state == "warning"
    assert machine.check_features(SYSTEM, set()).state == "ok"  # not told, as on macOS


def test_amx(tmp_path: Path) -> None:
    library, cpuinfo = tmp_path / "libggml-cpu.so", tmp_path / "cpuinfo"
    library.write_bytes(b"\x7fELF AMX is not ready to be used!")
    cpuinfo.write_text("flags : avx2 amx_tile amx_int8\n")
    assert amx_trap(cpuinfo, tmp_path)
    cpuinfo.write_text("flags : avx2\n")
    assert not amx_trap(cpuinfo, tmp_path)
    assert not amx_trap(tmp_path / "nothing", tmp_path)
    found = machine.check_amx(True, {"amx_int8"}, SYSTEM)
    assert found is not None
    assert (found.state, "-U__AMX_INT8__" in found.fix) == ("problem", True)
    left_out = machine.check_amx(False, {"amx_int8"}, SYSTEM)
    assert left_out is not None
    assert left_out.evidence.startswith("left out")
    assert machine.check_amx(False, FLAGS, SYSTEM) is None


def test_threads_and_other_work() -> None:
    assert machine.check_threads(64, 64, None, 32).state == "ok"
    assert "a quota of 2 processors" in machine.check_threads(64, 64, 2.0, 2).evidence
    assert machine.check_threads(64, 64, 0.5, 1).state == "warning"
    many = machine.check_threads(64, 64, 2.0, 8)
    assert (many.state, many.fix) == ("warning", "%llama config n_threads=2")
    assert machine.check_busy(0.1, []).state == "ok"
    busy = machine.check_busy(0.9, [("make", 1.7), ("bash", 0.01)])
    assert (busy.state, "make (1.7 processors)" in busy.evidence, "bash" in busy.evidence) == ("warning", True, False)
    share, users = machine.watch_processes(0.02)
    assert 0 <= share <= 1
    assert len(users) <= 3


# memory and disk


@pytest.mark.parametrize(
    ("available", "limit", "state"),
    [(20 * GIB, None, "ok"), (GIB, None, "warning"), (GIB // 8, None, "problem"), (20 * GIB, (GIB, GIB // 2), "warning"),
     (20 * GIB, (GIB, GIB), "problem")],
)  # fmt: skip
def test_memory(available: int, limit: tuple[int, int] | None, state: str) -> None:
    memory, swap = machine.check_memory(32 * GIB, available, limit, (0, 0))
    assert memory.state == state
    assert (swap.state, swap.evidence.startswith("none")) == ("ok", True)


def test_swap_and_what_was_killed() -> None:
    assert [row.state for row in machine.check_memory(8 * GIB, 4 * GIB, None, (8 * GIB, 3 * GIB))] == ["ok", "warning"]
    assert [row.state for row in machine.check_memory(8 * GIB, 4 * GIB, None, (8 * GIB, GIB // 8))] == ["ok", "ok"]
    assert machine.check_oom_kills("low 0\noom 0\noom_kill 0\n") is None
    assert machine.check_oom_kills("") is None
    killed = machine.check_oom_kills("oom 3\noom_kill 2\n")
    assert killed is not None
    assert "2 process" in killed.evidence


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "not" / "there"
    free = [50 * GIB]
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=free[0]))
    assert machine.check_disk("d", deep).state == "ok"
    free[0] = 2 * GIB
    assert machine.check_disk("d", deep).state == "warning"
    free[0] = 1000
    assert machine.check_disk("d", deep).state == "problem"
    monkeypatch.setattr(os, "access", lambda *_arguments: False)
    assert "can not be written to" in machine.check_disk("d", deep).evidence


# graphics


def pci(root: Path, *devices: tuple[str, str]) -> Path:
    for number, (kind, maker) in enumerate(devices):
        folder = root / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "class").write_text(kind + "\n")
        (folder / "vendor").write_text(maker + "\n")
    return root


def test_cards_on_the_bus(tmp_path: Path) -> None:
    root = pci(tmp_path, ("0x030000", "0x10de"), ("0x020000", "0x10de"), ("0x120000", "0x1002"), ("0x030200", "0x1af4"))
    (root / "broken").mkdir()
    assert graphics.pci_cards(root) == ("NVIDIA", "AMD")
    assert graphics.pci_cards(tmp_path / "nothing") == ()


def test_whether_cards_are_used() -> None:
    check = graphics.check_cards
    assert check((), {"cpu": []}, {"cpu"}).state == "ok"
    assert "CUDA0 (cuda)" in check(["NVIDIA"], {"cuda": ["CUDA0"]}, {"cuda"}).evidence
    idle = check(["NVIDIA"], {"cpu": []}, {"vulkan"}, "blas")
    assert (idle.state, idle.fix) == ("warning", "%llama backend vulkan")
    assert "selected: blas" in idle.evidence
    assert check(["AMD"], {"cpu": []}, set()).fix == "%llama build hip"


def test_nvidias_driver() -> None:
    said = "NVIDIA H100 80GB HBM3, 570.86.15, 81559 MiB\n"
    assert [row.state for row in graphics.check_nvidia(["NVIDIA"], said, "libcuda.so.1")] == ["ok"]
    assert [row.state for row in graphics.check_nvidia(["NVIDIA"], said, None)] == ["ok", "problem"]
    assert [row.state for row in graphics.check_nvidia(["NVIDIA"], "", None)] == ["warning"]
    assert [row.state for row in graphics.check_nvidia([], "", None)] == ["ok"]
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
    assert [row.state for row in graphics.check_nvidia(["NVIDIA"], failed, None)] == ["warning"]


def test_vulkan(tmp_path: Path) -> None:
    (tmp_path / "icd.d").mkdir()
    for name in ("lvp_icd.x86_64.json", "radeon_icd.x86_64.json"):
        (tmp_path / "icd.d" / name).write_text("{}")
    both = graphics.vulkan_drivers({}, [str(tmp_path), "/nowhere"])
    assert [Path(file).name for file in both] == ["lvp_icd.x86_64.json", "radeon_icd.x86_64.json"]
    assert graphics.vulkan_drivers({"VK_DRIVER_FILES": both[0]}, [str(tmp_path)]) == both[:1]

    def check(
        drivers: list[str], cards: list[str], environment: dict[str, str] | None = None, loader: bool = True
    ) -> Any:
        find: Callable[[str], str | None] = lambda name: "libvulkan.so.1" if loader and name == "vulkan" else None  # noqa: E731
        return graphics.check_vulkan(drivers, cards, environment or {}, find)

    assert "drivers: lvp, radeon" in check(both, ["AMD"]).evidence
    assert check(both[:1], ["AMD"]).state == "warning"
    assert check(both[:1], []).state == "ok"
    assert "GGML_VK_VISIBLE_DEVICES=0" in check(both[:1], []).evidence
    assert check(both[:1], [], {"GGML_VK_VISIBLE_DEVICES": "0"}).state == "ok"
    assert check([], ["Intel"]).state == "warning"
    assert check([], [], loader=False).state == "ok"
    assert check([], ["AMD"], loader=False).state == "warning"


def test_metal() -> None:
    assert graphics.check_metal("linux", "x86_64", []) is None
    used, unused = (graphics.check_metal("darwin", "arm64", active) for active in (["metal"], ["cpu"]))
    assert used is not None
    assert unused is not None
    assert (used.state, unused.state) == ("ok", "warning")


# software


def test_python_and_llama_cpp_python() -> None:
    assert software.check_python((3, 12, 1), "python", "0.1.0").state == "ok"
    assert software.check_python((3, 9, 1), "python", "0.1.0").state == "problem"
    check = software.check_llama_cpp_python
    assert check("0.3.36", ">=0.3.36,<0.3.37").state == "ok"
    assert check("0.3.40", ">=0.3.36,<0.3.37").state == "warning"
    gone = check(None, ">=0.3.36,<0.3.37")
    assert (gone.state, gone.fix) == ("problem", "pip install 'llama-cpp-python>=0.3.36,<0.3.37'")
    assert examining._tested_versions().startswith(("<", ">"))
    assert software.check_worker(0.4, "abc", "0.25.3", "").state == "ok"
    assert software.check_worker(0.0, "", "", "it was killed (SIGILL)", "reinstall").fix == "reinstall"


def test_modules() -> None:
    good = Module("blas", "/m/libggml-blas.so", 1, "00", "abc", "0.25.3")
    bad = replace(good, name="vulkan", path="/m/libggml-vulkan.so")
    cut = replace(good, name="rpc", path="/m/libggml-rpc.so", problem="its file is damaged")
    left_out = [Problem(bad.path, "libvulkan.so.1: cannot open shared object file")]
    rows = list(software.check_modules({"blas": good, "vulkan": bad, "rpc": cut}, left_out, "blas", 2))
    assert [row.state for row in rows] == ["ok", "problem", "problem", "ok", "ok"]
    assert "cannot open shared object file" in rows[1].evidence
    assert rows[2].fix == "%llama build rpc"
    assert rows[-1].evidence == "blas"
    assert next(iter(software.check_modules({}, [], ""))).evidence.startswith("none is built")


def test_tools() -> None:
    def look(here: set[str]) -> Callable[[str], Prerequisite]:
        return lambda key: Prerequisite(
            key, key, key in here, "found" if key in here else f"no {key}", f"apt install {key}"
        )

    every = {"compiler", "cmake", "generator", "nvcc", "glslc", "rocm", "openblas"}
    rows = {row.name: row for row in software.check_tools(look(every), ["NVIDIA"], "linux")}
    assert rows["compiler"].state == rows["nvcc"].state == "ok"
    assert rows["vulkan-headers"].state == "warning"
    rows = {row.name: row for row in software.check_tools(look(set()), [], "linux")}
    assert {name for name, row in rows.items() if row.state == "warning"} == {"compiler", "cmake", "generator"}
    assert rows["compiler"].fix == "apt install compiler"
    assert "of no use without a card" in rows["nvcc"].evidence
    assert [row.name for row in software.check_tools(look(set()), [], "darwin")] == [
        "compiler",
        "cmake",
        "generator",
        "xcode",
    ]


def test_the_front_end() -> None:
    def states(versions: dict[str, str], environment: dict[str, str] | None = None) -> dict[str, str]:
        rows = software.check_frontend(versions.get, "7.4", environment or {})
        return {row.name: row.state for row in rows}

    lab = {"ipython": "9", "ipywidgets": "8.1.9", "jupyterlab": "4.6.6", "jupyterlab-widgets": "3.0"}
    assert set(states(lab).values()) == {"ok"}
    assert states({**lab, "ipywidgets": "7.8"})["ipywidgets"] == "warning"
    assert states({**lab, "jupyterlab": "3.6.1"})["front end"] == "warning"
    assert states({name: lab[name] for name in ("ipython", "ipywidgets", "jupyterlab")})["widget manager"] == "problem"
    assert states({"ipython": "9"})["ipywidgets"] == "warning"
    assert states({"ipython": "9", "ipywidgets": "8"}, {"COLAB_RELEASE_TAG": "1"})["front end"] == "ok"
    assert states({"ipython": "9", "ipywidgets": "8"}, {"VSCODE_PID": "1"})["front end"] == "ok"


def test_the_hub() -> None:
    check = software.check_hub
    assert (
        check(HubProbe("https://hub", 0.2, 200, token=True)).evidence == "https://hub answers in 0.2 s; a token is set"
    )
    assert "HF_HUB_OFFLINE is set" in check(HubProbe("https://hub", offline=True)).evidence
    assert check(HubProbe("https://hub", 0.2, 503)).state == "warning"
    silent = check(HubProbe("https://hub", error="Name or service not known"))
    assert (silent.state, silent.fix) == ("warning", "curl -I https://hub")


# the page


def test_a_check_that_fails_is_a_finding() -> None:
    def broken() -> Finding:
        raise OSError("no such\nthing")

    (found,) = guarded("disk", "x", broken)
    assert (found.state, found.evidence) == ("warning", "could not be looked at: OSError: no such")
    assert guarded("disk", "x", lambda: None) == []


def test_the_page() -> None:
    rows = (
        Finding("disk", "room", "ok", "much <b>room</b>"),
        Finding("llama.cpp", "worker", "problem", "it died <img src=x>", "pip install 'x<2'"),
        Finding("Hub", "Hub", "warning", "silent\x1b[31m", "curl"),
    )
    report = DoctorReport(rows, 1.0)
    assert (len(report), report[0].name, report.ok) == (3, "room", False)
    assert report.verdict == "1 problem and 1 warning; 1 in order"
    page = report._repr_html_()
    assert "<img" not in page
    assert "<b>room" not in page
    assert "\x1b" not in page + repr(report)
    assert page.index("it died") < page.index("silent") < page.index("much")
    assert "pip install &#x27;x&lt;2&#x27;" in page
    assert "worker: pip install 'x<2'" in repr(report)
    assert json.loads(json.dumps(report.to_dict()))["findings"][1]["fix"] == "pip install 'x<2'"
    assert DoctorReport(rows[:1]).verdict == "all 1 in order"


def test_nothing_that_breaks_breaks_it(monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> None:
    class Dead:
        """A worker that can not be started."""

        alive, pid, problems = False, None, ()

        def request(self, *_arguments: object) -> object:
            raise lm.EngineCrashed("The worker process met an instruction that this processor lacks (SIGILL).")

        def close(self) -> None:
            pass

    def fail(*_arguments: object, **_keywords: object) -> Any:
        raise PermissionError("denied")

    set_job_client(Dead)  # type: ignore[arg-type]
    try:
        for place, name in ((machine, "watch_processes"), (machine, "cpu_flags"), (graphics, "check_vulkan"),
                            (software, "check_tools"), (machine, "check_disk")):  # fmt: skip
            if name != "cpu_flags":
                monkeypatch.setattr(place, name, fail)
        report = lm.doctor()
    finally:
        set_job_client(None)
    states = {finding.name: finding.state for finding in report}
    assert states["worker"] == "problem"
    assert "SIGILL" in next(row.evidence for row in report if row.name == "worker")
    assert states["other work"] == states["Vulkan"] == states["data folder"] == states["tools"] == "warning"
    assert states["Python"] == "ok"
    assert SUBCOMMANDS["doctor"].parse("--json").get("json")
