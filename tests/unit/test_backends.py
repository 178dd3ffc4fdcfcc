"""Backends without a build: names, prerequisites, recipes, logs of builds, states, addresses."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

import llama_magic as lm
from llama_magic.backends import prerequisites
from llama_magic.backends.build_log import BuildProgress, explain, last_lines
from llama_magic.backends.built import BuildResult
from llama_magic.backends.cpu_variants import best_variant
from llama_magic.backends.known import KNOWN, find_backend, name_of, parse_backends
from llama_magic.backends.modules import Module
from llama_magic.backends.prerequisites import CHECKS, Prerequisite, missing, vulkan_headers
from llama_magic.backends.reasons import explain as reason
from llama_magic.backends.recipes import (
    build_command,
    configure_command,
    options_of,
    parse_defines,
    wheel_arguments,
)
from llama_magic.backends.results import Backends, Device, Devices, LoadedBackend, LoadedBackends
from llama_magic.backends.rpc_check import parse_endpoint
from llama_magic.backends.rpc_requests import AttachedHost, RpcHosts
from llama_magic.backends.setup import STOCK, BackendSetup, Problem
from llama_magic.backends.states import states
from llama_magic.backends.system_packages import PACKAGES, install_command
from llama_magic.errors import BackendError, BuildError, RpcHostError
from llama_magic.models.options import DeviceUse, LoadOptions
from llama_magic.notebook.subcommands import SUBCOMMANDS
from tests.fakes import model_info


def test_names() -> None:
    assert parse_backends("rpc, blas,CPU") == ("blas", "rpc")
    assert parse_backends("cpu") == ()
    assert parse_backends("default") is None
    assert parse_backends(["rocm", "nvidia"]) == ("cuda", "hip")
    assert name_of("MTL") == "metal"
    assert name_of("Something") == "something"
    assert find_backend("OpenBLAS").name == "blas"
    with pytest.raises(lm.InvalidRequestError, match="Did you mean vulkan"):
        parse_backends("vulcan")
    with pytest.raises(lm.InvalidRequestError, match="name a backend"):
        parse_backends(" , ")


def test_setups_are_compared_by_what_they_load() -> None:
    assert BackendSetup(name="default") == STOCK
    assert BackendSetup(modules=("a",), name="x") == BackendSetup(modules=("a",), name="y")
    assert BackendSetup(modules=("a",)) != BackendSetup(modules=("b",))
    assert pickle.loads(pickle.dumps(BackendSetup(rpc=("h:1",)))).rpc == ("h:1",)
    assert LoadOptions(backend="blas").as_loaded == LoadOptions()


@pytest.mark.parametrize(
    ("typed", "endpoint"),
    [("192.168.1.5", "192.168.1.5:50052"), ("gpu.local:7", "gpu.local:7"), (" a:050 ", "a:50")],
)
def test_addresses(typed: str, endpoint: str) -> None:
    assert parse_endpoint(typed) == endpoint


@pytest.mark.parametrize("typed", ["", "a b:1", "http://x:1", "a:0", "a:70000", "::1", "a:x", "[::1]:50052"])
def test_what_is_no_address(typed: str) -> None:
    with pytest.raises(lm.InvalidRequestError, match=r"host|IPv4"):
        parse_endpoint(typed)


# -- what a build needs --------------------------------------------------------------------------------


def test_every_need_has_a_check_and_a_package() -> None:
    for backend in KNOWN:
        assert set(backend.needs) <= CHECKS.keys()
    assert CHECKS.keys() == PACKAGES.keys()
    assert all("apt" in names or key == "xcode" for key, names in PACKAGES.items())


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt", "apt install g++ libopenblas-dev"), ("dnf", "dnf install gcc-c++ openblas-devel"),
        ("pacman", "pacman -S gcc openblas"), ("brew", "xcode-select --install && brew install openblas"),
        ("winget", "winget install Microsoft.VisualStudio.2022.BuildTools"), ("", ""),
    ],
)  # fmt: skip
def test_the_command_for_each_system(manager: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_magic.backends import system_packages

    monkeypatch.setattr(system_packages, "_is_root", lambda: True)
    assert install_command("compiler", "openblas", manager=manager) == command
    monkeypatch.setattr(system_packages, "_is_root", lambda: False)
    assert install_command("cmake", manager="apt") == "sudo apt install cmake"
    assert install_command("cmake", manager="brew") == "brew install cmake"


def test_what_is_missing_is_said_in_one_line() -> None:
    fix = install_command("glslc")
    rows = [
        Prerequisite("cmake", "CMake", True, "cmake 3.25"),
        Prerequisite("glslc", "glslc", False, "no glslc", fix),
        Prerequisite("vulkan-headers", "Vulkan headers", False, "too old", "the SDK"),
    ]
    assert missing(rows) == ("no glslc; too old", f"{fix} && the SDK" if fix else "the SDK")
    assert missing(rows[:1]) == ("", "")


OLD, NEW = 239, 309


def write_headers(folder: Path, patch: int, more: str = "") -> None:
    (folder / "vulkan").mkdir(parents=True)
    (folder / "vulkan" / "vulkan_core.h").write_text(
        f"#define VK_HEADER_VERSION {patch}\n"
        "#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, 3, VK_HEADER_VERSION)\n" + more
    )


def test_old_vulkan_headers_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_headers(tmp_path / "old", OLD)
    write_headers(tmp_path / "new", NEW, "#define VK_EXT_layer_settings 1\n")
    monkeypatch.setenv("CPATH", str(tmp_path / "old"))
    found = vulkan_headers()
    assert found is not None
    assert found[:2] == ("1.3.239", False)
    row = prerequisites.check("vulkan-headers")
    assert not row.ok
    assert "1.3.239" in row.evidence
    assert "too old" in row.evidence
    assert "SDK" in row.fix
    monkeypatch.setenv("CPATH", str(tmp_path / "new"))
    assert prerequisites.check("vulkan-headers").ok


def test_an_old_cmake_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cmake = tmp_path / "cmake"
    cmake.write_text("#!/bin/sh\necho cmake version 3.16.3\n")
    cmake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    row = prerequisites.check("cmake")
    assert (row.ok, row.evidence) == (False, "cmake 3.16 is too old: 3.21 is needed")


# -- recipes -------------------------------------------------------------------------------------------


def test_recipes() -> None:
    blas, rpc = find_backend("blas"), find_backend("rpc")
    options = options_of([blas, rpc], ("GGML_LTO=ON",), debug=False)
    assert {"-DGGML_BLAS=ON", "-DGGML_BLAS_VENDOR=OpenBLAS", "-DGGML_RPC=ON", "-DGGML_METAL=OFF"} <= set(options)
    assert "-DGGML_BLAS=OFF" not in options
    assert options[-1] == "-DGGML_LTO=ON"  # the user's word is the last
    assert "-DCMAKE_BUILD_TYPE=Debug" in options_of([rpc], (), debug=True)
    command = configure_command("cmake", "/usr/bin/ninja", "src", "build", "hook.cmake", options)
    for part in (
        "-DBUILD_SHARED_LIBS=ON",
        "-DGGML_BACKEND_DL=ON",
        "-DGGML_NATIVE=OFF",
        "-DGGML_CPU=OFF",
        "-GNinja"[:2],
    ):
        assert part in command
    assert "-DCMAKE_SKIP_RPATH=ON" in command
    assert build_command("cmake", "ninja", "build", [blas, rpc], 3) == [
        "ninja", "-C", "build", "-j", "3", "ggml-blas", "ggml-rpc",
    ]  # fmt: skip
    assert "--parallel" in build_command("cmake", "", "build", [blas], 1)
    assert wheel_arguments([find_backend("cuda")], ("A=1",)) == (
        "-DGGML_CUDA=ON -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__ -DA=1"
    )


def test_amx_is_off_as_in_the_makefile() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert wheel_arguments([], ()) in makefile


def test_definitions() -> None:
    assert parse_defines(["-DA=1", "B:BOOL=ON", "C="]) == ("A=1", "B:BOOL=ON", "C=")
    for wrong in ("A", "=1", "-GNinja", "A B=1"):
        with pytest.raises(lm.InvalidRequestError, match="NAME=VALUE"):
            parse_defines([wrong])
    parsed = SUBCOMMANDS["build"].parse("cuda -DCMAKE_CUDA_ARCHITECTURES=90 -D GGML_LTO=ON --jobs 2")
    assert parsed.words == ("cuda",)
    assert parsed.get("define") == ("CMAKE_CUDA_ARCHITECTURES=90", "GGML_LTO=ON")
    assert parsed.get("jobs") == 2
    with pytest.raises(lm.InvalidRequestError, match="does not take -ngl"):
        SUBCOMMANDS["build"].parse("cuda -ngl 3")


def test_the_variant_for_a_processor() -> None:
    avx2 = "sse4_2 avx f16c fma avx2 bmi2".split()
    avx512 = [*avx2, *"avx512f avx512cd avx512vl avx512dq avx512bw".split()]
    assert best_variant(["fpu"]) == "x64"
    assert best_variant(["sse4_2", "avx"]) == "sandybridge"
    assert best_variant(avx2) == "haswell"
    assert best_variant([*avx2, "avx_vnni"]) == "alderlake"
    assert best_variant(avx512) == "skylakex"
    assert best_variant([*avx512, "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_int8"]) == "zen4"
    with pytest.raises(BackendError, match="%llama build --wheel cpu"):
        best_variant([])


# -- what a build says ---------------------------------------------------------------------------------


def test_progress_of_ninja_and_make() -> None:
    progress = BuildProgress("BLAS")
    assert not progress.read("-- Configuring done", 0.1)
    assert progress.read("[4/16] Building CXX object ggml/src/ggml-blas/CMakeFiles/ggml-blas.dir/ggml-blas.cpp.o", 10.0)
    assert progress.fraction == 0.25
    assert progress.message == "BLAS: step 4 of 16, ggml-blas.cpp, about 30 s left"
    assert progress.read("[ 50%] Building C object ggml.c.o", 20.0)
    assert progress.message == "BLAS: 50 %, ggml.c, about 20 s left"
    assert progress.read("[16/16] Linking CXX shared module bin/libggml-blas.so", 40.0)
    assert progress.message == "BLAS: step 16 of 16"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fatal error: error writing to /tmp/x.s: No space left on device", "disk is full"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "--jobs 1"),
        ("error: 'LayerSettingEXT' is not a member of 'vk'", "Vulkan headers are too old"),
        ("CMake Error: Could NOT find Vulkan (missing: glslc)", "Vulkan was not found"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_121'", "compute_121"),
        ("ggml-blas.cpp:10:10: fatal error: cblas.h: No such file or directory", "header cblas.h"),
        ("/usr/bin/ld: cannot find -lcuda: No such file", "library cuda"),
        ("something else", ""),
    ],
)
def test_causes(line: str, words: str) -> None:
    found = explain(["[1/2] Building", line, "ninja: build stopped"])
    assert (words in found) if words else not found


def test_the_end_of_a_log_begins_with_the_first_error() -> None:
    lines = ["[1/3] ok", "FAILED: x.o", "c++ x.cpp", "x.cpp:1: error: no", "", "ninja: build stopped"]
    assert last_lines(lines) == ("FAILED: x.o", "c++ x.cpp", "x.cpp:1: error: no", "ninja: build stopped")
    assert last_lines([str(n) for n in range(20)], 2) == ("18", "19")
    error = BuildError("building X failed", "/tmp/x.log", last_lines(lines))
    assert pickle.loads(pickle.dumps(error)).lines == error.lines
    assert str(error).endswith("the whole log: /tmp/x.log")
    assert isinstance(pickle.loads(pickle.dumps(RpcHostError("gone"))), OSError)


# -- the table -----------------------------------------------------------------------------------------

CPU = Device("CPU", "cpu", "a processor", "cpu", 8 << 30, 16 << 30)
BLAS = Device("BLAS", "accelerator", "OpenBLAS", "blas", 0, 0)


def found(*, problems: tuple[Problem, ...] = (), platform: str = "linux", ok: bool = True) -> Backends:
    loaded = LoadedBackends((LoadedBackend("CPU", (("AVX2", "1"), ("NEON", "0")), (CPU,)),), "0c1e570", "0.25.3")
    module = Module("blas", "/x/blas.so", 1, "", "0c1e570", "0.25.3")
    broken = Module("rpc", "/x/rpc.so", 1, "", "0c1e570", "0.25.3", problem="the file is gone")

    def look(key: str) -> Prerequisite:
        return Prerequisite(key, key, ok or key != "nvcc", f"no {key}", "" if ok else f"apt install {key}")

    rows = states(loaded, {"blas": module, "rpc": broken}, ["vulkan"], problems, platform, look)
    return Backends(rows, problems, "0c1e570", "0.25.3")


def test_states() -> None:
    rows = found()
    assert {row.name: row.state for row in rows if row.name in ("cpu", "blas", "rpc", "vulkan", "cuda", "metal", "musa")} == {
        "cpu": "active", "blas": "built", "rpc": "broken", "vulkan": "built", "cuda": "buildable",
        "metal": "unsupported", "musa": "missing",
    }  # fmt: skip
    assert rows["cpu"].detail == "AVX2"
    assert (rows["vulkan"].source, rows["blas"].source) == ("wheel", "module")
    assert rows["rpc"].detail == "the file is gone"
    assert rows["cuda"].fix == "%llama build cuda"
    none = found(ok=False)
    assert (none["cuda"].state, none["cuda"].detail, none["cuda"].fix) == ("missing", "no nvcc", "apt install nvcc")
    told = found(problems=(Problem("/x/blas.so", "it crashed"),))
    assert (told["blas"].state, told["blas"].detail) == ("broken", "it crashed")
    assert found(platform="darwin")["metal"].state == "buildable"
    with pytest.raises(StopIteration):
        rows["nothing"]


def test_how_they_are_shown() -> None:
    rows = found(problems=(Problem("10.0.0.2:50052", "<gone>"),))
    page = rows._repr_html_()
    assert "&lt;gone&gt;" in page
    assert "<gone>" not in page
    assert "%llama backend blas" in page
    assert "more for special hardware" in page
    assert "Not on this system: metal" in repr(rows)
    assert "10.0.0.2:50052" in repr(rows)
    assert rows.to_dict()["backends"][0]["name"] == "cpu"
    devices = Devices((CPU, BLAS))
    assert "8.00 GiB" in devices._repr_html_()
    assert "holds no weights" in repr(devices)
    assert "holds no weights" not in repr(Devices((CPU,)))
    assert devices["BLAS"].memory_total == 0
    if "pandas" in sys.modules or __import__("importlib.util").util.find_spec("pandas"):
        assert list(devices.to_pandas()["name"]) == ["CPU", "BLAS"]
        assert len(rows.to_pandas()) == len(rows)


def test_what_a_build_gave() -> None:
    module = Module("blas", "/x/blas.so", 64 << 10, "", "0c1e570", "0.25.3")
    result = BuildResult((module,), (BLAS,), 24.2, "/x/blas.log")
    assert "BLAS: 64.0 KiB; BLAS (OpenBLAS)" in repr(result)
    assert "%llama backend blas" in repr(result)
    assert "%llama backend blas" in result._repr_html_()
    rpc = BuildResult((Module("rpc", "/x", 1, "", "c", "g"),), (), 1.0, "/x.log")
    assert "%llama rpc add" in repr(rpc)


def test_rpc_hosts_are_shown() -> None:
    assert "No RPC host is attached" in repr(RpcHosts(()))
    rows = RpcHosts((AttachedHost("a:1", "attached", "gone", (), "<b>"),))
    assert "&lt;b&gt;" in rows._repr_html_()
    assert "no authentication" in rows._repr_html_()
    assert rows.to_dict()["hosts"][0]["endpoint"] == "a:1"


@pytest.mark.parametrize(
    ("uses", "place"),
    [
        ([DeviceUse("CPU", "cpu", 31, 9)], "CPU"),
        ([DeviceUse("CPU", "cpu", 31, 9), DeviceUse("BLAS", "accelerator", 0, 0)], "CPU with BLAS"),
        ([DeviceUse("CUDA0", "gpu", 31, 9), DeviceUse("CPU", "cpu", 0, 1)], "CUDA0"),
        (
            [DeviceUse("RPC0", "gpu", 20, 9), DeviceUse("CPU", "cpu", 11, 1), DeviceUse("BLAS", "accelerator", 0, 0)],
            "RPC0 20 of 31 layers, CPU 11 of 31 layers with BLAS",
        ),
        ([], "CPU"),
    ],
)
def test_where_a_model_computes(uses: list[DeviceUse], place: str) -> None:
    from dataclasses import replace

    from llama_magic.models.options import ModelSpec

    assert replace(model_info(ModelSpec("m.gguf", "m")), uses=tuple(uses)).place == place


def test_reasons_in_words() -> None:
    """What ggml says of modules that it can not load."""
    assert reason("failed to load x.so: libcuda.so.1: cannot open shared object file: No such file") == (
        "the NVIDIA driver is missing: libcuda.so.1 was not found"
    )
    assert "a library is missing" in reason("libfoo.so.3: cannot open shared object file")
    assert "another ggml" in reason("x.so: undefined symbol: ggml_new")
    assert reason("x.so: file too short") == "the file is damaged or cut off"
    assert reason("anything else") == "anything else"
