"""Conversations kept on disk with their state: a fresh worker goes on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llama_magic.api.model import Chat, Model
from llama_magic.api.session import Session
from llama_magic.engine import saving
from llama_magic.engine.client import EngineClient, set_client
from llama_magic.engine.protocol import LoadRequest, Progress
from llama_magic.errors import InvalidRequestError, JobInterrupted, OutOfMemoryError, SavedStateError
from llama_magic.inference.conversation import Conversation
from llama_magic.inference.saved import Part, pack_ids, read_header, read_held, read_text, write_saved
from llama_magic.models.options import LoadOptions, ModelSpec
from tests.native.test_adapters import write_adapter

SYSTEM = "You are the guide of a small zoo. " + "It has llamas, goats, owls and an old turtle called Karl. " * 12
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "seed": 1}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_MAGIC_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "conversations"


def open_model(client: EngineClient, path: Path, **options: Any) -> Model:
    spec = ModelSpec(str(path), "smollm2", LoadOptions(**{"n_ctx": 512, **options}))
    return Model(spec, client.request(LoadRequest(spec)), client)


@pytest.fixture
def model(client: EngineClient, smollm2_path: Path) -> Model:
    return open_model(client, smollm2_path)


def talk(model: Model) -> Chat:
    chat = model.conversation(SYSTEM)
    chat.generate("Name one animal.", **GREEDY)
    return chat


def test_after_a_restart_only_new_tokens_are_processed(client: EngineClient, model: Model, home: Path) -> None:
    chat = talk(model)
    saved = chat.save("zoo")
    without = chat.generate("And another one?", **GREEDY)
    client.restart()
    restored = model.restore("zoo")
    assert [turn.user for turn in restored.conversation.turns] == ["Name one animal."]
    again = restored.generate("And another one?", **GREEDY)
    assert again.tokens == without.tokens
    assert again.timings.prompt_tokens == without.timings.prompt_tokens
    assert again.timings.cached_tokens == without.timings.cached_tokens == saved.tokens
    assert again.timings.prompt_tokens - again.timings.cached_tokens < 32
    client.restart()
    plain = model.restore("zoo", text_only=True)
    read_again = plain.generate("And another one?", **GREEDY)
    assert read_again.timings.cached_tokens == 0
    assert read_again.timings.prompt_tokens == again.timings.prompt_tokens


def test_a_system_prompt_alone_is_processed_once(client: EngineClient, model: Model) -> None:
    saved = model.conversation(SYSTEM).save("prompt")
    assert saved.turns == 0
    client.restart()
    one = model.restore("prompt").generate("Who is Karl?", **GREEDY)
    assert one.timings.cached_tokens == saved.tokens > 150
    two = model.restore("prompt").generate("Who is Karl?", **GREEDY)
    assert two.tokens == one.tokens
    assert two.timings.cached_tokens == saved.tokens


def test_what_the_cache_lost_is_processed_before_saving(client: EngineClient, model: Model) -> None:
    chat = talk(model)
    warm = chat.save("warm")
    chat.forget()
    seen: list[Progress] = []
    cold = chat.save("cold", progress=seen.append)
    assert cold.tokens >= warm.tokens
    assert "prompt" in {step.stage for step in seen}
    client.restart()
    held = model.restore("cold").generate("And another one?", **GREEDY).timings
    assert held.cached_tokens == cold.tokens


def test_turns_that_were_taken_back_are_not_kept(model: Model) -> None:
    chat = talk(model)
    once = chat.save("once").tokens
    chat.generate("Tell me a long story about it.", **GREEDY)
    chat.conversation.undo()
    assert chat.save("undone").tokens < once + 16


def test_a_restored_conversation_finds_room(model: Model) -> None:
    saved = talk(model).save("zoo")
    for name in "ab":
        model.conversation(f"{name} " * 150).generate("hi", **GREEDY)
    answer = model.restore("zoo").generate("And another one?", **GREEDY)
    assert answer.timings.cached_tokens == saved.tokens


@pytest.mark.parametrize("options", [{"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, {"flash_attn": "on"}])
def test_other_kinds_of_cache(client: EngineClient, smollm2_path: Path, options: dict[str, Any]) -> None:
    model = open_model(client, smollm2_path, **options)
    chat = talk(model)
    saved = chat.save("zoo")
    without = chat.generate("And another one?", **GREEDY)
    chat.forget()
    again = model.restore("zoo").generate("And another one?", **GREEDY)
    assert again.tokens == without.tokens
    assert again.timings.cached_tokens == saved.tokens
    plain = open_model(client, smollm2_path)
    with pytest.raises(SavedStateError, match=r"\(-ctk\) \(q8_0, here f16\)|\(-fa\) \(on, here off\)"):
        plain.restore("zoo")


def test_adapters_are_known_by_their_content(client: EngineClient, smollm2_path: Path, tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "one.gguf")
    model = open_model(client, smollm2_path, lora=((str(file), 1.0),))
    saved = talk(model).save("zoo")
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(file.read_bytes())
    same = open_model(client, smollm2_path, lora=((str(moved), 1.0),))
    again = same.restore("zoo").generate("And another one?", **GREEDY)
    assert again.timings.cached_tokens == saved.tokens
    write_adapter(moved, seed=2)
    other = tmp_path / "other.gguf"
    other.write_bytes(moved.read_bytes())
    for lora in ((), ((str(file), 0.5),), ((str(other), 1.0),)):
        with pytest.raises(SavedStateError, match=r"other LoRA adapters \(--lora\)"):
            open_model(client, smollm2_path, lora=lora).restore("zoo")


def test_another_model_and_a_smaller_context(
    client: EngineClient, model: Model, smollm2_path: Path, base_model_path: Path
) -> None:
    talk(model).save("zoo")
    with pytest.raises(SavedStateError, match=r"another model file .* belongs to smollm2"):
        open_model(client, base_model_path).restore("zoo")
    with pytest.raises(SavedStateError, match=r"%llama load -c 256 makes room"):
        open_model(client, smollm2_path, n_ctx=128).restore("zoo")


def forge(path: Path, change: Callable[[dict[str, Any], list[int], bytearray], None]) -> None:
    """Change a file and make its checksums right again, as another program could have written it."""
    header, conversation = read_header(path), read_text(path)
    with read_held(path) as held:
        tokens, state = list(held.tokens), bytearray(held.state)
    made = dict(header.made_with)
    change(made, tokens, state)
    text = json.dumps(conversation.to_dict()).encode()
    ids = pack_ids(tokens)
    header = replace(
        header, made_with=made, tokens=len(tokens), text=Part.of(text), ids=Part.of(ids), state=Part.of(bytes(state))
    )
    with path.open("wb") as file:
        write_saved(file, header, text, ids, memoryview(state))


def other_build(made: dict[str, Any], _tokens: list[int], _state: bytearray) -> None:
    made["llama_cpp"] = "fffffff"


def from_the_future(made: dict[str, Any], _tokens: list[int], _state: bytearray) -> None:
    made["quantum"] = "on"


def fewer_tokens(_made: dict[str, Any], tokens: list[int], _state: bytearray) -> None:
    tokens.pop()


def no_tokens(_made: dict[str, Any], tokens: list[int], _state: bytearray) -> None:
    tokens.clear()


def unknown_token(_made: dict[str, Any], tokens: list[int], _state: bytearray) -> None:
    tokens[3] = 49152


def cut_state(_made: dict[str, Any], _tokens: list[int], state: bytearray) -> None:
    del state[-1000:]


def longer_state(_made: dict[str, Any], _tokens: list[int], state: bytearray) -> None:
    state += b"\0" * 8


def wrong_layers(_made: dict[str, Any], tokens: list[int], state: bytearray) -> None:
    state[16 + 12 * len(tokens) + 4] ^= 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_build, "another version of llama.cpp"), (from_the_future, "another quantum"),
        (fewer_tokens, "does not belong to its tokens"), (no_tokens, "does not belong to its tokens"),
        (unknown_token, "tokens that this model does not have"), (cut_state, "does not take it"),
        (longer_state, "does not take it"), (wrong_layers, "mismatched layer count"),
    ],
)  # fmt: skip
def test_a_state_that_is_not_ours(
    client: EngineClient, kept: tuple[Model, Path], change: Callable[..., None], says: str
) -> None:
    model, path = kept
    content = path.read_bytes()
    try:
        forge(path, change)
        pid = model._client.pid
        with pytest.raises(SavedStateError, match=says) as caught:
            model.restore(path)
        assert "--text-only" in str(caught.value)
        assert model._client.pid == pid
        assert len(model.restore(path, text_only=True).conversation) == 1
    finally:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def kept(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Path]]:
    """A model and a saved conversation that several tests may use."""
    client = EngineClient()
    model = open_model(client, smollm2_path)
    path = talk(model).save(tmp_path_factory.mktemp("kept") / "zoo.chat").path
    yield model, path
    client.close()


def test_a_refused_state_leaves_other_conversations_warm(kept: tuple[Model, Path]) -> None:
    model, path = kept
    chat = model.conversation("You are brief.")
    first = chat.generate("Hi!", **GREEDY)
    content = path.read_bytes()
    forge(path, cut_state)
    with pytest.raises(SavedStateError):
        model.restore(path)
    path.write_bytes(content)
    assert chat.generate("And?", **GREEDY).timings.cached_tokens >= first.timings.prompt_tokens


def test_an_interrupt_leaves_nothing(model: Model, home: Path) -> None:
    chat = model.conversation(SYSTEM)

    def stop(step: Progress) -> None:
        if step.stage == "prompt":
            raise KeyboardInterrupt

    with pytest.raises(JobInterrupted, match="nothing was saved"):
        chat.save("zoo", progress=stop)
    assert list(home.iterdir()) == []
    assert chat.save("zoo").tokens > 150


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_and_full_memory(model: Model, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(100, 0, 5 << 20))
    with pytest.raises(InvalidRequestError, match=r"9.54 MiB, but 5.00 MiB are free"):
        saving._check_disk(Path(), 10_000_000)
    saving._check_disk(Path(), 4 << 20)
    from llama_magic.engine.local import LocalClient

    local = LocalClient()
    try:
        chat = open_model(local, smollm2_path, n_ctx=512).conversation("Be brief.")  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(saving, "available_memory", lambda: 1000)
            with pytest.raises(OutOfMemoryError, match="copying the conversation's cache"):
                chat.save("x")
        patched = Usage(100, 0, 1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: patched)
        with pytest.raises(InvalidRequestError, match="LLAMA_MAGIC_HOME"):
            chat.save("x")
    finally:
        local.close()


@pytest.fixture
def session(client: EngineClient) -> Iterator[Session]:
    set_client(client)
    yield Session()
    set_client(None)


def test_the_session_loads_the_model_that_a_conversation_had(
    client: EngineClient, session: Session, model: Model, smollm2_path: Path
) -> None:
    path = talk(model).save("zoo").path
    client.restart()
    restored = session.restore("zoo")
    assert (session.chat, len(restored)) == ("chat", 1)
    assert session.model == model.spec
    assert session.info is not None
    assert session.info.n_ctx == 512
    again = session.save("again")
    assert again.tokens == read_header(path).tokens
    gone = Session()
    header, text = read_header(path), json.dumps(Conversation("x", "y").to_dict()).encode()
    lost = replace(header, path="/nowhere/m.gguf", ref="owner/repo:Q4_K_M", text=Part.of(text))
    with read_held(path) as held:
        state, ids = bytes(held.state), pack_ids(list(held.tokens))
    with path.open("wb") as file:
        write_saved(file, lost, text, ids, memoryview(state))
    with pytest.raises(SavedStateError, match=r"%llama load owner/repo:Q4_K_M, and restore again"):
        gone.restore("zoo")
    assert gone.model is None
    assert asdict(lost)["ref"] == "owner/repo:Q4_K_M"
