"""LoRA adapters: applied, scaled, switched without loading again, and refused where they belong elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import llama_magic as lm
from llama_magic.engine.client import EngineClient, get_client
from llama_magic.engine.protocol import GenerateRequest, LoadRequest, StatusRequest, TokenizeRequest
from llama_magic.errors import InvalidModelError, ModelNotFoundError
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Message
from llama_magic.models.options import LoadOptions, ModelSpec
from tests.gguf import write_gguf

WIDTH, LAYERS, RANK = 576, 30, 4
GREEDY = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
PROMPT = "The capital of France is"


def write_adapter(path: Path, seed: int = 1, *, arch: str = "llama", width: int = WIDTH, layers: int = LAYERS) -> Path:
    """Write a random adapter of the query weights."""
    random = np.random.default_rng(seed)
    tensors = []
    for layer in range(layers):
        for part, shape in (("lora_a", (width, RANK)), ("lora_b", (RANK, width))):
            values = random.normal(0, 0.3, shape[0] * shape[1]).astype("<f4")
            tensors.append((f"blk.{layer}.attn_q.weight.{part}", shape, 0, values.tobytes()))
    metadata = {
        "general.type": "adapter",
        "general.architecture": arch,
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    return write_gguf(path, metadata, tensors)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("lora") / "one.gguf")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("lora") / "two.gguf", seed=2)


def with_lora(path: Path, *lora: tuple[Path, float]) -> ModelSpec:
    options = LoadOptions.from_keywords(n_ctx=512, lora=[(str(file), scale) for file, scale in lora])
    return ModelSpec(str(path), "smollm2", options)


def test_switching_loads_nothing_again(client: EngineClient, smollm2_path: Path, adapter: Path, other: Path) -> None:
    def ask(*lora: tuple[Path, float]) -> tuple[int, ...]:
        done = client.open(GenerateRequest(with_lora(smollm2_path, *lora), GREEDY, prompt=PROMPT)).collect()
        assert done.receipt is not None
        load_times.append(done.timings.load_s)
        allocated.append(sum("model buffer size" in line or "KV buffer size" in line for line in client.log))
        return done.tokens

    load_times: list[float] = []
    allocated: list[int] = []
    base = ask()
    pid = client.pid
    one = ask((adapter, 1.0))
    half = ask((adapter, 0.5))
    two = ask((other, 1.0))
    both = ask((adapter, 1.0), (other, 1.0))
    assert len({base, one, two, both}) == 4
    assert one != half
    assert ask((adapter, 0.0)) == base
    assert ask((adapter, 1.0)) == one
    assert ask() == base
    assert client.pid == pid
    assert load_times[0] > 0
    assert set(load_times[1:]) == {0.0}
    assert allocated[0] > 0
    assert set(allocated[1:]) == {0}
    assert len(client.request(StatusRequest())) == 1


def test_conversations_do_not_keep_what_another_adapter_computed(
    client: EngineClient, smollm2_path: Path, adapter: Path
) -> None:
    def ask(conversation: str, *lora: tuple[Path, float]) -> tuple[tuple[int, ...], int]:
        spec = with_lora(smollm2_path, *lora)
        messages = (Message("user", "Name a colour."),)
        done = client.open(GenerateRequest(spec, GREEDY, messages=messages, conversation=conversation)).collect()
        return done.tokens, done.timings.cached_tokens

    fresh, _ = ask("a", (adapter, 1.0))
    base, _ = ask("a")
    again, cached = ask("a", (adapter, 1.0))
    assert again == fresh != base
    assert cached == 0
    assert ask("a", (adapter, 1.0))[1] > 0


def test_an_adapter_changes_as_numpy_says(smollm2_path: Path, adapter: Path, tmp_path: Path) -> None:
    """An adapter and one of doubled alpha at half the scale are the same one."""
    with lm.load(str(smollm2_path), n_ctx=512, lora=f"{adapter}:1") as model:
        assert model.spec.options.lora == ((str(adapter), 1.0),)
        first = model.generate(PROMPT, max_tokens=8, temperature=0, logprobs=3)
    data = adapter.read_bytes().replace(np.float32(8.0).tobytes(), np.float32(16.0).tobytes(), 1)
    doubled = tmp_path / "doubled.gguf"
    doubled.write_bytes(data)
    with lm.load(str(smollm2_path), n_ctx=512, lora=[(doubled, 0.5)]) as model:
        second = model.generate(PROMPT, max_tokens=8, temperature=0, logprobs=3)
    assert first.tokens == second.tokens
    assert [token.logprob for token in first.logprobs] == [token.logprob for token in second.logprobs]
    assert get_client().alive


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "gemma2"}, "another architecture"),
        ({"width": 64}, "other sizes"),
        ({"layers": 31}, "tensors that this one has not"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    client: EngineClient, smollm2_path: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    foreign = write_adapter(tmp_path / "foreign.gguf", **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidModelError, match=words) as caught:
        client.request(LoadRequest(with_lora(smollm2_path, (foreign, 1.0))))
    assert "\n" not in str(caught.value)
    assert client.open(GenerateRequest(with_lora(smollm2_path), GREEDY, prompt=PROMPT)).collect().tokens


def test_a_model_is_no_adapter_and_a_missing_file_is_named(client: EngineClient, smollm2_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="it is no adapter"):
        client.request(LoadRequest(with_lora(smollm2_path, (smollm2_path, 1.0))))
    with pytest.raises(ModelNotFoundError, match=r"gone\.gguf can not be read"):
        client.request(TokenizeRequest(with_lora(smollm2_path, (Path("/gone.gguf"), 1.0)), "a"))


def test_a_changed_file_is_another_adapter(client: EngineClient, smollm2_path: Path, tmp_path: Path) -> None:
    def ask() -> tuple[int, ...]:
        return (
            client.open(GenerateRequest(with_lora(smollm2_path, (file, 1.0)), GREEDY, prompt=PROMPT)).collect().tokens
        )

    file = write_adapter(tmp_path / "a.gguf", seed=1)
    first = ask()
    write_adapter(file, seed=2)
    assert ask() != first
    write_adapter(file, seed=1)
    assert ask() == first
