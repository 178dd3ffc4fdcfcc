"""Backends as modules: built, loaded, toggled, broken in all ways."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import llama_magic as lm
from llama_magic.api.backends import backends, library, loaded_backends, setup_for, use_backend
from llama_magic.api.session import Ask, Session
from llama_magic.api.switching import switch_backend
from llama_magic.backends.built import BuildResult
from llama_magic.backends.known import find_backend
from llama_magic.backends.modules import find_modules, module_folder
from llama_magic.backends.setup import STOCK, BackendSetup, select, selected
from llama_magic.engine.client import EngineClient, get_client, set_client
from llama_magic.engine.protocol import StatusRequest
from llama_magic.errors import BackendError, OutOfMemoryError
from llama_magic.models.options import ModelSpec
from tests.conftest import skip_or_fail
from tests.tiny import tiny_llama


@pytest.fixture(autouse=True)
def session_client() -> Iterator[EngineClient]:
    made = EngineClient()
    set_client(made)
    yield made
    made.close()
    set_client(None)
    select(STOCK)


def module_paths(modules: BuildResult) -> dict[str, str]:
    return {module.name: module.path for module in modules.modules}


# -- what was built ------------------------------------------------------------------------------------


def test_a_module_is_whole_and_belongs_to_this_llama_cpp(modules: BuildResult) -> None:
    found = backends()
    folder = module_folder(library())
    assert found.commit in folder.name
    assert found.ggml_version in folder.name
    for module in modules.modules:
        file = Path(module.path)
        assert file.parent.parent == folder
        assert hashlib.sha256(file.read_bytes()).hexdigest() == module.sha256
        assert module.seconds > 0
        assert Path(module.log).read_text().startswith("$ ")
    assert not list(folder.glob(".build-*"))
    if shutil.which("readelf"):
        listed = subprocess.run(["readelf", "-d", modules.modules[0].path], capture_output=True, text=True, check=True)
        assert "RPATH" not in listed.stdout
        assert "RUNPATH" not in listed.stdout
        assert "libggml-base.so.0" in listed.stdout


def test_the_table_says_what_is_built(modules: BuildResult) -> None:
    rows = backends()
    assert rows["cpu"].state == "active"
    assert "AVX" in rows["cpu"].detail or rows["cpu"].detail
    assert rows["blas"].state == "built"
    assert rows["blas"].fix == "%llama backend blas"
    assert {row.name for row in rows} >= {"cpu", "blas", "cuda", "hip", "metal", "vulkan", "sycl", "opencl", "rpc"}
    use_backend("blas")
    assert backends()["blas"].state == "active"
    assert [device.type for device in lm.devices()] == ["cpu", "accelerator"]
    cpu = lm.devices()["CPU"]
    total = psutil.virtual_memory().total
    assert cpu.memory_total == pytest.approx(total, rel=0.01)


def test_another_llama_cpp_finds_no_module(modules: BuildResult) -> None:
    here = library()
    assert find_modules(here)["blas"].problem == ""
    assert find_modules(replace(here, commit="fffffff")) == {}
    assert find_modules(replace(here, ggml_version="0.0.1")) == {}
    manifest = Path(modules.modules[0].path).with_name("module.json")
    before = manifest.read_text()
    try:
        manifest.write_text(json.dumps({**json.loads(before), "commit": "fffffff"}))
        with pytest.raises(BackendError, match="built for llama.cpp fffffff"):
            setup_for("blas")
        assert backends()["blas"].state == "broken"
    finally:
        manifest.write_text(before)


# -- running on it -------------------------------------------------------------------------------------


def test_blas_computes_and_holds_nothing(modules: BuildResult) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 20
    with lm.load(backend="cpu", n_ctx=1024) as plain, lm.load(backend="blas", n_ctx=1024) as blas:
        assert plain.info.place == "CPU"
        assert blas.info.place == "CPU with BLAS"
        assert blas.devices == plain.devices == ("CPU",)
        uses = {use.device: use for use in blas.info.uses}
        assert uses["BLAS"].layers == uses["BLAS"].weights == 0
        assert uses["CPU"].layers == blas.info.n_layer + 1
        answers = [model.generate(prompt, max_tokens=1, temperature=0, logprobs=5) for model in (plain, blas)]
        first, second = ({row.id: row.logprob for row in answer.logprobs[0].top} for answer in answers)
        assert first.keys() == second.keys()
        assert max(abs(first[token] - second[token]) for token in first) < 0.1
        assert first != second  # other code computed it
        receipt = answers[1].receipt
        assert receipt is not None
        assert receipt.place == "CPU with BLAS"
        assert plain._client is not blas._client


def test_a_repacked_model_is_not_said_to_use_blas(modules: BuildResult, tmp_path: Path) -> None:
    """Weights in the CPU's own order can not be read by BLAS: it is registered and computes nothing of them."""
    tiny = tmp_path / "tiny.gguf"
    tiny_llama(tiny)
    with lm.load(str(tiny), backend="blas", n_ctx=64, n_ubatch=16) as model:  # BLAS takes batches of 32 and more
        assert model.info.place == "CPU"


def test_a_session_toggles_and_keeps_its_conversation(modules: BuildResult) -> None:
    session = Session()

    def say(text: str) -> str:
        generation = session.start(Ask(text, chat="", sampling={"max_tokens": 8, "temperature": 0}))
        receipt = generation.finish(generation.stream.collect()).receipt
        assert receipt is not None
        return receipt.place

    session.load()
    assert say("Name a fruit.") == "CPU"
    old = get_client().pid
    done = switch_backend(session, "blas")
    assert done.names == "blas"
    assert done.info is not None
    assert done.info.place == "CPU with BLAS"
    assert get_client().pid != old
    assert say("Another one, and tell me what colour it has when it is ripe, please.") == "CPU with BLAS"
    assert len(session.conversation()) == 2
    assert len(session.conversation().messages()) == 4
    switch_backend(session, "cpu")
    assert say("And a third?") == "CPU"
    assert not psutil.pid_exists(old or 0) or psutil.Process(old).status() == "zombie"


def test_what_can_not_be_used_changes_nothing(modules: BuildResult, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    session.load()
    use_backend("blas")
    with pytest.raises(lm.InvalidRequestError, match="Did you mean vulkan"):
        switch_backend(session, "vulcan")
    with pytest.raises(BackendError, match="%llama build opencl"):
        switch_backend(session, "opencl")
    assert selected().name == "blas"

    def refuse(*_args: object, **_more: object) -> None:
        raise OutOfMemoryError("too large there")

    switch_backend(session, "cpu")
    monkeypatch.setattr(session, "spec", refuse)
    with pytest.raises(OutOfMemoryError):
        switch_backend(session, "blas")
    assert selected().name == "cpu"


@pytest.mark.slow
def test_fifty_toggles_leak_nothing(modules: BuildResult, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.gguf"
    tiny_llama(tiny)
    session = Session()
    session.load(str(tiny), {"n_ctx": 64})
    me = psutil.Process()

    def toggle(count: int) -> None:
        for turn in range(count):
            done = switch_backend(session, ("blas", "cpu")[turn % 2])
            assert done.info is not None

    toggle(4)
    gc.collect()
    memory, files, threads = me.memory_info().rss, me.num_fds(), me.num_threads()
    toggle(46)
    gc.collect()
    workers = [child for child in me.children() if child.status() != psutil.STATUS_ZOMBIE]
    assert len(workers) == 1
    assert me.memory_info().rss - memory < 8 << 20
    assert me.num_fds() <= files + 2
    assert me.num_threads() <= threads + 2


def test_a_worker_of_one_s_own_ends_with_its_models(modules: BuildResult) -> None:
    model = lm.load(backend="blas")
    pid = model._client.pid
    assert pid is not None
    assert pid != get_client().pid
    del model
    gc.collect()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# -- what it must withstand ----------------------------------------------------------------------------

#: A module that says it was made for another version of ggml's interface; one that dies while it is loaded.
OTHER_VERSION = """
struct reg { int api_version; void * iface[4]; void * context; };
static struct reg other = { 1, { 0, 0, 0, 0 }, 0 };
void * ggml_backend_init(void) { return &other; }
int ggml_backend_score(void) { return 1; }
"""
CRASHES = """
#include <stdlib.h>
__attribute__((constructor)) static void begin(void) { abort(); }
void * ggml_backend_init(void) { return 0; }
"""
NO_DEVICE = "void * ggml_backend_init(void) { return 0; }"
NEEDS = "int cuda_is_here(void); void * ggml_backend_init(void) { return (void *) (long) cuda_is_here(); }"


def compile_module(folder: Path, name: str, source: str, *more: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        skip_or_fail("no C compiler")
    code, made = folder / f"{name}.c", folder / f"{name}.so"
    code.write_text(source)
    subprocess.run([str(compiler), "-shared", "-fPIC", str(code), "-o", str(made), *more], check=True)
    return made


@pytest.fixture
def bad_modules(tmp_path: Path, modules: BuildResult) -> dict[str, Path]:
    """One for each way a module can be bad."""
    driver = compile_module(tmp_path, "libcuda", "int cuda_is_here(void) { return 0; }")
    needs = compile_module(tmp_path, "needs", NEEDS, f"-L{tmp_path}", "-lcuda")
    driver.unlink()
    cut = tmp_path / "cut.so"
    whole = Path(module_paths(modules)["rpc"]).read_bytes()
    cut.write_bytes(whole[: len(whole) // 3])
    page = tmp_path / "page.so"
    page.write_text("<html>not found</html>")
    return {
        "crashes": compile_module(tmp_path, "crashes", CRASHES),
        "another version": compile_module(tmp_path, "other", OTHER_VERSION),
        "no device": compile_module(tmp_path, "nothing", NO_DEVICE),
        "no driver": needs,
        "cut off": cut,
        "no module": page,
        "gone": tmp_path / "gone.so",
    }


def test_bad_modules_are_left_out_and_the_rest_works(
    bad_modules: dict[str, Path], modules: BuildResult, spec: ModelSpec
) -> None:
    from llama_magic.engine.protocol import LoadRequest

    paths = [*map(str, bad_modules.values()), module_paths(modules)["blas"]]
    client = EngineClient(BackendSetup(modules=tuple(paths)))
    try:
        info = client.request(LoadRequest(spec))
        assert info.place == "CPU with BLAS"
        told = {problem.what: problem.reason for problem in client.problems}
        assert set(told) == set(map(str, bad_modules.values()))
        words = {
            "crashes": "ended the worker", "another version": "built for another ggml", "no device": "no device or driver",
            "no driver": "NVIDIA driver is missing", "cut off": "damaged or cut off", "no module": "damaged or cut off",
        }  # fmt: skip
        for kind, said in words.items():
            assert said in told[str(bad_modules[kind])], kind
        assert told[str(bad_modules["gone"])]
    finally:
        client.close()


def test_a_module_that_went_bad_is_said_by_the_switch(
    bad_modules: dict[str, Path], modules: BuildResult, spec: ModelSpec
) -> None:
    path = Path(module_paths(modules)["blas"])
    whole = path.read_bytes()
    session = Session()
    session.load()
    try:
        path.write_bytes(whole[:5000])
        with pytest.raises(BackendError, match=r"damaged or cut off: 5,000 of .* %llama build blas"):
            switch_backend(session, "blas")
        row = backends()["blas"]
        assert (row.state, row.fix) == ("broken", "%llama build blas")
        # The same size, so that only the worker finds out.
        path.write_bytes(bad_modules["crashes"].read_bytes()[: len(whole)].ljust(len(whole), b"\0"))
        with pytest.raises(BackendError, match=r"blas.so can not be used: loading it ended the worker"):
            switch_backend(session, "blas")
        assert selected() == STOCK
        assert get_client().request(StatusRequest()) is not None
    finally:
        path.unlink()
        path.write_bytes(whole)
        path.chmod(0o755)


def test_backends_that_are_compiled_in_are_toggled_alike(client: EngineClient) -> None:
    """The CPU's can not be taken out; another one is, by the same call that the stock wheel's would be."""
    names = [backend.name for backend in loaded_backends(client).backends]
    kept = EngineClient(BackendSetup(keep=()))
    try:
        assert [backend.name for backend in loaded_backends(kept).backends] == ["CPU"]
        assert "CPU" in names
        assert kept.problems == ()
    finally:
        kept.close()


def test_a_registered_backend_can_be_taken_out(modules: BuildResult, tmp_path: Path) -> None:
    """In a process of its own, where BLAS stands for what a wheel has inside."""
    code = f"""
from llama_magic.backends.setting_up import run
from llama_magic.backends.setup import BackendSetup, SetUpRequest
from llama_magic.native import LogCapture, WorkerTools
from llama_magic.native.registry import load_module, registered
log = LogCapture()
log.install()
load_module({module_paths(modules)["blas"]!r}, log)
tools = WorkerTools(lambda step: None, lambda: False, log)
print([row.name for row in registered()])
run(SetUpRequest(BackendSetup(keep=("BLAS",))), tools)
print([row.name for row in registered()])
run(SetUpRequest(BackendSetup(keep=("CUDA",))), tools)
print([row.name for row in registered()], [d.name for row in registered() for d in row.devices])
"""
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["['CPU', 'BLAS']", "['CPU', 'BLAS']", "['CPU'] ['CPU']"]


def test_environment_reaches_the_worker(client: EngineClient) -> None:
    made = EngineClient(BackendSetup(environment=(("LLAMA_MAGIC_TEST", "yes"),)))
    try:
        loaded_backends(made)
        assert made.pid is not None
        assert psutil.Process(made.pid).environ()["LLAMA_MAGIC_TEST"] == "yes"
        assert "LLAMA_MAGIC_TEST" not in os.environ
    finally:
        made.close()


def test_every_backend_of_llama_cpp_is_known() -> None:
    from llama_magic.models.source import SOURCE_VARIABLE

    if not os.environ.get(SOURCE_VARIABLE):
        pytest.skip(f"{SOURCE_VARIABLE} names no source to compare with")
    import tarfile

    folders = set()
    with tarfile.open(os.environ[SOURCE_VARIABLE]) as tar:
        for name in tar.getnames():
            parts = name.split("/vendor/llama.cpp/ggml/src/ggml-")
            if len(parts) == 2 and "/" in parts[1]:
                folders.add(parts[1].split("/")[0])
    assert {find_backend(folder).name for folder in folders} == folders
