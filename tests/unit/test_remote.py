"""Reading the header of a file on the Hub, and no more of it."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

import pytest

from llama_magic.errors import DownloadError, InvalidModelError, ModelNotFoundError
from llama_magic.models import remote
from llama_magic.models.gguf import read_metadata
from llama_magic.models.references import HubReference
from llama_magic.models.remote import inspect_hub, read_remote
from llama_magic.progress import Progress
from tests.gguf import Tensor, write_gguf, write_split
from tests.hub import TOKEN, Hub, Sparse

REPO = "tiny/model-GGUF"
FILE = "model.Q8_0.gguf"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSES", (0, 0, 0))


@pytest.fixture
def head(tmp_path: Path) -> bytes:
    """The header of a model of 40 GB, with a vocabulary of 1.5 MB."""
    values = {
        "general.architecture": "llama",
        "general.file_type": 7,
        "llama.block_count": 1,
        "tokenizer.ggml.tokens": [f"token {number}" for number in range(80_000)],
        "tokenizer.ggml.bos_token_id": 77_777,
        "tokenizer.chat_template": "{{ messages }}",
    }
    tensors: list[Tensor] = [("token_embd.weight", (64, 3), 0, b"\1" * 768)]
    data = write_gguf(tmp_path / "head.gguf", values, tensors).read_bytes()[:-768]
    # the same tensor with 10,000,000,000 weights
    small = struct.pack("<QQI", 64, 3, 0)
    assert data.count(small) == 1
    return data.replace(small, struct.pack("<QQI", 100_000, 100_000, 0))


@pytest.fixture
def large(hub: Hub, head: bytes) -> Hub:
    hub.add(REPO, {FILE: Sparse(head, len(head) + 40_000_000_000), "README.md": b"a model"})
    return hub


def sent(hub: Hub, least: int) -> int:
    """Bytes that the Hub sent, once it has counted as many as arrived: it counts a block after sending it."""
    deadline = time.monotonic() + 10
    while hub.sent < least and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return hub.sent


def test_a_file_of_40_gb_costs_its_header(large: Hub, head: bytes) -> None:
    found = inspect_hub(HubReference(REPO))
    assert found.path == f"hf:{REPO}/{FILE}"
    assert found.n_params == 10_000_000_000
    assert found.file_size == len(head) + 40_000_000_000
    assert found.n_vocab == 80_000
    assert found.special_tokens == {"bos": "token 77777"}
    assert len(head) < found.transferred == large.sent < 2 * len(head) + (512 << 10)
    assert list(dict.fromkeys(large.ranges)) == [f"bytes=0-{(512 << 10) - 1}", f"bytes={512 << 10}-{(3 << 19) - 1}"]
    assert not large.leaks


def test_agrees_with_the_same_file_on_disk(hub: Hub, smollm2_path: Path) -> None:
    hub.add(REPO, {FILE: smollm2_path.read_bytes()})
    here, there = read_metadata(smollm2_path), read_remote(REPO, FILE)
    assert there.values == here.values
    assert there.tensors == here.tensors
    assert there.special_tokens == here.special_tokens
    assert there.data_offset == here.data_offset
    assert sent(hub, there.transferred) == there.transferred < 4_000_000


def test_a_vocabulary_of_262_000_tokens_takes_at_most_8_mb(hub: Hub, tmp_path: Path) -> None:
    # As large as Gemma 3's: 262,144 tokens, each with a score and a type.
    count = 262_144
    values = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.tokens": [f"{number:08}" for number in range(count)],
        "tokenizer.ggml.scores": [0.0] * count,
        "tokenizer.ggml.token_type": [1] * count,
        "tokenizer.ggml.bos_token_id": count - 1,
    }
    data = write_gguf(tmp_path / "gemma.gguf", values, [("token_embd.weight", (64,), 0, b"\1" * 256)]).read_bytes()
    hub.add(REPO, {FILE: data + bytes(12 << 20)})
    found = read_remote(REPO, FILE)
    assert found.special_tokens == {"bos": "00262143"}
    assert sent(hub, found.transferred) == found.transferred <= 8_000_000


def test_the_cache_is_asked_first(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / FILE, {"general.architecture": "llama"})
    hub.add(REPO, {FILE: path.read_bytes()})
    monkeypatch.setattr(remote, "find_cached", lambda _reference: path)
    assert inspect_hub(HubReference(REPO, FILE)).path == str(path)
    assert not hub.requests


def test_split_files(hub: Hub, tmp_path: Path) -> None:
    files = write_split(tmp_path, 3)
    hub.add(REPO, {path.name: path.read_bytes() for path in files})
    found = inspect_hub(HubReference(REPO))
    assert [tensor.part for tensor in found.tensors] == [0, 1, 2]
    assert found.parts == tuple(f"hf:{REPO}/{path.name}" for path in files)
    assert found.file_size == sum(path.stat().st_size for path in files)
    assert found.tensors == read_metadata(files[0]).tensors
    del hub.repos[REPO].files[files[2].name]
    with pytest.raises(InvalidModelError, match="part 3 of 3 is missing"):
        read_remote(REPO, files[0].name)


def test_a_token_goes_to_the_hub_only(large: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    large.repos[REPO].gated = True
    inspect_hub(HubReference(REPO))
    asked = [request for request in large.requests if request.where == "hub"]
    assert all(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in asked)
    assert [request for request in large.requests if request.where == "storage"]
    assert not large.leaks


def test_without_ranges_it_stops_before_it_downloads(large: Hub) -> None:
    large.fault(FILE, where="storage", no_ranges=True, rate=50e6)
    with pytest.raises(DownloadError, match=r"gives only whole files.* 37.3 GiB.*%llama download"):
        read_remote(REPO, FILE)
    assert large.sent < 30_000_000


def test_a_small_file_without_ranges_is_read(hub: Hub, tmp_path: Path) -> None:
    data = write_gguf(tmp_path / FILE, {"general.architecture": "llama"}).read_bytes()
    hub.add(REPO, {FILE: data})
    hub.fault(FILE, no_ranges=True)
    assert read_remote(REPO, FILE).architecture == "llama"


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_goes_on_where_it_broke(large: Hub, reset: bool) -> None:
    large.fault(FILE, times=2, where="storage", cut=200_000, reset=reset)
    assert read_remote(REPO, FILE).n_vocab == 80_000
    asked = [request.range for request in large.requests if request.where == "storage"]
    begun = [int(text.removeprefix("bytes=").split("-")[0]) for text in asked if text]
    # What was on its way when the connection was reset may be lost.
    assert begun == sorted(begun) if reset else begun == [0, 200_000, 400_000, 512 << 10]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_refusals_that_pass_are_tried_again(large: Hub, status: int) -> None:
    fault = large.fault(FILE, times=3, status=status)
    assert read_remote(REPO, FILE).n_vocab == 80_000
    assert fault.used == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_retries_end(large: Hub, status: int) -> None:
    fault = large.fault(FILE, status=status)
    with pytest.raises(DownloadError, match=f"it answered {status}. Try again later"):
        read_remote(REPO, FILE)
    assert fault.used == 4


def test_what_a_server_asks_to_wait_has_a_limit(large: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote, "_PAUSES", (0.5, 1.0, 2.0))
    monkeypatch.setattr(time, "sleep", waits.append)
    large.fault(FILE, times=2, status=429, headers={"Retry-After": "3600"})
    large.fault(FILE, times=1, status=503)
    assert read_remote(REPO, FILE).n_vocab == 80_000
    assert waits == [10.0, 10.0, 2.0]


def test_a_circle_of_redirects_ends(large: Hub) -> None:
    large.fault(FILE, where="hub", redirect=f"{large.url}/{REPO}/resolve/main/{FILE}")
    with pytest.raises(DownloadError, match="redirects in a circle"):
        read_remote(REPO, FILE)


def test_an_address_that_expired_is_asked_for_again(large: Hub) -> None:
    # The first piece succeeds, the second finds the signature expired.
    remembered = remote._RemoteFile(REPO, FILE, None, "hf:x", None)
    remembered.read(0, 1)
    large.fault(FILE, times=1, where="storage", status=403)
    assert len(remembered.read(600_000, 1000)) >= 1000
    assert large.requests[-1].status == 206


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        (HubReference("no/such"), ModelNotFoundError, "there is no repository no/such"),
        (HubReference(REPO, "none.gguf"), ModelNotFoundError, "has no file none.gguf"),
        (HubReference(REPO, None, "Q2_K"), ModelNotFoundError, "has no Q2_K.* It has: Q8_0"),
        (HubReference(REPO, FILE, None, "v9"), ModelNotFoundError, "no such revision"),
    ],
)
def test_what_is_not_there(large: Hub, reference: HubReference, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        inspect_hub(reference)


def test_gated_says_where_to_accept(large: Hub) -> None:
    large.repos[REPO].gated = True
    with pytest.raises(DownloadError, match=f"accept its licence at https://huggingface.co/{REPO}"):
        read_remote(REPO, FILE)


def test_offline_and_out_of_reach(large: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    large.close()
    with pytest.raises(DownloadError, match="the Hub can not be reached|the Hub did not give"):
        inspect_hub(HubReference(REPO, FILE))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        inspect_hub(HubReference(REPO, FILE))


def test_a_header_without_end_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_MOST", 3 << 20)
    count = 1 << 20
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, count)
    hub.add(REPO, {FILE: Sparse(head, 1 << 40)})
    with pytest.raises(InvalidModelError, match="its header is longer than"):
        read_remote(REPO, FILE)
    assert hub.sent <= 3 << 20


def test_a_web_page_and_an_empty_file(hub: Hub) -> None:
    hub.add(REPO, {FILE: b"<!DOCTYPE html><html>sign in</html>", "empty.gguf": b""})
    with pytest.raises(InvalidModelError, match="is a web page"):
        read_remote(REPO, FILE)
    with pytest.raises(InvalidModelError, match="is empty"):
        read_remote(REPO, "empty.gguf")


def test_progress_tells_what_was_read(large: Hub) -> None:
    told: list[Progress] = []
    read_remote(REPO, FILE, progress=told.append)
    assert [step.message for step in told] == [
        f"reading the header of {FILE}: 0 B",
        f"reading the header of {FILE}: 512 KiB",
    ]
