"""Reading GGUF headers, good and bad."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_magic.errors import InvalidModelError, ModelNotFoundError
from llama_magic.models.gguf import _REMEMBERED, _read, read_metadata
from llama_magic.models.memory import default_n_ctx, estimate
from llama_magic.models.options import LoadOptions
from tests.gguf import write_gguf

VALUES = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 2,
    "llama.block_count": 2,
    "llama.context_length": 8192,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "ü"],
    "tokenizer.ggml.scores": [0.5, 0.25, 1.0],
    "tokenizer.chat_template": "{{ messages }}",
}
TENSORS = [("token_embd.weight", (64, 3), 0, b"\1" * 768), ("blk.0.attn_q.weight", (64, 64), 2, b"\2" * 2304)]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", VALUES, TENSORS)


def test_reads_what_was_written(tiny: Path) -> None:
    metadata = read_metadata(tiny)
    assert metadata.architecture == "llama"
    assert metadata.ftype == "Q4_0"
    assert (metadata.n_layer, metadata.n_embd, metadata.n_ctx_train, metadata.n_vocab) == (2, 64, 8192, 3)
    assert metadata.chat_template == "{{ messages }}"
    assert metadata.n_params == 64 * 3 + 64 * 64
    assert metadata.size == 768 + 2304
    assert [tensor.type for tensor in metadata.tensors] == ["F32", "Q4_0"]
    assert tiny.read_bytes()[metadata.data_offset] == 1


def test_a_file_that_changed_is_read_again(tiny: Path) -> None:
    first = read_metadata(tiny)
    assert read_metadata(tiny) is first
    write_gguf(tiny, VALUES | {"general.name": "Changed"}, TENSORS)
    assert read_metadata(tiny).values["general.name"] == "Changed"
    for number in range(20):
        read_metadata(write_gguf(tiny.with_name(f"{number}.gguf"), VALUES, TENSORS))
    again = read_metadata(tiny)
    assert again.values["general.name"] == "Changed"
    assert len(_read) == _REMEMBERED


def test_memory_is_what_the_shapes_say(tiny: Path) -> None:
    metadata = read_metadata(tiny)
    options = LoadOptions(n_ctx=1024)
    # two layers, 1,024 tokens, two key-value heads of 16 values, key and value, two bytes each
    assert estimate(metadata, options).kv_cache == 2 * 1024 * 2 * 16 * 2 * 2
    assert estimate(metadata, options).weights == metadata.size
    assert estimate(metadata, options.replace(cache_type_k="q8_0", cache_type_v="q8_0")).kv_cache == 2 * 1024 * 2 * 34
    assert default_n_ctx(metadata, LoadOptions()) == 4096


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\n <HTML>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\3\4 something", "is not a GGUF file"),
        (b"GGUF", "ends in the middle"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1), "claims"),
        (struct.pack("<4sIQQ", b"GGUF", 77, 1, 1), "version 77"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 62), "a key of"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=words) as caught:
        read_metadata(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_cut_off_says_how_much_is_missing(tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes()[:-100])
    with pytest.raises(InvalidModelError, match="100 of .* bytes are missing"):
        read_metadata(tiny)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        read_metadata(tmp_path / "none.gguf")
    with pytest.raises(ModelNotFoundError, match="is a folder"):
        read_metadata(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8), st.floats(0, 1)
)
def test_damaged_headers_never_do_worse_than_an_error(
    tmp_path: Path, flips: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(write_gguf(tmp_path / "m.gguf", VALUES, TENSORS).read_bytes())
    header = len(data) - 768 - 2304
    for where, value in flips:
        data[int(where * header)] = value
    (tmp_path / "m.gguf").write_bytes(data[: len(data) - int(cut * 200)])
    with contextlib.suppress(InvalidModelError):
        read_metadata(tmp_path / "m.gguf")
