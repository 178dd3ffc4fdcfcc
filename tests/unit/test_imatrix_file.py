"""Files of importance matrices: written, read, added up; and what a wrong file says."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from llama_magic.errors import InvalidModelError, InvalidRequestError, ModelNotFoundError
from llama_magic.models.gguf import read_metadata
from llama_magic.quantization.imatrix_file import Entry, ImportanceMatrix, merge, read_imatrix, write_imatrix
from tests.gguf import Tensor, write_gguf


def entry(rows: int, columns: int, counts: list[int], seed: int = 0) -> Entry:
    sums = np.random.default_rng(seed).uniform(0, 9, (rows, columns)).astype(np.float32).astype(np.float64)
    return Entry(sums, np.array(counts, np.int64))


def matrix(seed: int = 0, changes: dict[str, Entry] | None = None) -> ImportanceMatrix:
    entries = {
        "blk.1.attn_q.weight": entry(1, 8, [1024], seed),
        "blk.0.ffn_down_exps.weight": entry(3, 5, [700, 0, 324], seed),
        **(changes or {}),
    }
    return ImportanceMatrix(entries, ("a.txt", "Größe.txt"), chunk_count=2, chunk_size=512)


def legacy(path: Path, entries: dict[str, tuple[int, list[float]]], end: bytes = b"") -> Path:
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name.encode(), calls, len(values), *values)
    path.write_bytes(data + end)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, written = tmp_path / "m.gguf", matrix()
    written.extra = {"llama_magic.test": "ä"}
    write_imatrix(path, written)
    read = read_imatrix(path)
    assert list(read.entries) == sorted(written.entries)
    for name, found in read.entries.items():
        assert np.array_equal(found.sums, written.entries[name].sums)
        assert np.array_equal(found.counts, written.entries[name].counts)
    assert (read.datasets, read.chunk_count, read.chunk_size) == (written.datasets, 2, 512)
    assert read.extra == written.extra
    assert not read.legacy
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_the_layout_is_that_of_llama_imatrix(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(path, matrix())
    about = read_metadata(path)
    assert list(about.values) == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert about.values["general.type"] == "imatrix"
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in about.tensors] == [
        ("blk.0.ffn_down_exps.weight.in_sum2", (5, 3), "F32"),
        ("blk.0.ffn_down_exps.weight.counts", (1, 3), "F32"),
        ("blk.1.attn_q.weight.in_sum2", (8,), "F32"),
        ("blk.1.attn_q.weight.counts", (1,), "F32"),
    ]
    assert all(tensor.offset % 32 == 0 for tensor in about.tensors)


def test_importance_is_the_mean_square_and_one_where_nothing_was_counted() -> None:
    found = entry(3, 5, [700, 0, 324])
    values = found.importance().reshape(3, 5)
    assert values[0] == pytest.approx(found.sums[0] / 700, rel=1e-6)
    assert list(values[1]) == [1, 1, 1, 1, 1]
    assert values[2] == pytest.approx(found.sums[2] / 324, rel=1e-6)


@pytest.mark.parametrize("end", [b"", struct.pack("<i", 7), struct.pack("<ii5s", 7, 5, b"a.txt")])
def test_the_old_format(tmp_path: Path, end: bytes) -> None:
    path = legacy(tmp_path / "old.dat", {"blk.0.attn_q.weight": (4, [2.0, 6.0])}, end)
    read = read_imatrix(path)
    assert read.legacy
    assert read.chunk_count == (7 if end else 0)
    assert read.datasets == (("a.txt",) if len(end) > 4 else ())
    assert list(read.entries["blk.0.attn_q.weight"].importance()) == [0.5, 1.5]


def test_adding_up() -> None:
    first, second = matrix(1), matrix(2)
    total = merge([("a", first), ("b", second)], 512)
    for name, found in total.entries.items():
        assert np.array_equal(found.sums, first.entries[name].sums + second.entries[name].sums)
        assert np.array_equal(found.counts, 2 * first.entries[name].counts)
    assert total.datasets == ("a.txt", "Größe.txt") * 2
    assert total.chunk_count == 4
    assert first.entries["blk.1.attn_q.weight"].counts[0] == 1024, "what went in stays as it was"


def test_adding_up_the_old_format_counts_in_chunks(tmp_path: Path) -> None:
    old = read_imatrix(legacy(tmp_path / "old.dat", {"blk.1.attn_q.weight": (3, [3.0] * 8)}))
    total = merge([("new", matrix()), ("old", old)], 512)
    found = total.entries["blk.1.attn_q.weight"]
    assert found.counts == [1024 + 3 * 512]
    assert found.sums == pytest.approx(matrix().entries["blk.1.attn_q.weight"].sums + 3 * 512)


def test_one_count_holds_for_all_experts() -> None:
    other = matrix(changes={"blk.0.ffn_down_exps.weight": entry(1, 15, [100])})
    total = merge([("a", other), ("b", matrix())], 512)
    assert list(total.entries["blk.0.ffn_down_exps.weight"].counts) == [800, 100, 424]


def test_matrices_of_other_models_do_not_add_up() -> None:
    other = matrix(changes={"blk.1.attn_q.weight": entry(1, 9, [1024])})
    with pytest.raises(InvalidRequestError, match=r"second\.gguf is of another model .*attn_q\.weight has 9 values"):
        merge([("first.gguf", matrix()), ("second.gguf", other)], 512)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"%llama imatrix makes one"):
        read_imatrix(tmp_path / "none.gguf")
    with pytest.raises(ModelNotFoundError, match="is a folder"):
        read_imatrix(tmp_path)


def keys(**changes: object) -> dict[str, object]:
    return {"general.type": "imatrix", "imatrix.datasets": ["a"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 512,
            **changes}  # fmt: skip


SUMS = ("blk.0.a.weight.in_sum2", (4,), 0, struct.pack("<4f", 1, 2, 3, 4))
COUNTS = ("blk.0.a.weight.counts", (1,), 0, struct.pack("<f", 512))


@pytest.mark.parametrize(
    ("values", "tensors", "words"),
    [
        ({"general.architecture": "llama"}, [("output.weight", (4,), 0, bytes(16))], "is a model, not an importance"),
        ({"general.type": "imatrix"}, [SUMS, COUNTS], "lacks the keys"),
        (keys(), [SUMS], "not both there"),
        (keys(), [("blk.0.a.weight.in_sum2", (4,), 1, bytes(8)), COUNTS], "F16, not F32"),
        (keys(), [SUMS, ("blk.0.a.weight.counts", (1, 3), 0, bytes(12))], "4 sums for 3 counts"),
        (keys(), [(*SUMS[:3], struct.pack("<4f", 1, 2, float("nan"), 4)), COUNTS], "not finite"),
        (keys(), [SUMS, (*COUNTS[:3], struct.pack("<f", -1))], "not finite"),
    ],
)
def test_files_that_can_not_be_used(
    tmp_path: Path, values: dict[str, object], tensors: list[Tensor], words: str
) -> None:
    path = write_gguf(tmp_path / "bad.gguf", values, tensors)
    with pytest.raises(InvalidModelError, match=words) as caught:
        read_imatrix(path)
    assert "\n" not in str(caught.value)
    assert "bad.gguf" in str(caught.value)


def test_other_files_and_cut_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content in (b"", b"ab", b"<!DOCTYPE html><html></html>", b"\xff" * 64, struct.pack("<i", 10**6) + bytes(99)):
        path.write_bytes(content)
        with pytest.raises(InvalidModelError):
            read_imatrix(path)
    for whole in (legacy(tmp_path / "l", {"blk.0.a": (1, [1.0, 2.0])}).read_bytes(), _gguf(tmp_path)):
        for length in range(1, len(whole), 7):
            path.write_bytes(whole[:length])
            with pytest.raises(InvalidModelError):
                read_imatrix(path)


def _gguf(folder: Path) -> bytes:
    write_imatrix(folder / "whole", matrix())
    # the padding after the last tensor may be missing
    return (folder / "whole").read_bytes()[:-28]


def test_a_folder_that_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="can not be written"):
        write_imatrix(tmp_path / "none" / "m.gguf", matrix())
    assert not list(tmp_path.iterdir())
