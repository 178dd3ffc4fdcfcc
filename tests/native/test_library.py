"""The library of models as users have it: the network is asked in a worker, which can be stopped at any moment."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import llama_magic as lm
from llama_magic.api.locate import locate
from llama_magic.engine.client import set_client
from llama_magic.models.hub_cache import repo_folder
from llama_magic.progress import Progress
from tests.gguf import write_gguf
from tests.hub import TOKEN, Hub

REPO = "owner/model-GGUF"
FILE = "model-Q4_K_M.gguf"
DATA = random.Random(1).randbytes(3_000_000)


@contextmanager
def interrupt_when(condition: Callable[[], bool]) -> Iterator[list[float]]:
    """Send SIGINT to this process once the condition holds; yields the list that gets the time of it."""
    sent: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if condition():
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()


def partial_size(repo: str = REPO) -> int:
    """Bytes of what is not finished yet."""
    return sum(path.stat().st_size for path in (repo_folder(repo) / "blobs").glob("*.incomplete"))


@pytest.mark.parametrize("where", ["content", "answer", "list"])
def test_a_slow_server_is_left_within_a_second_and_gone_on_with_later(hub: Hub, where: str) -> None:
    hub.add(REPO, {FILE: DATA})
    if where == "content":
        fault = hub.fault(FILE, where="storage", stall=1_000_000, times=1)
        ready = lambda: partial_size() >= 900_000  # noqa: E731
    elif where == "answer":
        fault = hub.fault(FILE, where="storage", stall=0, times=1)
        ready = lambda: fault.used > 0  # noqa: E731
    else:
        fault = hub.fault("/api/models", hold=True, times=1)
        ready = lambda: fault.used > 0  # noqa: E731
    with (
        interrupt_when(ready) as sent,
        pytest.raises(lm.JobInterrupted, match="what came is kept"),
    ):
        lm.download(REPO)
    assert time.monotonic() - sent[0] < 1.0
    kept = partial_size()
    path = lm.download(REPO)
    assert path.read_bytes() == DATA
    if where == "content":
        assert kept >= 900_000
        assert hub.ranges == [f"bytes={kept}-"]


def test_a_worker_that_is_killed_loses_nothing_that_came(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_magic.engine import jobs
    from llama_magic.engine.client import EngineClient

    hub.add(REPO, {FILE: DATA})
    hub.fault(FILE, where="storage", stall=1_000_000, times=1)
    clients: list[EngineClient] = []

    def make() -> EngineClient:
        clients.append(EngineClient())
        return clients[-1]

    monkeypatch.setattr(jobs, "_make_client", make)

    def kill() -> None:
        while partial_size() < 900_000:
            time.sleep(0.02)
        pid = clients[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(lm.EngineCrashed):
        lm.download(REPO)
    killer.join()
    kept = partial_size()
    assert lm.download(REPO).read_bytes() == DATA
    assert hub.ranges == [f"bytes={kept}-"]


def test_what_the_environment_says_now_holds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA}, private=True)
    with pytest.raises(lm.ModelNotFoundError, match="set HF_TOKEN"):
        lm.download(REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(lm.DownloadError, match="HF_HUB_OFFLINE is set"):
        lm.download(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert lm.download(REPO).read_bytes() == DATA
    assert hub.leaks == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate(f"{REPO}:Q4_K_M") == str(locate(REPO))


def test_search_tells_sizes_and_downloads(hub: Hub) -> None:
    hub.add("a/tiny-GGUF", {"t.Q8_0.gguf": DATA[:5000], "t.Q4_K_M.gguf": DATA[:3000]}, downloads=5)
    hub.add("b/tiny-large-GGUF", {"x-Q2_K-00001-of-00002.gguf": DATA[:2000], "x-Q2_K-00002-of-00002.gguf": DATA[:1500]},
            downloads=5000, gated=True, license="mit")  # fmt: skip
    hub.add("c/tiny-text", {"model.safetensors": DATA}, tags=("pytorch",))
    hub.add("d/other-GGUF", {"o.gguf": DATA})
    hub.add('e/tiny"><script>-GGUF', {"o.gguf": DATA})
    seen: list[Progress] = []
    found = lm.search("tiny", progress=seen.append)
    assert [(hit.repo, hit.downloads, hit.size, hit.quants, hit.gated, hit.licence) for hit in found] == [
        ("b/tiny-large-GGUF", 5000, 3500, ("Q2_K",), True, "mit"),
        ("a/tiny-GGUF", 5, 3000, ("Q4_K_M", "Q8_0"), False, "apache-2.0"),
    ]
    assert found[0].n_params == 134515008
    assert seen
    assert len(lm.search("tiny", limit=1)) == 1
    assert "no GGUF repository" in repr(lm.search("nothing-like-it"))
    hub.fault("/api/models/a/", status=404)
    assert {hit.repo: hit.size for hit in lm.search("tiny")} == {"b/tiny-large-GGUF": 3500, "a/tiny-GGUF": 0}
    with pytest.raises(lm.InvalidRequestError, match="needs words"):
        lm.search("  ")


@pytest.mark.smollm2
def test_loading_a_model_of_the_hub_downloads_it_and_deleting_unloads_it(hub: Hub, smollm2_path: Path) -> None:
    hub.add(REPO, {"SmolLM2.Q4_1.gguf": smollm2_path.read_bytes()})
    set_client(None)
    seen: list[Progress] = []
    with lm.load(f"{REPO}:q4_1", n_ctx=256, progress=seen.append) as model:
        stages = list(dict.fromkeys(step.stage for step in seen))
        assert stages[0] == "download"
        assert "load" in stages
        assert model.generate("Hi", max_tokens=4, temperature=0).text
        (listed,) = [one for one in lm.models() if one.place == "Hub"]
        assert (listed.ref, listed.ftype, listed.n_params) == (f"{REPO}:Q4_1", "Q4_1", 134515008)
        freed = lm.delete(listed.ref)
        assert freed == smollm2_path.stat().st_size
    assert not repo_folder(REPO).exists()


def test_a_wrong_file_is_told_at_loading(hub: Hub, tmp_path: Path) -> None:
    good = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}).read_bytes()
    hub.add(REPO, {FILE: good.ljust(5000, b"\0")})
    hub.fault(FILE, where="storage", corrupt=True)
    with pytest.raises(lm.DownloadError, match="did not arrive"):
        lm.load(REPO)
