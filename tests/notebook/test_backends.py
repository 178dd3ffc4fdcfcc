"""`%llama backends`, `backend`, `devices`, `build` and `rpc`, with modules that were really built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama_magic as lm
from llama_magic.api.rpc import rpc_stop
from llama_magic.api.session import Session
from llama_magic.backends import rpc_hosts
from llama_magic.backends.built import BuildResult
from llama_magic.backends.setup import STOCK, select
from llama_magic.engine.client import EngineClient, get_client, set_client
from llama_magic.notebook import asking
from llama_magic.notebook.commands import Context
from llama_magic.notebook.complete import candidates
from llama_magic.notebook.subcommands import SUBCOMMANDS
from tests.tiny import tiny_llama


@pytest.fixture
def session() -> Iterator[Session]:
    set_client(EngineClient())
    yield Session()
    rpc_stop()
    for host in rpc_hosts.attached_hosts():
        rpc_hosts.detach(host)
    get_client().close()
    set_client(None)
    select(STOCK)


def say(session: Session, line: str) -> Any:
    name, _, rest = line.partition(" ")
    context = Context(session, None, lambda _step: None)  # type: ignore[arg-type]
    return SUBCOMMANDS[name].action()(context, SUBCOMMANDS[name].parse(rest))


def error(session: Session, line: str) -> str:
    with pytest.raises(lm.LlamaMagicError) as caught:
        say(session, line)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_from_seeing_to_another_process(session: Session, modules: BuildResult, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.gguf"
    tiny_llama(tiny)
    assert say(session, "backends")["blas"].state == "built"
    assert say(session, "backend").startswith("Backends: default. Devices: CPU.")
    assert "CPU, 2 threads" in say(session, f"load {tiny} -c 64").replace("1 thread", "2 threads")
    assert re.match(r"Backends: blas \(CPU, BLAS\)\.\ntiny is loaded again, on CPU", say(session, "backend blas"))
    assert [device.name for device in say(session, "devices")] == ["CPU", "BLAS"]
    assert "loaded in" in say(session, f"load {tiny} -c 64 --backend cpu")
    assert session.info is not None
    served = say(session, "rpc serve --device CPU --threads 1")
    endpoint = re.search(r"at (127\.0\.0\.1:\d+)", served)
    assert endpoint is not None
    port = endpoint[1].rpartition(":")[2]
    assert f"ssh -N -L {port}:127.0.0.1:{port}" in served
    assert "WARNING" not in served
    say(session, f"load {tiny} -c 64")
    added = say(session, f"rpc add {endpoint[1]}")
    assert "Backends: blas,rpc (CPU, BLAS, RPC0)." in added
    assert "on RPC0" in added
    assert [row.state for row in say(session, "rpc")] == ["connected", "serving"]
    removed = say(session, f"rpc remove {endpoint[1]}")
    assert "Backends: blas (CPU, BLAS)." in removed
    assert say(session, "rpc stop") == f"Stopped {endpoint[1]}."
    assert say(session, "rpc stop") == "No host is served from this kernel."
    assert say(session, "backend default").startswith("Backends: default (CPU).")


def test_a_host_that_others_can_reach_comes_with_a_warning(session: Session, modules: BuildResult) -> None:
    served = say(session, "rpc serve --host 0.0.0.0")
    assert "WARNING: the protocol has no authentication" in served
    assert "ssh -N -L" in served
    assert say(session, "rpc stop").startswith("Stopped 0.0.0.0:")


def test_mistakes(session: Session, modules: BuildResult) -> None:
    assert "Did you mean vulkan?" in error(session, "backend vulcan")
    assert "%llama build opencl" in error(session, "backend opencl")
    assert "needs a backend" in error(session, "build")
    assert "%llama build --wheel cpu" in error(session, "build cpu")
    assert "NAME=VALUE" in error(session, "build rpc -DGGML_RPC")
    assert "-D only" in error(session, "build --wheel rpc --jobs 2")
    assert "Did you mean serve?" in error(session, "rpc server")
    assert "rpc add needs a host" in error(session, "rpc add")
    assert "takes flags only" in error(session, "rpc serve 0.0.0.0")
    assert "belong to rpc serve" in error(session, "rpc list --port 5")
    assert "nothing listens" in error(session, "rpc add 127.0.0.1:9")
    assert "there is no device 'Vulkan7'" in error(session, "load smollm2 -dev Vulkan7")


def test_the_wheel_is_built_only_after_a_yes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _question: "n")
    assert say(session, "build --wheel rpc") == "Nothing was built."

    def nobody(_question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    assert "add --yes" in error(session, "build --wheel rpc")
    assert asking.__doc__


def test_completion() -> None:
    assert candidates(" backend vul", cell=False) == ("vul", ["vulkan"])
    assert candidates(" build o", cell=False)[1] == ["opencl", "openvino"]
    assert candidates(" load --backend bl", cell=False)[1] == ["blas"]
    assert candidates(" rpc s", cell=False)[1] == ["serve", "stop"]
