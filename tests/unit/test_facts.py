"""Figures that follow from metadata, against what is known of real models."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from llama_magic.errors import InvalidModelError, InvalidRequestError
from llama_magic.models.card import TensorTable, clean
from llama_magic.models.gguf import part_names, read_metadata
from llama_magic.models.metadata import ArrayLength, ModelMetadata, TensorInfo
from tests.gguf import write_gguf, write_split


def model(architecture: str, **keys: Any) -> ModelMetadata:
    """Metadata with keys of the architecture, `__` for a dot; a list is an array."""
    values: dict[str, Any] = {"general.architecture": architecture}
    for name, value in keys.items():
        entry = ArrayLength(len(value), tuple(value), type="u32") if isinstance(value, list) else value
        values[f"{architecture}.{name.replace('__', '.')}"] = entry
    return ModelMetadata("model.gguf", values, ())


# Each expectation is worked out from the model's published configuration: layers * heads * (key + value) * 2 bytes.
@pytest.mark.parametrize(
    ("metadata", "bytes_per_token"),
    [
        # Llama 3.1 8B: 32 layers, 8 heads of 128; the well-known 128 KiB a token
        (
            model("llama", block_count=32, embedding_length=4096, attention__head_count=32, attention__head_count_kv=8),
            128 << 10,
        ),
        # Qwen3-30B-A3B: experts change nothing; heads of 128 although 2048 / 32 is 64
        (
            model(
                "qwen3moe", block_count=48, embedding_length=2048, attention__head_count=32, attention__head_count_kv=4,
                attention__key_length=128, attention__value_length=128, expert_count=128, expert_used_count=8,
            ),
            48 * 4 * 256 * 2,
        ),
        # DeepSeek-V3: latent attention keeps 512 + 64 values of a layer and no values
        (
            model(
                "deepseek2", block_count=61, embedding_length=7168, attention__head_count=128,
                attention__head_count_kv=1, attention__key_length=576, attention__value_length=512,
                attention__key_length_mla=192, attention__value_length_mla=128, expert_count=256,
            ),
            61 * 576 * 2,
        ),
        # Phi-3 names a window that llama.cpp does not use
        (
            model(
                "phi3", block_count=32, embedding_length=3072, attention__head_count=32, attention__head_count_kv=32,
                attention__sliding_window=2047,
            ),
            32 * 32 * 192 * 2,
        ),
        # GLM 4.5: the last layer predicts further tokens and has no part in it
        (
            model(
                "glm4moe", block_count=93, nextn_predict_layers=1, embedding_length=5120, attention__head_count=96,
                attention__head_count_kv=8, attention__key_length=128, attention__value_length=128,
            ),
            92 * 8 * 256 * 2,
        ),
    ],
    ids=lambda value: value.architecture if isinstance(value, ModelMetadata) else "",
)  # fmt: skip
def test_the_cache_of_a_token(metadata: ModelMetadata, bytes_per_token: int) -> None:
    cache = metadata.kv_cache
    assert cache.known
    assert cache.per_token() == bytes_per_token
    assert cache.size(8192) == 8192 * bytes_per_token
    assert cache.per_token("q8_0") == bytes_per_token * 34 / 64
    assert cache.to_dict()["per_1000_tokens"]["f16"] == 1000 * bytes_per_token


def test_sliding_windows() -> None:
    # Gemma 3 1B: 26 layers, one key-value head of 256, every sixth layer sees all
    metadata = model(
        "gemma3", block_count=26, embedding_length=1152, attention__head_count=4, attention__head_count_kv=1,
        attention__key_length=256, attention__value_length=256, attention__sliding_window=512,
    )  # fmt: skip
    cache = metadata.kv_cache
    assert (cache.layers, cache.window_layers, cache.window) == (4, 22, 512)
    assert cache.per_token() == 4 * 512 * 2
    # the window and a batch of 512
    assert cache.window_size() == 22 * 512 * 2 * 1024
    assert cache.size(32768) == (4 * 32768 + 22 * 1024) * 1024
    assert cache.size(256) == 26 * 256 * 1024
    assert cache.size(32768, swa_full=True) == 26 * 32768 * 1024
    assert "22 layers see 512 tokens, at most 22.0 MiB as f16" in repr(metadata)


def test_gpt_oss_alternates() -> None:
    cache = model(
        "gpt-oss", block_count=24, embedding_length=2880, attention__head_count=64, attention__head_count_kv=8,
        attention__key_length=64, attention__value_length=64, attention__sliding_window=128, expert_count=32,
    ).kv_cache  # fmt: skip
    assert (cache.layers, cache.window_layers) == (12, 12)
    assert cache.per_token() == 12 * 8 * 128 * 2


def test_states_do_not_grow() -> None:
    # Mamba 130M: 24 layers, inner size 1536, state of 16, convolution of 4; four bytes a value
    mamba = model(
        "mamba", block_count=24, embedding_length=768, attention__head_count=0, ssm__conv_kernel=4,
        ssm__inner_size=1536, ssm__state_size=16,
    ).kv_cache  # fmt: skip
    assert mamba.per_token() == 0
    assert mamba.size(1024) == mamba.size(65536) == 24 * 4 * (3 * 1536 + 16 * 1536)
    # LFM2 350M: layers without key-value heads are convolutions of 3
    heads = [0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0]
    lfm2 = model(
        "lfm2", block_count=16, embedding_length=1024, attention__head_count=16, attention__head_count_kv=heads,
        shortconv__l_cache=3,
    ).kv_cache  # fmt: skip
    assert (lfm2.layers, lfm2.per_token()) == (6, 6 * 8 * 128 * 2)
    assert lfm2.state == 10 * 1024 * 2 * 4


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (model("deepseek4", block_count=2), "keeps more than keys and values"),
        (model("t5", block_count=2), "keeps more than keys and values"),
        (model("tomorrow", block_count=2), "architecture is not known"),
        (model("llama"), "it has 0 layers"),
        (model("llama", block_count=1 << 31), "it has 2,147,483,648 layers"),
        (model("llama", block_count=2, attention__head_count=4), "width of its attention heads"),
        (
            model("llama", block_count=4, embedding_length=64, attention__head_count=[4, 4]),
            "attention.head_count for 2 of 4 layers",
        ),
        (model("llama", block_count=4, attention__head_count="many"), "no usable attention.head_count"),
        (
            model("mimo2", block_count=2, embedding_length=64, attention__head_count=4, attention__sliding_window=9),
            "which layers have a sliding window",
        ),
    ],
)
def test_what_is_not_known_is_said(metadata: ModelMetadata, reason: str) -> None:
    cache = metadata.kv_cache
    assert not cache.known
    assert reason in cache.reason
    assert "not known" in repr(metadata)
    assert cache.to_dict() == {"known": False, "reason": cache.reason}


def test_encoders_keep_nothing() -> None:
    cache = model("bert", block_count=12, embedding_length=384, attention__head_count=12).kv_cache
    assert cache.known
    assert cache.size(512) == 0


def test_rows_that_q8_0_does_not_fit() -> None:
    metadata = model("llama", block_count=2, embedding_length=320, attention__head_count=4)
    assert not metadata.kv_cache.allows("q8_0")
    assert "q8_0" not in repr(metadata)


VALUES = {
    "general.architecture": "llama",
    "general.name": "<script>alert(1)</script>\x1b[31m\u202e",
    "general.license": "other",
    "general.license.name": "llama3.1",
    "general.quantized_by": "<b>somebody</b>",
    "general.file_type": 15,
    "quantize.imatrix.file": "imatrix.dat",
    "quantize.imatrix.chunks_count": 125,
    "llama.expert_count": 8,
    "llama.expert_used_count": 2,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": [f"<{number}>" for number in range(3000)],
    "tokenizer.ggml.bos_token_id": 2999,
    "tokenizer.ggml.eos_token_id": 1024,
    "tokenizer.ggml.padding_token_id": 99999,
    "tokenizer.chat_template": "{{ '<img src=x onerror=alert(1)>' }}\x1b[0m",
}


def test_facts_and_their_escapes(tmp_path: Path) -> None:
    tensors = [("<i>.weight", (256, 2), 12, bytes(288)), ("blk.0.attn_q.weight", (256, 2), 0, bytes(2048))]
    metadata = read_metadata(write_gguf(tmp_path / "m.gguf", VALUES, tensors))
    assert metadata.ftype == "Q4_K_M"
    assert metadata.license == "llama3.1"
    assert metadata.vocab_type == "BPE (llama-bpe)"
    assert metadata.special_tokens == {"bos": "<2999>", "eos": "<1024>"}
    assert metadata.provenance == {
        "quantized by": "<b>somebody</b>", "importance matrix": "imatrix.dat", "its chunks": "125",
    }  # fmt: skip
    assert metadata.bits_per_weight == (288 + 2048) * 8 / 1024
    assert [(share.type, share.count, share.size) for share in metadata.mix] == [("F32", 1, 2048), ("Q4_K", 1, 288)]
    assert sum(share.share for share in metadata.mix) == pytest.approx(1)
    page, text = metadata._repr_html_() + TensorTable(metadata)._repr_html_(), repr(metadata) + repr(metadata.mix)
    for raw in ("<script", "<img", "<b>somebody", "<i>.weight", "\x1b", "\u202e"):
        assert raw not in page, raw
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in page
    assert "2 of 8 experts a token" in page
    assert json.loads(json.dumps(metadata.to_dict()))["special_tokens"]["bos"] == "<2999>"
    assert str(tmp_path) not in page + text


def test_arrays_are_read_when_asked_for(tmp_path: Path) -> None:
    values = {**VALUES, "llama.scores": [0.25] * 2000, "general.languages": ["en", "de"]}
    metadata = read_metadata(write_gguf(tmp_path / "m.gguf", values))
    assert metadata.array("tokenizer.ggml.tokens") == VALUES["tokenizer.ggml.tokens"]
    assert metadata.array("llama.scores") == [0.25] * 2000
    assert metadata.values["general.languages"].texts == ("en", "de")
    with pytest.raises(InvalidRequestError, match="no array"):
        metadata.array("llama.nothing")


def test_warnings(tmp_path: Path) -> None:
    base = {"general.architecture": "llama", "llama.context_length": 512}
    tensors = [("a", (64,), 0, bytes(256))]
    assert "it has no chat template" in "".join(read_metadata(write_gguf(tmp_path / "a", base, tensors)).warnings)
    assert any("no tensors" in text for text in read_metadata(write_gguf(tmp_path / "b", base)).warnings)
    assert any("'tomorrow'" in text for text in model("tomorrow").warnings)
    assert any("'mmproj'" in text for text in model_of_type("mmproj").warnings)
    encoder = {**base, "llama.pooling_type": 1}
    assert read_metadata(write_gguf(tmp_path / "d", encoder, tensors)).warnings == ()
    fine = {**base, "tokenizer.chat_template": "{{ messages }}"}
    assert read_metadata(write_gguf(tmp_path / "c", fine, tensors)).warnings == ()


def model_of_type(kind: str) -> ModelMetadata:
    return ModelMetadata("m.gguf", {"general.architecture": "clip", "general.type": kind}, ())


def big_endian(version: int) -> bytes:
    name = b"general.architecture"
    keys = struct.pack(">Q", len(name)) + name + struct.pack(">IQ", 8, 5) + b"llama"
    alone = struct.pack(">Q1sIQIQ", 1, b"t", 1, 32, 2, 0)
    head = b"GGUF" + struct.pack(">IQQ", version, 1, 1) + keys + alone
    return head + bytes(-len(head) % 32) + bytes(18)


def test_the_other_byte_order(tmp_path: Path) -> None:
    (tmp_path / "big.gguf").write_bytes(big_endian(3))
    metadata = read_metadata(tmp_path / "big.gguf")
    assert (metadata.architecture, metadata.byte_order, metadata.version) == ("llama", "big", 3)
    assert metadata.tensors == (TensorInfo("t", (32,), "Q4_0", 0, 18),)
    assert any("big-endian" in text for text in metadata.warnings)
    (tmp_path / "old.gguf").write_bytes(big_endian(1))
    with pytest.raises(InvalidModelError, match="GGUF version 1, this llama.cpp reads 2 and 3"):
        read_metadata(tmp_path / "old.gguf")


def test_an_old_version_is_read_with_a_warning(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"})
    path.write_bytes(b"GGUF\2" + path.read_bytes()[5:])
    assert any("old GGUF version 2" in text for text in read_metadata(path).warnings)


def test_split_models(tmp_path: Path) -> None:
    paths = write_split(tmp_path, 3)
    whole = read_metadata(paths[0])
    assert [(tensor.name, tensor.part) for tensor in whole.tensors] == [
        (f"blk.{number}.attn_q.weight", number) for number in range(3)
    ]
    assert whole.parts == tuple(map(str, paths))
    assert whole.file_size == sum(path.stat().st_size for path in paths)
    assert "in 3 parts" in repr(whole)
    # any part leads to all of them, by the first
    assert read_metadata(paths[2]) == whole
    paths[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(InvalidModelError, match="part 2 of 3 is missing: .*-00002-of-00003.gguf"):
        read_metadata(paths[0])
    with pytest.raises(InvalidModelError, match="one of 3 parts, but its name"):
        read_metadata(tmp_path / "elsewhere.gguf")
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(InvalidModelError, match="is not part 2 of"):
        read_metadata(paths[0])


def test_names_of_parts() -> None:
    assert part_names("a/m-00002-of-00002.gguf") == ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"]
    assert part_names("m-00001-of-00001.gguf") == part_names("m.gguf") == []


def test_tensors_as_a_table(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    metadata = read_metadata(write_split(tmp_path, 2)[0])
    frame = TensorTable(metadata).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["part"]) == [0, 1]
    assert frame["size"].sum() == metadata.size


def test_clean() -> None:
    assert clean("a\x1b[31m\u202eb\nc") == "a\ufffd[31m\ufffdb c"
    assert clean("x" * 500) == "x" * 300 + "…"
