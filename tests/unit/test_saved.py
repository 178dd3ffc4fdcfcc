"""Saved conversations: the layout of the file, names, listing, and what is left when something goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_magic.api import saved as api
from llama_magic.engine.protocol import SaveStateRequest
from llama_magic.errors import GenerationInterrupted, InvalidRequestError, JobInterrupted, SavedStateError
from llama_magic.inference import saved
from llama_magic.inference.conversation import Conversation, Turn
from llama_magic.inference.results import Completion, Timings
from llama_magic.inference.saved import (
    Part,
    SavedHeader,
    differences,
    pack_ids,
    read_header,
    read_held,
    read_text,
    write_saved,
)
from llama_magic.models.options import LoadOptions, ModelSpec

TOKENS = [1, 2, 49151]
STATE = bytes(range(256)) * 4
SPEC = ModelSpec("/models/m.gguf", "smollm2")


def talk() -> Conversation:
    conversation = Conversation("talk", "Be brief. 🦙")
    conversation.record(Turn("Hi <b>", Completion("Hello.\ud800", (5, 6), "stop", Timings()), None, None))
    return conversation


def text_of(conversation: Conversation) -> bytes:
    return json.dumps(conversation.to_dict(), ensure_ascii=False).encode("utf-8", "surrogatepass")


def header(text: bytes = b"", **changes: Any) -> SavedHeader:
    made = SavedHeader(
        "2026-01-02T03:04:05+00:00", "talk", 1, len(TOKENS), "smollm2", "/models/m.gguf", "llama 135M Q4_1", {},
        {"model": "sha256:0"}, Part.of(text), Part.of(pack_ids(TOKENS)), Part.of(STATE), "0",
    )  # fmt: skip
    return replace(made, **changes)


def write(path: Path, **changes: Any) -> bytes:
    text = text_of(talk())
    with path.open("wb") as file:
        write_saved(file, header(text, **changes), text, pack_ids(TOKENS), memoryview(STATE))
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    return folder / "changed.chat", write(folder / "whole.chat")


def state_begins(data: bytes) -> int:
    return len(data) - len(STATE) - 4 * len(TOKENS)


def restore(path: Path) -> None:
    """What restoring reads: the text in the kernel, the rest in the worker."""
    read_text(path)
    read_held(path).close()


def check_refused(path: Path, data: bytes) -> bool:
    """A changed file gives no state, and its text only as it was; returns whether the text was there."""
    path.write_bytes(data)
    with pytest.raises(SavedStateError) as caught:
        restore(path)
    assert "\n" not in str(caught.value)
    try:
        found = read_text(path)
    except SavedStateError:
        return False
    assert found.to_dict() == talk().to_dict()
    return True


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "talk.chat"
    data = write(path)
    assert read_header(path) == header(text_of(talk()))
    assert read_header(path).size == len(data)
    assert read_text(path).to_dict() == talk().to_dict()
    steps: list[float] = []
    with read_held(path, steps.append) as held:
        assert (held.tokens, bytes(held.state)) == (tuple(TOKENS), STATE)
    assert steps == [0.0]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.floats(0, 1, exclude_max=True), st.integers(1, 255), min_size=1, max_size=4))
def test_flipped_bytes_are_always_noticed(whole: tuple[Path, bytes], flips: dict[float, int]) -> None:
    path, content = whole
    changed = bytearray(content)
    places = {int(share * len(content)): mask for share, mask in flips.items()}
    for place, mask in places.items():
        changed[place] ^= mask
    assert check_refused(path, bytes(changed)) == (min(places) >= state_begins(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True))
def test_a_cut_is_always_noticed(whole: tuple[Path, bytes], share: float) -> None:
    path, content = whole
    length = int(share * len(content))
    assert check_refused(path, content[:length]) == (length >= state_begins(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_any_other_file_is_refused(whole: tuple[Path, bytes], content: bytes, begins: bool) -> None:
    assert not check_refused(whole[0], saved._MAGIC + content if begins else content)


def test_more_at_the_end_is_noticed(whole: tuple[Path, bytes]) -> None:
    assert check_refused(whole[0], whole[1] + b"\0")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def sealed(head: bytes, rest: bytes = b"") -> bytes:
    start = struct.pack("<8sIQ", saved._MAGIC, saved.VERSION, len(head)) + head
    return start + hashlib.sha256(start).digest() + rest


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(json.loads(header().to_json()))), JSON, st.booleans())
def test_a_header_of_any_kind_with_a_right_checksum(
    whole: tuple[Path, bytes], name: str, value: Any, inside: bool
) -> None:
    fields = json.loads(header(text_of(talk())).to_json())
    if inside and isinstance(fields[name], dict) and "size" in fields[name]:
        fields[name]["size"] = value
    else:
        fields[name] = value
    path = whole[0]
    path.write_bytes(sealed(json.dumps(fields).encode("utf-8", "surrogatepass"), text_of(talk())))
    for read in (read_header, read_text, read_held):
        with contextlib.suppress(SavedStateError):
            read(path)
    assert repr(api._row(path))


@pytest.mark.parametrize("head", [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b'{"text": 5}', b"9" * 5000])
def test_a_header_that_is_none(whole: tuple[Path, bytes], head: bytes) -> None:
    assert not check_refused(whole[0], sealed(head, text_of(talk())))


def test_a_part_larger_than_any_file(whole: tuple[Path, bytes]) -> None:
    for name in ("text", "ids", "state"):
        fields = json.loads(header(text_of(talk())).to_json())
        fields[name]["size"] = 1 << 62
        check_refused(whole[0], sealed(json.dumps(fields).encode(), text_of(talk())))


def test_a_later_version_says_so(whole: tuple[Path, bytes]) -> None:
    path, content = whole
    path.write_bytes(content[:8] + struct.pack("<I", 2) + content[12:])
    with pytest.raises(SavedStateError, match="layout 2, this llama_magic reads layout 1"):
        read_text(path)


def test_differences_are_told_in_words() -> None:
    here = {"model": "sha256:aa", "llama_cpp": "0c1e570", "cache_type_k": "f16"}
    assert differences(here, dict(here)) == []
    (told,) = differences({**here, "cache_type_k": "q8_0"}, here)
    assert told == "another type of the K cache (-ctk) (q8_0, here f16)"
    assert len(differences({**here, "llama_cpp": "1", "model": "sha256:bb"}, here)) == 2
    assert differences({**here, "lora": [["sha256:1", 1.0]]}, here)
    assert differences(here, {**here, "rope_freq_base": 1e6})
    assert differences({**here, "from the future": 1}, here)


# names and places


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_MAGIC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", ["a", "talk", "my talk-2", "Gespräch", "対話", "v1_2"])
def test_names(home: Path, name: str) -> None:
    assert api.place_of(name) == home / "conversations" / f"{name}.chat"


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "~", "~/x", "-x", "x-", ".hidden", "a\0b", "a\nb", "x" * 61,
     "対" * 60, "a.b", "C:", "\u202ex", "\x1b[31m", "$HOME", "*"],
)  # fmt: skip
def test_names_that_lead_elsewhere(home: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="no name for a saved conversation") as caught:
        api.place_of(name)
    assert str(caught.value).isprintable()


def test_a_path_is_a_path(home: Path, tmp_path: Path) -> None:
    assert api.place_of(tmp_path / "x.chat") == tmp_path / "x.chat"
    assert api.place_of(f"{tmp_path}/x.chat") == tmp_path / "x.chat"
    with pytest.raises(InvalidRequestError, match=r"kept in a .chat file"):
        api.place_of(tmp_path / "x.bin")


# saving, with a client that writes what a worker would


class Writer:
    """Writes the file as the worker does; `before` runs first and may raise."""

    def __init__(self, before: Callable[[Path], None] = lambda _path: None) -> None:
        self.before = before

    def request(self, request: SaveStateRequest, _progress: Any = None) -> SavedHeader:
        path = Path(request.path)
        assert path.read_bytes() == b""
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        self.before(path)
        made = header(request.text, conversation=request.name, turns=request.turns)
        with path.open("r+b") as file:
            write_saved(file, made, request.text, pack_ids(TOKENS), memoryview(STATE))
        return made


def save(name: str | Path = "talk", before: Callable[[Path], None] = lambda _path: None, **more: Any) -> Any:
    return api.save_state(Writer(before), SPEC, talk(), name, **more)  # type: ignore[arg-type]


def files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "conversations").iterdir())


def test_saving_and_listing(home: Path) -> None:
    assert "Nothing is saved" in repr(api.saved_conversations())
    row = save()
    assert (row.name, row.turns, row.tokens, row.model, row.problem) == ("talk", 1, 3, "smollm2", "")
    assert row.size == row.path.stat().st_size
    assert stat.S_IMODE(row.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(row.path.parent.stat().st_mode) == 0o700
    save("other")
    listed = api.saved_conversations()
    assert [row.name for row in listed] == ["other", "talk"]
    assert "smollm2" in repr(listed)
    assert json.loads(json.dumps(listed.to_dict()))["rows"][0]["tokens"] == 3
    assert api.delete_saved("talk").turns == 1
    assert files(home) == ["other.chat"]
    with pytest.raises(InvalidRequestError, match=r"Did you mean other\?"):
        api.delete_saved("othre")


def test_a_list_shows_what_is_in_files_harmlessly(home: Path) -> None:
    folder = home / "conversations"
    folder.mkdir(parents=True)
    write(folder / "odd.chat", ref="<script>\x1b[31m\u202e", conversation="<b>")
    (folder / "broken.chat").write_bytes(b"nothing")
    (folder / ".talk.0.part").write_bytes(b"half")
    listed = api.saved_conversations()
    assert [row.name for row in listed] == ["odd", "broken"]
    assert "can not be read" in repr(listed)
    for shown in (repr(listed), listed._repr_html_()):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    assert "<script>" not in listed._repr_html_()
    with pytest.raises(InvalidRequestError, match="left alone"):
        api.delete_saved("broken")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), JobInterrupted),
        (GenerationInterrupted(None), JobInterrupted),
        (OSError(28, "No space left on device"), InvalidRequestError),
        (InvalidRequestError("full"), InvalidRequestError),
    ],
)
def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(home: Path, error: Exception, raised: type) -> None:
    old = save().path.read_bytes()

    def fail(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise error

    with pytest.raises(raised):
        save(before=fail)
    assert files(home) == ["talk.chat"]
    assert (home / "conversations" / "talk.chat").read_bytes() == old


def test_a_disk_that_fails_at_the_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidRequestError, match="No space left on device"):
        save()
    assert files(home) == []


def test_other_files_are_left_alone(home: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.chat"
    mine.write_text("my own notes")
    with pytest.raises(InvalidRequestError, match="--force overwrites it"):
        save(mine)
    assert mine.read_text() == "my own notes"
    assert save(mine, force=True).turns == 1
    assert save(mine).turns == 1
    with pytest.raises(InvalidRequestError, match="there is no folder"):
        save(tmp_path / "nowhere" / "x.chat")


def test_what_a_killed_kernel_left_goes_when_it_is_old(home: Path) -> None:
    folder = save().path.parent
    old, young = folder / ".talk.aa.part", folder / ".talk.bb.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    save()
    assert files(home) == [".talk.bb.part", "talk.chat"]


def test_an_empty_conversation(home: Path) -> None:
    with pytest.raises(InvalidRequestError, match="is empty"):
        api.save_state(Writer(), SPEC, Conversation("new"), "x")  # type: ignore[arg-type]


def test_load_options_come_back(home: Path) -> None:
    made = header(options={"n_ctx": 512, "devices": ["CPU"], "unheard_of": 1})
    assert LoadOptions.from_keywords(**api.loading_of(made)) == LoadOptions(n_ctx=512, devices=("CPU",))
    assert api.loading_of(header(options={"n_ctx": "many"})) == {}
