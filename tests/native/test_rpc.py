"""Devices of other machines: served by another process, used wholly, lost in the middle, cut off from the network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

import llama_magic as lm
from llama_magic.api.backends import loaded_backends, setup_for
from llama_magic.api.rpc import rpc_add, rpc_hosts, rpc_remove, rpc_serve, rpc_stop
from llama_magic.api.session import Ask, Session
from llama_magic.api.switching import reloading
from llama_magic.backends import rpc_hosts as attached
from llama_magic.backends.built import BuildResult
from llama_magic.backends.rpc_check import PROTOCOL, check_host
from llama_magic.backends.rpc_watch import GONE_S
from llama_magic.backends.setup import STOCK, select, selected
from llama_magic.engine.client import EngineClient, get_client, set_client
from llama_magic.errors import EngineCrashed, RpcHostError
from tests.conftest import REPOSITORY, skip_or_fail
from tests.tiny import tiny_llama

GREEDY = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(autouse=True)
def fresh(modules: BuildResult) -> Iterator[None]:
    set_client(EngineClient())
    yield
    rpc_stop()
    for host in attached.attached_hosts():
        attached.detach(host)
    get_client().close()
    set_client(None)
    select(STOCK)


def say(session: Session, text: str = "Count from one to ten.", **sampling: object) -> lm.Completion:
    generation = session.start(Ask(text, sampling={**GREEDY, **sampling}))
    return generation.finish(generation.stream.collect())


def test_a_model_runs_wholly_on_another_process(modules: BuildResult) -> None:
    session = Session()
    session.load()
    here = say(session)
    server = rpc_serve()
    assert server.endpoint.startswith("127.0.0.1:")
    assert server.devices == ("CPU",)
    assert server.pid not in (None, os.getpid(), get_client().pid)
    before = psutil.Process(server.pid).memory_info().rss
    done = reloading(session, lambda: rpc_add(server.endpoint))
    assert [device.name for device in done.devices] == ["CPU", "RPC0"]
    assert done.devices["RPC0"].backend == "rpc"
    assert done.info is not None
    assert done.info.place == "RPC0"
    uses = {use.device: use for use in done.info.uses}
    assert uses["RPC0"].layers == done.info.n_layer + 1
    assert uses["RPC0"].weights > 85 << 20
    assert uses["CPU"].layers == 0
    assert psutil.Process(server.pid).memory_info().rss - before > uses["RPC0"].weights / 2
    there = say(session)
    assert there.text == here.text
    assert there.receipt is not None
    assert there.receipt.place == "RPC0"
    assert f"--rpc {server.endpoint}" in there.receipt.llama_cli
    assert "--rpc" not in here.receipt.llama_cli  # type: ignore[union-attr]
    rows = {row.role: row for row in rpc_hosts()}
    assert (rows["attached"].state, rows["attached"].devices) == ("connected", ("RPC0",))
    assert (rows["served"].state, rows["served"].devices) == ("serving", ("CPU",))
    rpc_remove(server.endpoint)
    assert selected() == STOCK
    assert say(session).receipt.place == "CPU"  # type: ignore[union-attr]
    with pytest.raises(lm.InvalidRequestError, match="is not attached"):
        rpc_remove(server.endpoint)


def test_layers_are_shared_as_asked(modules: BuildResult) -> None:
    first, second = rpc_serve(), rpc_serve()
    assert first.endpoint != second.endpoint
    rpc_add(first.endpoint)
    rpc_add(second.endpoint)
    with lm.load(n_gpu_layers=20, devices=("RPC0", "RPC1"), tensor_split="3,1", n_ctx=512) as model:
        layers = {use.device: use.layers for use in model.info.uses}
        assert layers == {"RPC0": 15, "RPC1": 5, "CPU": 11}
        assert model.info.place == "RPC0 15 of 31 layers, CPU 11 of 31 layers, RPC1 5 of 31 layers"
        assert set(model.devices) == {"RPC0", "RPC1", "CPU"}
    with lm.load(devices=("RPC1",), n_ctx=512) as model:
        assert model.info.place == "RPC1"
    with pytest.raises(lm.InvalidRequestError, match="there is no device 'RPC7'"):
        lm.load(devices=("RPC7",))
    with lm.load(backend="cpu", n_ctx=512) as model:
        assert model.info.place == "CPU"


def test_a_host_that_dies_is_one_clear_error_and_the_next_call_works(modules: BuildResult) -> None:
    session = Session()
    session.load()
    server = rpc_serve()
    reloading(session, lambda: rpc_add(server.endpoint))
    generation = session.start(Ask("Write a long story.", sampling={**GREEDY, "max_tokens": 500, "ignore_eos": True}))
    next(generation.stream)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashed, match=f"RPC host {server.endpoint} was lost while it computed") as caught:
        list(generation.stream)
    assert f"%llama rpc add {server.endpoint}" in str(caught.value)
    answer = say(session)
    assert answer.receipt is not None
    assert answer.receipt.place == "CPU"
    assert any(f"without {server.endpoint}: nothing listens" in note for note in answer.notes)
    assert not any("without" in note for note in say(session).notes)  # said once
    assert rpc_hosts()[0].state == "gone"
    again = rpc_serve(port=int(server.endpoint.rpartition(":")[2]))
    rpc_add(again.endpoint)
    assert say(session).receipt.place == "RPC0"  # type: ignore[union-attr]


def test_what_is_no_host_is_told(modules: BuildResult) -> None:
    import socket

    with pytest.raises(RpcHostError, match="nothing listens"):
        rpc_add("127.0.0.1:9")
    with pytest.raises(RpcHostError, match="no machine named"):
        rpc_add("no.such.machine.invalid:50052")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            peer, _ = other.accept()
            with peer:
                peer.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
                peer.recv(64)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RpcHostError, match="is no RPC host"):
            rpc_add(f"127.0.0.1:{port}")
        thread.join()
    assert attached.attached_hosts() == ()
    assert selected() == STOCK


def test_a_host_serves_one_process_at_a_time(modules: BuildResult, tmp_path: Path) -> None:
    server = rpc_serve()
    found = check_host(server.endpoint)
    assert found.protocol[:2] == PROTOCOL
    assert found.memory[0][1] == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    rpc_add(server.endpoint)
    tiny = tmp_path / "tiny.gguf"
    tiny_llama(tiny)
    model = lm.load(str(tiny), n_ctx=64)  # a connection is held as long as a model is there
    assert model.info.place == "RPC0"
    other = EngineClient(setup_for("rpc"))
    try:
        assert [device.name for device in loaded_backends(other).devices] == ["CPU"]
        assert "one process at a time" in other.problems[0].reason
    finally:
        other.close()


def test_jobs_share_the_host(modules: BuildResult, tmp_path: Path) -> None:
    """What asks about a model is asked where the connection is; what needs a worker of its own gets the host."""
    server = rpc_serve()
    tiny = tmp_path / "tiny.gguf"
    tiny_llama(tiny)
    session = Session()
    session.load(str(tiny), {"n_ctx": 64})
    reloading(session, lambda: rpc_add(server.endpoint))
    pid = get_client().pid
    report = lm.fit(str(tiny), n_ctx=64)
    assert [device.name for device in report.devices] == ["CPU", "RPC0"]
    assert get_client().pid == pid
    matrix = lm.imatrix(str(tiny), "a quick brown fox " * 40, out=tmp_path / "m.gguf", n_ctx=64)
    assert matrix.is_file()
    assert session.loaded() == ()
    assert say(session).receipt.place == "RPC0"  # type: ignore[union-attr]


def test_a_port_in_use_is_told(modules: BuildResult) -> None:
    server = rpc_serve()
    with pytest.raises(RpcHostError, match=r"can not listen at .*; --port names another"):
        rpc_serve(port=int(server.endpoint.rpartition(":")[2]))
    with pytest.raises(RpcHostError, match="no address of this machine"):
        rpc_serve("no.such.machine.invalid")
    with pytest.raises(lm.InvalidRequestError, match="there is CPU"):
        rpc_serve(devices=["CUDA7"])
    pid = server.pid
    assert rpc_stop() == (server.endpoint,)
    assert pid is not None
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# -- two machines: network namespaces --------------------------------------------------------------------


@dataclass
class Machine:
    """A network namespace with an RPC host in it, joined to this one by a pair of interfaces."""

    name: str
    link: str
    number: int
    host: subprocess.Popen[str] | None = field(default=None)

    @property
    def address(self) -> str:
        return f"10.213.{self.number}.2"

    def start(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("addr", "add", f"10.213.{self.number}.1/24", "dev", self.link)
        ip("link", "set", self.link, "up")
        inside = ("netns", "exec", self.name, "ip")
        ip(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip(*inside, "link", "set", "eth0", "up")
        ip(*inside, "link", "set", "lo", "up")
        code = (
            "import sys, llama_magic.api.rpc as rpc\n"
            f"server = rpc.rpc_serve({self.address!r})\n"
            "print(server.endpoint, server.is_open, flush=True)\n"
            "sys.stdin.read()\n"
        )
        self.host = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", code], cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        )  # fmt: skip
        assert self.host.stdout is not None
        assert self.host.stdout.readline() == f"{self.address}:50052 True\n"

    def cut(self) -> None:
        """Pull the plug: nothing arrives any more, and nobody says so."""
        ip("netns", "exec", self.name, "ip", "link", "set", "eth0", "down")

    def end(self) -> None:
        if self.host is not None:
            self.host.communicate()
        subprocess.run(["ip", "netns", "del", self.name], check=False)
        subprocess.run(["ip", "link", "del", self.link], check=False, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two machines beside this one."""
    if shutil.which("ip") is None:
        skip_or_fail("no ip (package iproute2)")
    made = [Machine(f"lm-{os.getpid()}-{n}", f"lm{os.getpid() % 100000}v{n}", n) for n in (1, 2)]
    try:
        ip("netns", "add", "lm-probe")
        ip("netns", "del", "lm-probe")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces need root: {error.stderr.strip()}")
    try:
        for machine in made:
            machine.start()
        yield made
    finally:
        for machine in made:
            machine.end()


@pytest.mark.slow
def test_a_host_is_cut_off_in_the_middle(machines: list[Machine], modules: BuildResult) -> None:
    near, far = machines
    session = Session()
    session.load(None, {"tensor_split": (1, 1)})
    here = say(session)
    reloading(session, lambda: rpc_add(near.address))
    done = reloading(session, lambda: rpc_add(far.address))
    assert done.info is not None
    layers = {use.device: use.layers for use in done.info.uses}
    assert layers["RPC0"] + layers["RPC1"] == 31
    assert min(layers["RPC0"], layers["RPC1"]) >= 15
    assert say(session).text == here.text
    generation = session.start(Ask("Write a long story.", sampling={**GREEDY, "max_tokens": 900, "ignore_eos": True}))
    next(generation.stream)
    far.cut()
    cut = time.monotonic()
    with pytest.raises(EngineCrashed, match=f"RPC host {far.address}:50052 was lost while it computed"):
        list(generation.stream)
    assert time.monotonic() - cut < 3 * GONE_S
    answer = say(session)  # the kernel lives, and what is left works
    assert answer.text == here.text
    assert answer.receipt is not None
    assert answer.receipt.place == "RPC0"
    assert any(far.address in note for note in answer.notes)
    assert [row.state for row in rpc_hosts()] == ["connected", "gone"]


def test_the_protocol_is_the_source_s(tmp_path: Path) -> None:
    import re
    import tarfile

    from llama_magic.models.source import SOURCE_VARIABLE

    if not os.environ.get(SOURCE_VARIABLE):
        pytest.skip(f"{SOURCE_VARIABLE} names no source to compare with")
    with tarfile.open(os.environ[SOURCE_VARIABLE]) as tar:
        member = next(row for row in tar if row.name.endswith("/ggml/include/ggml-rpc.h"))
        file = tar.extractfile(member)
        assert file is not None
        text = file.read().decode()
    numbers = [int(re.search(rf"RPC_PROTO_{part}_VERSION +(\d+)", text)[1]) for part in ("MAJOR", "MINOR")]  # type: ignore[index]
    assert tuple(numbers) == PROTOCOL
