"""Building backends: progress, a stop, and what goes wrong. The build that works is the fixture `modules`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

import llama_magic as lm
from llama_magic.api.backends import backends, library
from llama_magic.api.build import build_backend, build_wheel
from llama_magic.backends.built import BuildResult
from llama_magic.backends.modules import find_modules, module_folder
from llama_magic.backends.prerequisites import vulkan_headers
from llama_magic.errors import BackendError, BuildError, DiskFullError, DownloadError, JobInterrupted
from llama_magic.progress import Progress
from tests.conftest import skip_or_fail
from tests.native.raw_logits import raw_logits


def nothing_left(modules: BuildResult) -> None:
    """No half of a build is there, no compiler runs, and what was built before is as it was."""
    folder = module_folder(library())
    assert not list(folder.glob(".build-*"))
    assert find_modules(library())["rpc"].problem == ""
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if child.name() in ("ninja", "make", "cmake", "c++", "cc1plus", "as")]


@pytest.mark.slow
def test_a_stop_ends_the_compilers(modules: BuildResult) -> None:
    seen: list[Progress] = []
    compilers: list[psutil.Process] = []

    def watch(step: Progress) -> None:
        seen.append(step)
        if step.fraction is not None and not compilers:
            children = psutil.Process().children(recursive=True)
            compilers.extend(child for child in children if child.name() in ("ninja", "make", "cc1plus", "c++"))
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(JobInterrupted, match="nothing half-done is left"):
        build_backend("rpc", progress=watch)
    assert compilers
    _, alive = psutil.wait_procs(compilers, timeout=5)
    assert not alive
    assert [step.fraction for step in seen if step.fraction is not None] == sorted(
        step.fraction for step in seen if step.fraction is not None
    )
    assert any("step 1 of" in step.message for step in seen)
    nothing_left(modules)


def test_a_mistake_in_the_recipe_shows_the_end_of_the_log(modules: BuildResult) -> None:
    with pytest.raises(BuildError) as caught:
        build_backend("rpc", defines=["CMAKE_CXX_COMPILER=/nowhere/c++"])
    error = caught.value
    assert error.message.startswith("configuring RPC failed")
    assert any("/nowhere/c++" in line for line in error.lines)
    assert "/nowhere/c++" in Path(error.log).read_text()
    assert error.log in str(error)
    nothing_left(modules)


def test_missing_tools_are_named_with_the_command(
    modules: BuildResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    with pytest.raises(BackendError, match=r"no C\+\+ compiler .*no cmake.*neither ninja nor make"):
        build_backend("rpc")
    rows = backends()
    assert rows["cuda"].state == "missing"
    nothing_left(modules)


def test_no_network(modules: BuildResult, monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> None:
    """In an empty home the source has to come first."""
    monkeypatch.delenv("LLAMA_MAGIC_SOURCE", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match="pip could not fetch the source"):
        build_backend("rpc")
    assert not list((fresh_home / ".local" / "share" / "llama_magic" / "backends").glob("*/.build-*"))


def test_too_little_room(modules: BuildResult, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
    with pytest.raises(DiskFullError, match="LLAMA_MAGIC_HOME"):
        build_backend("rpc")
    nothing_left(modules)


def test_a_disk_that_becomes_full(modules: BuildResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real one of some hundred kilobytes, with the source where it was."""
    home = tmp_path / "full"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(home)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk can not be mounted here: {mounted.stderr.strip()}")
    try:
        from llama_magic.api import build as module
        from llama_magic.models.places import data_folder

        (home / "llama.cpp").symlink_to(data_folder() / "llama.cpp")
        monkeypatch.setenv("LLAMA_MAGIC_HOME", str(home))
        monkeypatch.setattr(module, "_room", lambda _folder, _need: None)
        with pytest.raises(DiskFullError, match="full"):
            build_backend("rpc")
        assert not list(home.glob("backends/*/.build-*"))
        assert not list(home.glob("backends/*/*/module.json"))
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_what_can_not_be_built_is_refused(modules: BuildResult) -> None:
    with pytest.raises(lm.InvalidRequestError, match="Did you mean vulkan"):
        build_backend("vulkn")
    with pytest.raises(lm.InvalidRequestError, match="%llama build --wheel cpu"):
        build_backend("cpu")
    with pytest.raises(lm.InvalidRequestError, match="NAME=VALUE"):
        build_backend("rpc", defines=["GGML_RPC"])
    with pytest.raises(lm.InvalidRequestError, match="1 or more"):
        build_backend("rpc", jobs=0)
    with pytest.raises(BackendError, match="can not be built on this system"):
        build_backend("metal")


def test_a_module_that_does_not_load_is_not_installed(modules: BuildResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built well, and broken before it is probed."""
    from llama_magic.api import build as module
    from llama_magic.backends.recipes import StagedModule

    def build(request: object, *_more: object) -> tuple[StagedModule, ...]:
        target = Path(request.folder) / "rpc.so"  # type: ignore[attr-defined]
        target.write_bytes(Path(modules.modules[1].path).read_bytes()[:3000])
        return (StagedModule("rpc", str(target), (), 1.0),)

    monkeypatch.setattr(module, "run_job", build)
    with pytest.raises(BuildError, match="was built and can not be loaded: the file is damaged"):
        build_backend("rpc")
    nothing_left(modules)


# -- the wheel -----------------------------------------------------------------------------------------

#: Stands for pip: says what it was told, and "builds" or refuses.
PIP = """
import os, pathlib, sys
print("CMAKE_ARGS", os.environ.get("CMAKE_ARGS", ""), flush=True)
print("pip", *sys.argv[1:], flush=True)
if sys.argv[1] == "wheel":
    for step in range(1, 4):
        print(f"  [{step}/3] Building CXX object ggml-cuda/file{step}.cu.o", flush=True)
    if os.environ.get("FAIL"):
        print("nvcc fatal : Unsupported gpu architecture 'compute_50'"); sys.exit(1)
    folder = sys.argv[sys.argv.index("-w") + 1]
    pathlib.Path(folder, "llama_cpp_python-0.3.36-py3-none-any.whl").write_bytes(b"")
"""


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that installs nothing, for the worker that builds."""
    folder = tmp_path / "pip"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "__main__.py").write_text(PIP)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


def test_the_wheel_is_built_before_anything_is_replaced(modules: BuildResult, pip: None) -> None:
    seen: list[Progress] = []
    done = build_wheel("rpc,blas", defines=["GGML_LTO=ON"], progress=seen.append)
    text = Path(done.log).read_text()
    arguments = next(line for line in text.splitlines() if line.startswith("CMAKE_ARGS"))
    for part in ("-DGGML_RPC=ON", "-DGGML_BLAS=ON", "-DCMAKE_CXX_FLAGS=-U__AMX_INT8__", "-DGGML_LTO=ON"):
        assert part in arguments
    assert "--force-reinstall" in text.rpartition("pip install")[2]
    assert text.index("pip wheel") < text.index("pip install")
    assert "the kernel need not be restarted" in repr(done)
    assert any("step 2 of 3, file2.cu" in step.message for step in seen)


def test_a_wheel_that_fails_replaces_nothing(modules: BuildResult, pip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(BuildError, match="this CUDA toolkit does not know compute_50") as caught:
        build_wheel("rpc")
    assert "pip install" not in Path(caught.value.log).read_text()


# -- builds that take minutes --------------------------------------------------------------------------


def wanted(name: str) -> None:
    if name not in os.environ.get("LLAMA_MAGIC_TEST_BUILDS", "").split(","):
        pytest.skip(f"{name} takes minutes to build; LLAMA_MAGIC_TEST_BUILDS={name} builds and runs it")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_variant_takes_the_place_of_the_cpu_that_is_compiled_in(modules: BuildResult) -> None:
    wanted("cpu-variants")
    built = build_backend("cpu-variants")
    assert [device.name for device in built.devices] == ["CPU"]
    prompt = "The quick brown fox jumps over the lazy dog. " * 8
    tops = []
    for backend in ("cpu", "cpu-variants"):
        with lm.load(backend=backend, n_ctx=512) as model:
            assert model.info.place == "CPU"
            mapped = Path(f"/proc/{model._client.pid}/maps").read_text()
            assert ("cpu-variants.so" in mapped) == (backend == "cpu-variants")
            answer = model.generate(prompt, max_tokens=1, temperature=0, logprobs=20)
            tops.append({row.id: row.logprob for row in answer.logprobs[0].top})
    both = tops[0].keys() & tops[1].keys()
    assert len(both) >= 18
    assert max(abs(tops[0][token] - tops[1][token]) for token in both) < 0.1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_vulkan_on_the_software_device(modules: BuildResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted("vulkan")
    headers = vulkan_headers()
    if headers is None or not headers[1]:
        skip_or_fail(f"the Vulkan headers are missing or too old: {headers}")
    if backends()["vulkan"].state == "missing":
        skip_or_fail(f"Vulkan can not be built: {backends()['vulkan'].detail}")
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    if "vulkan" not in find_modules(library()):
        assert build_backend("vulkan").devices
    f16 = str(lm.quantize("smollm2", "F16", tmp_path, allow_requantize=True).path)
    with lm.load(f16, backend="vulkan", n_ctx=256) as model:
        assert model.info.place == "Vulkan0"
        assert model.generate("The capital of France is", max_tokens=1, temperature=0).text.strip()
    module = str(find_modules(library())["vulkan"].path)

    def apart(prompt: str) -> float:
        ours, theirs = raw_logits(f16, prompt, tmp_path), raw_logits(f16, prompt, tmp_path, module, "Vulkan0")
        assert ours.shape == theirs.shape
        assert np.ptp(ours) > 10
        return float(np.abs(ours - theirs).max())

    assert 0 < apart("The capital of France is") < 0.1
    # batches of more than 8 tokens are multiplied in 16 bits, unless it is told not to
    monkeypatch.setenv("GGML_VK_DISABLE_F16", "1")
    assert 0 < apart("The capital of France is Paris, and the") < 0.1


def test_threads_of_a_build_end(modules: BuildResult) -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "llama-magic-build"]
