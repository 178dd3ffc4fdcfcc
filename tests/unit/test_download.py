"""Downloads from a Hub on this machine, with everything that goes wrong with real ones."""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_magic.errors import DiskFullError, DownloadError, JobInterrupted, ModelNotFoundError
from llama_magic.models.download import Download, DownloadRequest, download
from llama_magic.models.hub_cache import find_cached, repo_folder
from llama_magic.models.places import hub_cache
from llama_magic.models.references import HubReference, parse_hub
from llama_magic.models.resolve import resolve
from llama_magic.models.transfer import Transfer
from llama_magic.progress import Progress
from tests.hub import TOKEN, Hub

REPO = "owner/model-GGUF"
FILE = "model-Q4_K_M.gguf"
DATA = random.Random(0).randbytes(1_500_000)


def fetch(ref: str = f"hf:{REPO}", **more: Any) -> Download:
    """Download without long pauses between the tries."""
    reference = parse_hub(ref)
    assert reference is not None
    patterns = more.pop("patterns", ())
    return download(DownloadRequest(reference, patterns, pause_s=0.001), **more)


def blobs() -> list[str]:
    """Names of all contents in the cache, whole or not."""
    folder = repo_folder(REPO) / "blobs"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def nothing_final() -> bool:
    """Tell that no file has come under its final name."""
    whole = [name for name in blobs() if not name.endswith(".incomplete")]
    snapshots = repo_folder(REPO) / "snapshots"
    return not whole and not (snapshots.exists() and any(path.is_file() for path in snapshots.rglob("*")))


def test_a_file_comes_whole_and_other_tools_find_it(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

    repo = hub.add(REPO, {FILE: DATA, "model-Q8_0.gguf": DATA[::-1], "README.md": b"read me"})
    seen: list[Progress] = []
    done = fetch(report=seen.append)
    assert done.path.read_bytes() == DATA
    assert (done.size, done.transferred, done.commit, done.licence) == (len(DATA), len(DATA), repo.sha, "apache-2.0")
    assert hub.sent - len(DATA) < 10_000
    assert seen[-1].fraction == 1.0
    assert "1.43 MiB of 1.43 MiB" in seen[-1].message
    fractions = [step.fraction for step in seen if step.fraction is not None]
    assert fractions == sorted(fractions)

    sent = hub.sent
    assert Path(hf_hub_download(REPO, FILE)) == done.path
    assert try_to_load_from_cache(REPO, FILE) == str(done.path)
    (cached,) = scan_cache_dir(hub_cache()).repos
    assert (cached.repo_id, cached.size_on_disk, cached.nb_files) == (REPO, len(DATA), 1)
    assert hub.sent - sent < 1000
    again = fetch()
    assert (again.path, again.transferred) == (done.path, 0)


def test_what_another_tool_fetched_is_not_fetched_again(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hub.add(REPO, {FILE: DATA})
    path = hf_hub_download(REPO, FILE)
    sent = hub.sent
    requests = len(hub.requests)
    assert resolve(f"{REPO}:q4_k_m") == path
    assert len(hub.requests) == requests
    assert fetch().transferred == 0
    assert hub.sent - sent < 2000


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_cut_at_random_bytes_it_goes_on_where_it_stopped(hub: Hub, reset: bool) -> None:
    hub.add(REPO, {FILE: DATA})
    cuts = random.Random(reset)
    for _ in range(20):
        hub.fault(FILE, where="storage", times=1, cut=cuts.randrange(1, len(DATA) // 20), reset=reset)
    done = fetch()
    assert done.path.read_bytes() == DATA
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in hub.ranges]
    assert len(starts) == 20
    assert starts == sorted(starts)
    # A reset may throw away what was on its way; a close may not.
    assert hub.sent - len(DATA) < (1 << 20 if reset else 10_000)


def test_a_server_that_cuts_for_ever_is_given_up(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA})
    hub.fault(FILE, where="storage", cut=0)
    with pytest.raises(DownloadError, match="can not be reached.*goes on where it stopped"):
        fetch()
    assert len(hub.gets(f"{FILE}?Signature=x")) == 5
    assert nothing_final()


def test_stopped_and_taken_up_again(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA})
    fault = hub.fault(FILE, where="storage", rate=600_000, times=1)
    stop = threading.Event()

    def report(progress: Progress) -> None:
        if (progress.fraction or 0) > 0.1:
            stop.set()

    with pytest.raises(JobInterrupted):
        fetch(report=report, cancelled=stop.is_set)
    assert nothing_final()
    assert fault.used == 1
    done = fetch()
    assert done.path.read_bytes() == DATA
    kept = len(DATA) - done.transferred
    assert 150_000 <= kept < len(DATA)
    assert hub.ranges == [f"bytes={kept}-"]
    assert blobs() == [hashlib.sha256(DATA).hexdigest()]


def test_wrong_content_is_refused_and_nothing_is_left(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA})
    fault = hub.fault(FILE, where="storage", corrupt=777_777)
    with pytest.raises(DownloadError, match="did not arrive as the Hub has it.*thrown away"):
        fetch()
    assert nothing_final()
    assert blobs() == []
    fault.times = 0
    assert fetch().path.read_bytes() == DATA


def test_a_wrong_start_from_before_is_fetched_anew(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA})
    partial = repo_folder(REPO) / "blobs" / f"{hashlib.sha256(DATA).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"wrong" * 1000)
    assert fetch().path.read_bytes() == DATA
    partial.write_bytes(bytes(len(DATA) + 1))
    (partial.parent / partial.stem).unlink()
    assert fetch().path.read_bytes() == DATA
    assert not partial.exists()


def test_a_whole_partial_needs_nothing_but_its_checksum(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA})
    partial = repo_folder(REPO) / "blobs" / f"{hashlib.sha256(DATA).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA)
    done = fetch()
    assert done.path.read_bytes() == DATA
    assert done.transferred == 0
    assert hub.gets(f"{FILE}?Signature=x") == []


def test_a_server_without_ranges_is_taken_from_the_start(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA})
    hub.fault(FILE, where="storage", times=1, cut=500_000)
    hub.fault(FILE, where="storage", no_ranges=True)
    assert fetch().path.read_bytes() == DATA


def test_more_than_there_should_be_is_refused(hub: Hub) -> None:
    repo = hub.add(REPO, {FILE: DATA})
    real = repo.files[FILE]
    longer = hub.add("other/long", {FILE: DATA + b"more"})
    hub.fault(FILE, where="hub", redirect=f"{hub.storage_url}/other/long/{real.sha256}/{FILE}")
    assert longer.files[FILE].size == len(DATA) + 4
    with pytest.raises(DownloadError, match="sends more"):
        fetch()
    assert blobs() == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_errors_that_pass_are_waited_for(hub: Hub, status: int) -> None:
    hub.add(REPO, {FILE: DATA})
    hub.fault("/api/models", times=2, status=status)
    hub.fault("/resolve/", times=2, status=status, headers={"Retry-After": "0"})
    hub.fault(FILE, where="storage", times=2, status=status)
    assert fetch().path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "words"),
    [(429, "too many requests.*HF_TOKEN"), (500, r"fails at the moment \(500\)"), (503, "fails at the moment")],
)
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_errors_that_stay_come_to_an_end(hub: Hub, status: int, words: str, where: str) -> None:
    hub.add(REPO, {FILE: DATA})
    fault = hub.fault(where, status=status)
    with pytest.raises(DownloadError, match=words):
        fetch()
    assert fault.used == 5
    assert nothing_final()


def test_a_long_wait_is_told_and_not_waited(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA})
    fault = hub.fault("/api/", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(DownloadError, match="Try again in 3600 s"):
        fetch()
    assert fault.used == 1


def test_gated_private_and_unknown_repositories(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA}, gated=True)
    hub.add("owner/secret", {FILE: DATA}, private=True)
    with pytest.raises(DownloadError, match=rf"is gated: accept its licence at {hub.url}/{REPO}, then set HF_TOKEN"):
        fetch()
    with pytest.raises(ModelNotFoundError, match="no repository owner/secret on the Hub, or it is private: set HF_TOK"):
        fetch("hf:owner/secret")
    with pytest.raises(ModelNotFoundError, match="no repository owner/nothing"):
        fetch("hf:owner/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DownloadError, match="does not know the token in HF_TOKEN"):
        fetch()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch().path.read_bytes() == DATA
    assert fetch("hf:owner/secret").path.read_bytes() == DATA
    with pytest.raises(ModelNotFoundError, match="the account of HF_TOKEN can not see it"):
        fetch("hf:owner/nothing")
    hub.fault("/api/", status=403)
    with pytest.raises(DownloadError, match=r"\(403\): the token may not read it"):
        fetch()


def test_gated_for_this_account_too(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fault("/resolve/", status=403, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(DownloadError, match="the account of HF_TOKEN has no access yet"):
        fetch()


def test_the_token_stays_with_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA}, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch()
    assert hub.leaks == []
    asked = [request for request in hub.requests if request.where == "hub"]
    assert asked
    assert all(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in asked)
    stored = [request for request in hub.requests if request.where == "storage"]
    assert stored
    assert not any("authorization" in request.headers for request in stored)


def test_a_revision_is_pinned(hub: Hub) -> None:
    repo = hub.add(REPO, {FILE: DATA}, branches=("main", "v1", "refs/pr/2"))
    assert fetch(f"hf:{REPO}@v1").commit == repo.sha
    assert (repo_folder(REPO) / "refs" / "v1").read_text() == repo.sha
    assert fetch(f"hf:{REPO}/{FILE}@refs/pr/2").transferred == 0
    assert fetch(f"hf:{REPO}@{repo.sha}").transferred == 0
    assert find_cached(HubReference(REPO, quant="q4_k_m", revision=repo.sha)) is not None
    with pytest.raises(ModelNotFoundError, match="no revision 'v2'"):
        fetch(f"hf:{REPO}@v2")
    # An older commit goes on meaning the older file.
    old, path = repo.sha, fetch(f"hf:{REPO}@{repo.sha}").path
    hub.add(REPO, {FILE: DATA[::-1]})
    assert fetch().path.read_bytes() == DATA[::-1]
    assert resolve(f"{REPO}:Q4_K_M@{old}") == str(path)
    assert path.read_bytes() == DATA


def test_parts_of_a_split_model_come_side_by_side(hub: Hub) -> None:
    names = [f"big-Q4_K_M-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    contents = {name: DATA[number * 300_000 :][:300_000] for number, name in enumerate(names)}
    hub.add(REPO, contents)
    for name in names[1:]:
        hub.fault(name, where="storage", times=1, cut=50_000)
    together = threading.Barrier(3, timeout=20)
    real = Transfer.run

    def run(self: Any) -> None:
        together.wait()
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transfer, "run", run)
        done = fetch()
    assert done.path.name == names[0]
    assert done.size == 900_000
    assert {path.name: path.read_bytes() for path in done.path.parent.iterdir()} == contents
    with pytest.raises(ModelNotFoundError, match=r"part 2 of 3: name the first, .*-00001-of-00003\.gguf"):
        fetch(f"hf:{REPO}/{names[1]}")
    hub.add("owner/half", {names[0]: DATA})
    with pytest.raises(ModelNotFoundError, match="only some parts.*00002-of-00003"):
        fetch("hf:owner/half")


def test_one_bad_part_stops_the_others(hub: Hub) -> None:
    names = [f"big-Q4_K_M-{number:05}-of-00002.gguf" for number in (1, 2)]
    hub.add(REPO, {name: DATA + name.encode() for name in names})
    hub.fault(names[0], where="storage", rate=100_000)
    hub.fault(names[1], where="storage", corrupt=True)
    with pytest.raises(DownloadError, match=f"{names[1]} did not arrive"):
        fetch()
    assert nothing_final()


def test_files_by_pattern(hub: Hub) -> None:
    hub.add(REPO, {"config.json": b"{}", "model.safetensors": DATA, "pytorch_model.bin": DATA, "sub/vocab.json": b"[]"})
    done = fetch(patterns=("*.json", "*.safetensors"))
    assert sorted(path.relative_to(done.path).as_posix() for path in done.path.rglob("*") if path.is_file()) == [
        "config.json", "model.safetensors", "sub/vocab.json",
    ]  # fmt: skip
    assert (done.path / "sub" / "vocab.json").read_bytes() == b"[]"
    with pytest.raises(ModelNotFoundError, match="no files like"):
        fetch(patterns=("*.onnx",))


@pytest.mark.parametrize("name", ["../../../escape.gguf", "..\\escape.gguf", "/escape.gguf", "a//b.gguf", "C:x.gguf"])
def test_names_that_lead_out_are_refused(hub: Hub, fresh_home: Path, name: str) -> None:
    hub.add(REPO, {name: DATA})
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file"):
        fetch()
    assert not list(fresh_home.rglob("*escape*"))
    assert parse_hub(f"hf:{REPO}/{name}") is None


def test_a_hash_that_leads_out_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> None:
    repo = hub.add(REPO, {FILE: DATA})
    monkeypatch.setattr(type(repo.files[FILE]), "sha256", property(lambda _self: "../../../escape"))
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file"):
        fetch()
    assert not list(fresh_home.rglob("*escape*"))


def test_too_little_room_is_told_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA})
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 10**6))
    with pytest.raises(DiskFullError, match=r"needs 1\.43 MiB and 977 KiB are free.*HF_HUB_CACHE"):
        fetch()
    assert hub.gets(f"{FILE}?Signature=x") == []


def test_a_disk_that_fills_up_leaves_nothing_under_the_final_name(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA})
    real: Callable[..., None] = Transfer._write

    def write(self: Any, out: Any, block: bytes) -> None:
        if self._have > 700_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, out, block)

    with monkeypatch.context() as patch:
        patch.setattr(Transfer, "_write", write)
        with pytest.raises(DiskFullError, match="is full: free some space"):
            fetch()
    assert blobs() == []
    assert nothing_final()
    assert fetch().path.read_bytes() == DATA


def test_almost_full_stops_and_keeps_what_came(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {FILE: DATA})
    usage, calls = type(shutil.disk_usage("/")), iter([10**12, 10**12, 10**12])
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**12, 0, next(calls, 10**6)))
    with pytest.raises(DiskFullError, match="almost full.*What came is kept"):
        fetch()
    assert nothing_final()
    (partial,) = (repo_folder(REPO) / "blobs").iterdir()
    assert partial.stat().st_size > 0
    monkeypatch.undo()


def test_what_is_missing_is_named_with_what_there_is(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA, "model-Q8_0.gguf": DATA})
    with pytest.raises(ModelNotFoundError, match=r"no Q4_K_S\. Did you mean Q4_K_M\? It has: Q4_K_M, Q8_0"):
        fetch(f"hf:{REPO}:Q4_K_S")
    with pytest.raises(ModelNotFoundError, match=r"Did you mean model-Q8_0\.gguf\?"):
        fetch(f"hf:{REPO}/model-Q8_1.gguf")


def test_without_the_hub_what_is_here_will_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, {"model-Q8_0.gguf": DATA})
    path = fetch(f"hf:{REPO}:Q8_0").path
    assert resolve(f"{REPO}:q8_0") == str(path)
    asked = len(hub.requests)
    assert resolve(REPO) == str(path)
    assert len(hub.requests) > asked, "the Hub may have got the default quantization meanwhile"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(REPO) == str(path)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        resolve(f"{REPO}:Q2_K")


def test_a_second_download_waits_for_the_first(hub: Hub) -> None:
    hub.add(REPO, {FILE: DATA})
    hub.fault(FILE, where="storage", rate=1_500_000)
    done: list[Download] = []
    threads = [threading.Thread(target=lambda: done.append(fetch())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(one.transferred for one in done) == [0, 0, len(DATA)]
    assert len(hub.gets(f"{FILE}?Signature=x")) == 1
