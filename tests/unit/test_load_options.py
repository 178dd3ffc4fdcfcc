"""Load options as people give them: texts, pairs, mappings; and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from llama_magic.errors import InvalidRequestError
from llama_magic.models.fit import BITS_PER_WEIGHT, bytes_per_token, choices
from llama_magic.models.metadata import ModelMetadata, TensorInfo
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.models.overrides import parse_adapters, parse_size
from llama_magic.notebook.subcommands import SUBCOMMANDS


def loading(line: str) -> dict[str, Any]:
    return SUBCOMMANDS["load"].parse(line).group("loading")


def test_adapters_in_every_form(tmp_path: Path) -> None:
    a, b = tmp_path / "a.gguf", tmp_path / "b:1,2.gguf"
    b.touch()
    for given in (f"{a}:0.5", [(a, 0.5)], [f"{a}:0.5"], {str(a): 0.5}.items()):
        assert LoadOptions.from_keywords(lora=given).lora == ((str(a), 0.5),)
    assert parse_adapters(str(b)) == ((str(b), 1.0),)
    assert parse_adapters(f"{a},{a}:-2") == ((str(a), 1.0), (str(a), -2.0))
    assert loading(f"--lora {a} --lora-scaled {a}:3")["lora"] == ((str(a), 1.0), (str(a), 3.0))


def test_what_a_model_is_loaded_with_is_its_key(tmp_path: Path) -> None:
    plain = ModelSpec("m", "m", LoadOptions(n_ctx=512))
    adapted = ModelSpec("m", "m", LoadOptions.from_keywords(n_ctx=512, lora="a.gguf", memory_budget="1G"))
    assert plain.key == adapted.key
    assert adapted.options != plain.options
    assert plain.key != ModelSpec("m", "m", LoadOptions(n_ctx=512, rope_freq_base=2.0)).key
    assert pickle.loads(pickle.dumps(adapted)) == adapted
    assert LoadOptions.from_keywords(**adapted.options.to_dict()) == adapted.options


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-ot ffn", "-ot takes PATTERN=BUFFER"),
        ("--override-kv a=int:x", "--override-kv takes a number after int:"),
        ("--override-kv a=real:1", "--override-kv takes KEY=TYPE:VALUE"),
        ("--lora-scaled a.gguf", "--lora-scaled takes FILE:SCALE"),
        ("-ts 1,x", "-ts takes numbers separated by commas"),
        ("-ts 0,0", "-ts takes numbers separated by commas"),
        ("-sm all", "-sm takes none, layer, row or tensor"),
        ("--rope-scale 0", "--rope-scale takes a number above 0"),
        ("--rope-scaling ntk", "--rope-scaling takes none, linear or yarn"),
        ("--numa all", "--numa takes distribute, isolate or numactl"),
        ("--memory-budget much", "--memory-budget takes an amount of memory"),
    ],
)
def test_flags_say_what_they_take(line: str, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        loading(line)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"split_mode": "all"}, "split_mode 'all' is not one of none, layer, row, tensor"),
        ({"numa": "x"}, "numa 'x' is not one of"),
        ({"rope_freq_base": -1.0}, "rope_freq_base must be above 0"),
        ({"n_cpu_moe": -1}, "n_cpu_moe must be at least 0"),
        ({"memory_budget": "x"}, "memory_budget takes an amount"),
        ({"override_kv": {"k": "x" * 128}}, "longer than 127 bytes"),
        ({"override_kv": {"k": 2**63}}, "does not fit into 64 bits"),
        ({"override_kv": {"k": [1]}}, "must be a number, a bool or a text"),
        ({"override_tensor": "nothing"}, "override_tensor takes PATTERN=BUFFER"),
        ({"tensor_split": "a"}, "tensor_split takes numbers"),
        ({"direct_io": True, "use_mlock": True}, "exclude each other"),
    ],
)
def test_options_say_what_they_take(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        LoadOptions.from_keywords(**keywords)
    assert says in str(caught.value)


def test_amounts_of_memory() -> None:
    assert [parse_size(text) for text in ("512", "1K", "1.5 MiB", "8G", "2tb")] == [
        512,
        1024,
        3 << 19,
        8 << 30,
        2 << 40,
    ]


def test_bytes_that_a_token_reads() -> None:
    def metadata(*tensors: tuple[str, int], **values: object) -> ModelMetadata:
        found = tuple(TensorInfo(name, (size // 4,), "F32", 0, size) for name, size in tensors)
        return ModelMetadata("m", {"general.architecture": "x", **{f"x.{k}": v for k, v in values.items()}}, found)

    layer = ("blk.0.ffn_up.weight", 400)
    assert bytes_per_token(metadata(("token_embd.weight", 1000), layer)) == 1400  # shared with the output layer
    assert bytes_per_token(metadata(("token_embd.weight", 1000), ("output.weight", 2000), layer)) == 2400
    experts = metadata(("output.weight", 100), ("blk.0.ffn_up_exps.weight", 800), expert_count=8, expert_used_count=2)
    assert bytes_per_token(experts) == 300


def test_smaller_quantizations() -> None:
    tensors = (TensorInfo("a", (1000, 1000), "F16", 0, 2_000_000),)
    rows = choices(ModelMetadata("m", {}, tensors), rest=1000, free=700_000)
    assert next(row.ftype for row in rows if row.fits) == "Q5_K_S"
    assert next(row for row in rows if row.ftype == "Q8_0").weights == int(1e6 * BITS_PER_WEIGHT["Q8_0"] / 8)
    assert "F16" not in {row.ftype for row in rows}
    assert "F16" in {row.ftype for row in choices(ModelMetadata("m", {}, (TensorInfo("a", (8,), "F32", 0, 32),)), 0, 0)}
