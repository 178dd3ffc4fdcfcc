"""GGUF files from strangers: whatever is in them, the reader gives metadata or one clear error."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_magic.errors import InvalidModelError
from llama_magic.models.card import TensorTable
from llama_magic.models.gguf import read_header, read_metadata
from llama_magic.models.metadata import ModelMetadata
from tests.gguf import Tensor, write_gguf

MEMORY = 64 << 20

VALUES = {
    "general.architecture": "gemma3",
    "general.name": "Tiny ü",
    "general.file_type": 2,
    "general.license": "mit",
    "general.tags": ["one", "two"],
    "gemma3.block_count": 2,
    "gemma3.context_length": 8192,
    "gemma3.embedding_length": 64,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.head_count_kv": [2, 0],
    "gemma3.attention.sliding_window": 512,
    "gemma3.rope.freq_base": 1e4,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"token {number}" for number in range(40)],
    "tokenizer.ggml.scores": [0.5] * 40,
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
TENSORS: list[Tensor] = [
    ("token_embd.weight", (64, 3), 0, b"\1" * 768),
    ("blk.0.attn_q.weight", (64, 64), 2, b"\2" * 2304),
    ("blk.1.attn_q.weight", (64, 64), 8, b"\3" * 4352),
]
DATA = 768 + 2304 + 4352
LIMITS = (0, 1, 7, 8, 9, 31, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("base") / "base.gguf", VALUES, TENSORS).read_bytes()


@pytest.fixture(scope="module")
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


#: Where, from 0 to 1 of the header, and what: one byte, a number of 4 or 8 bytes, bytes taken out, or put in.
PLACES = st.floats(0, 1, exclude_max=True)
CHANGES = st.one_of(
    st.tuples(PLACES, st.just("byte"), st.integers(0, 255)),
    st.tuples(PLACES, st.just("bit"), st.integers(0, 7)),
    st.tuples(PLACES, st.just("u32"), st.sampled_from(LIMITS)),
    st.tuples(PLACES, st.just("u64"), st.sampled_from(LIMITS)),
    st.tuples(PLACES, st.just("out"), st.integers(1, 40)),
    st.tuples(PLACES, st.just("twice"), st.integers(1, 200)),
    st.tuples(PLACES, st.just("bad text"), st.just(0)),
)


def change(data: bytes, changes: list[tuple[float, str, int]], cut: float) -> bytes:
    changed = bytearray(data)
    for place, what, value in changes:
        at = int(place * (len(data) - DATA))
        if what == "byte":
            changed[at : at + 1] = bytes([value])
        elif what == "bit":
            changed[at : at + 1] = bytes([data[at] ^ 1 << value])
        elif what == "u32":
            changed[at : at + 4] = struct.pack("<I", value & 0xFFFFFFFF)
        elif what == "u64":
            changed[at : at + 8] = struct.pack("<Q", value)
        elif what == "out":
            del changed[at : at + value]
        elif what == "twice":
            changed[at:at] = data[at : at + value]
        else:
            changed[at : at + 3] = b"\xff\xfe\xc0"
    return bytes(changed[: int(len(changed) * cut)])


def use(metadata: ModelMetadata) -> None:
    """Use everything that is made of metadata: none of it may fail, and all of it can be shown and written."""
    json.dumps(metadata.to_dict(), allow_nan=False)
    text, page = repr(metadata), metadata._repr_html_()
    assert "\x1b" not in text + page
    assert "<script" not in page
    repr(TensorTable(metadata)), TensorTable(metadata)._repr_html_()
    assert metadata.kv_cache.known in (True, False)


def try_to_read(data: bytes, piece: int = 64) -> ModelMetadata | None:
    """Read through a narrow window, so that every value comes to lie on its edge."""
    try:
        return read_header(lambda offset, count: data[offset : offset + max(count, piece)], len(data), "fuzz.gguf")
    except InvalidModelError as error:
        message = str(error)
        assert message.startswith("fuzz.gguf ")
        assert "\n" not in message
        assert len(message) < 600
        return None


def check(data: bytes, piece: int) -> None:
    tracemalloc.reset_peak()
    metadata = try_to_read(data, piece)
    assert tracemalloc.get_traced_memory()[1] < MEMORY
    if metadata is not None:
        use(metadata)


PIECES = (1, 64, 4096)
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(SETTINGS, max_examples=300)
@given(st.lists(CHANGES, min_size=1, max_size=4), st.one_of(st.just(1.0), st.floats(0, 1)), st.sampled_from(PIECES))
def test_changed_files(
    base: bytes, traced: None, changes: list[tuple[float, str, int]], cut: float, piece: int
) -> None:
    check(change(base, changes, cut), piece)


# 2,500 files more. Drawing each change from hypothesis would take ten times as long as reading the file.
@settings(SETTINGS, max_examples=250)
@given(st.integers(0, (1 << 64) - 1))
def test_mutated_files(base: bytes, traced: None, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(10):
        changes = [(dice.random(), *draw_change(dice)) for _ in range(dice.choice((1, 1, 1, 2, 4)))]
        cut = dice.choice((1.0, 1.0, 1.0, dice.random()))
        check(change(base, changes, cut), dice.choice(PIECES))


def draw_change(dice: random.Random) -> tuple[str, int]:
    what = dice.choice(("byte", "bit", "u32", "u64", "out", "twice", "bad text"))
    if what in ("u32", "u64"):
        return what, dice.choice(LIMITS)
    return what, dice.randrange({"byte": 256, "bit": 8, "out": 40, "twice": 200}.get(what, 1))


def test_every_place_to_cut(base: bytes) -> None:
    lengths = [*range(len(base) - DATA), *range(len(base) - DATA, len(base), 97)]
    read = [length for length in lengths if try_to_read(base[:length], 1 << 20) is not None]
    assert not read


def test_the_file_itself_is_read(base: bytes) -> None:
    metadata = try_to_read(base, 1)
    assert metadata is not None
    use(metadata)
    assert metadata.special_tokens == {"bos": "token 3"}


def sparse(path: Path, head: bytes, size: int = 1 << 40) -> Path:
    """Write a file that claims a terabyte and takes no place on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def header(n_tensors: int, n_keys: int) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_keys)


def key(name: bytes, kind: int, rest: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + rest


def many_texts(count: int, size: int) -> bytes:
    return header(0, count) + b"".join(
        key(b"k%d" % number, 8, struct.pack("<Q", size) + b"\xf0\x9f\xa6\x99" * (size // 4)) for number in range(count)
    )


def many_tensors(count: int) -> bytes:
    return header(count, 0) + b"".join(
        struct.pack("<Q", 40) + b"tensor %033d" % number + struct.pack("<IQIQ", 1, 8, 0, 32 * number)
        for number in range(count)
    )


def many_lists(count: int) -> bytes:
    return header(0, count) + b"".join(
        key(b"k%d" % number, 9, struct.pack("<IQ", 11, 1024) + b"\x7f" * 8192) for number in range(count)
    )


def byte_lists(count: int) -> bytes:
    return header(0, count) + b"".join(
        key(b"k%d" % number, 9, struct.pack("<IQ", 8, 64) + (struct.pack("<Q", 20) + b"x" * 20) * 64)
        for number in range(count)
    )


HOSTILE = {
    "a text of a terabyte": header(0, 1) + key(b"k", 8, struct.pack("<Q", (1 << 40) - 200)),
    "a key of a terabyte": header(0, 1) + struct.pack("<Q", (1 << 40) - 200),
    "a terabyte of empty strings": header(0, 1) + key(b"k", 9, struct.pack("<IQ", 8, 1 << 36)),
    "two million strings": header(0, 1) + key(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1 << 21)),
    "a terabyte of numbers": header(0, 1) + key(b"k", 9, struct.pack("<IQ", 10, 1 << 36)),
    "nested arrays": header(0, 1) + key(b"k", 9, struct.pack("<IQ", 9, 1 << 20)),
    "many nested arrays": header(0, 1) + key(b"k", 9, struct.pack("<IQ", 9, 1) * 100_000),
    "all keys the same": header(0, 1 << 14) + key(b"k", 0, b"\0") * 100,
    "empty keys": header(0, 1 << 14),
    "too many keys": header(0, 1 << 60),
    "too many tensors": header(1 << 60, 0),
    "many long texts": many_texts(40, 1 << 20),
    "many numbers": many_lists(4000),
    "many short lists": byte_lists(12_000),
    "many tensors": many_tensors(1 << 16),
    "an endless tensor name": header(1, 0) + struct.pack("<Q", 1 << 39),
    "a tensor of more than all": header(1, 0) + struct.pack("<Q1sIQQQQIQ", 1, b"t", 4, *(1 << 40,) * 4, 0, 0),
    "tensors of nothing": header(2, 0) + b"".join(
        struct.pack("<Q1sIQIQ", 1, name, 1, 0, 0, 0) for name in (b"a", b"b")
    ),
    "many dimensions": header(1, 0) + struct.pack("<Q1sI", 1, b"t", 1 << 31),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_cost_little(tmp_path: Path, what: str) -> None:
    path = sparse(tmp_path / "hostile.gguf", HOSTILE[what])
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            metadata: ModelMetadata | None = read_metadata(path)
        except InvalidModelError:
            metadata = None
        assert tracemalloc.get_traced_memory()[1] - before < MEMORY
    finally:
        tracemalloc.stop()
    if metadata is not None:
        assert len(repr(metadata)) + len(metadata._repr_html_()) < 4 << 20


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"general.alignment": 48}, "no power of two"),
        ({"general.alignment": 0}, "no power of two"),
        ({"general.alignment": "32"}, "alignment is no u32"),
    ],
)
def test_alignments(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", {**VALUES, **changed}, TENSORS)
    with pytest.raises(InvalidModelError, match=words):
        read_metadata(path)


def test_what_llama_cpp_refuses_is_refused(tmp_path: Path, base: bytes) -> None:
    second = struct.pack("<Q", 19) + b"blk.0.attn_q.weight"
    third = struct.pack("<Q", 19) + b"blk.1.attn_q.weight"
    assert base.count(second) == base.count(third) == 1
    offset = base.index(third) + len(third) + 4 + 16 + 4
    cases = {
        base.replace(third, second): "holds the tensor 'blk.0.attn_q.weight' twice",
        base[:offset] + struct.pack("<Q", 768) + base[offset + 8 :]: "its tensors overlap or leave gaps",
        base[: offset - 4] + struct.pack("<I", 31) + base[offset:]: "Q4_0_4_4, which llama.cpp has dropped",
        base[: offset - 4] + struct.pack("<I", 99) + base[offset:]: "type 99, which this llama.cpp does not know",
        base[: offset - 4] + struct.pack("<I", 12) + base[offset:]: "no multiple of Q4_K's 256",
        base.replace(b"general.name", b"general.tags"): "holds the key 'general.tags' twice",
        base.replace(b"general.name", b"general.nam\xff"): "a key that is no text",
    }
    for data, words in cases.items():
        (tmp_path / "m.gguf").write_bytes(data)
        with pytest.raises(InvalidModelError, match=words):
            read_metadata(tmp_path / "m.gguf")
