"""Models in several files: quantized to one file, or to as many as the source has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_magic as lm
from llama_magic.api.quantize import plan, quantize
from llama_magic.errors import InvalidRequestError, JobInterrupted, ModelNotFoundError
from llama_magic.progress import Progress
from tests.gguf import read_gguf, write_gguf
from tests.native.test_quantize import left, tiny

PARTS = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("whole") / "tiny-F32.gguf")


@pytest.fixture(scope="module")
def parts(whole: Path) -> list[Path]:
    """The model as llama-gguf-split cuts it: the first part has the metadata, the others only their number."""
    values, tensors = read_gguf(whole)
    per = -(-len(tensors) // PARTS)
    made = []
    for number in range(PARTS):
        split = {
            "split.no": np.uint16(number), "split.count": np.uint16(PARTS), "split.tensors.count": np.int32(len(tensors)),
        }  # fmt: skip
        path = whole.with_name(f"tiny-F32-{number + 1:05}-of-{PARTS:05}.gguf")
        head = {**values, **split} if number == 0 else split
        made.append(write_gguf(path, head, tensors[number * per : (number + 1) * per]))
    return made


def names(stem: str) -> list[str]:
    return [f"{stem}-{number:05}-of-{PARTS:05}.gguf" for number in range(1, PARTS + 1)]


def data(paths: list[Path]) -> dict[str, tuple[str, bytes]]:
    """Return type and bytes of every tensor, read without llama.cpp."""
    found: dict[str, tuple[str, bytes]] = {}
    for path in paths:
        _, tensors = read_gguf(path)
        found |= {name: (str(kind), content) for name, _, kind, content in tensors}
    return found


def test_as_many_files_as_the_source_has(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    made = quantize(parts[0], "Q4_0", tmp_path, keep_split=True)
    assert left(tmp_path) == names("tiny-Q4_0")
    assert made.path.name == names("tiny-Q4_0")[0]
    assert [path.name for path in made.paths] == names("tiny-Q4_0")
    assert made.size == sum(path.stat().st_size for path in made.paths)
    assert plan(parts[0], "Q4_0", keep_split=True).size == made.size
    one = quantize(whole, "Q4_0", tmp_path / "one.gguf")
    assert data(list(made.paths)) == data([one.path])
    for number, path in enumerate(made.paths):
        values, tensors = read_gguf(path)
        assert (values["split.no"], values["split.count"], values["split.tensors.count"]) == (number, PARTS, 20)
        assert [tensor[0] for tensor in tensors] == [tensor[0] for tensor in read_gguf(parts[number])[1]]
    with lm.load(str(made.path), n_ctx=64) as model:
        assert len(model.metadata.tensors) == 20


def test_into_one_file(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    made = quantize(parts[0], "Q4_0", tmp_path)
    assert left(tmp_path) == ["tiny-Q4_0.gguf"]
    assert made.size == plan(parts[0], "Q4_0").size == made.path.stat().st_size
    assert data([made.path]) == data([quantize(whole, "Q4_0", tmp_path / "one.gguf").path])


def test_the_bytes_of_llama_quantize(parts: list[Path], tmp_path: Path, llama_tool: Callable[..., str]) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    for keep in (True, False):
        target = tmp_path / "theirs" / ("tiny-Q4_K_M" if keep else "tiny-Q4_K_M.gguf")
        llama_tool("llama-quantize", *(["--keep-split"] if keep else []), parts[0], target, "Q4_K_M", 2)
        quantize(parts[0], "Q4_K_M", tmp_path / "ours", n_threads=2, keep_split=keep)
    assert left(tmp_path / "ours") == sorted([*names("tiny-Q4_K_M"), "tiny-Q4_K_M.gguf"])
    assert left(tmp_path / "theirs") == left(tmp_path / "ours")
    for path in (tmp_path / "ours").iterdir():
        assert path.read_bytes() == (tmp_path / "theirs" / path.name).read_bytes()


def test_refusals_and_stops(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="name the first"):
        quantize(parts[1], "Q4_0", tmp_path)
    second = tmp_path / names("tiny-Q4_0")[1]
    second.write_bytes(b"mine")
    with pytest.raises(InvalidRequestError, match=re.escape(f"{second} exists; --force")):
        quantize(parts[0], "Q4_0", tmp_path, keep_split=True)
    with pytest.raises(InvalidRequestError, match="is the source itself"):
        quantize(parts[0], "Q4_0", parts[0].parent / "tiny-F32.gguf", keep_split=True, force=True)

    def stop(progress: Progress) -> None:
        if progress.fraction:
            raise KeyboardInterrupt

    with pytest.raises(JobInterrupted):
        quantize(parts[0], ["Q2_K", "Q3_K_M"], tmp_path, keep_split=True, progress=stop, n_threads=1)
    assert not [name for name in left(tmp_path) if ".part" in name]
    made: Any = quantize(parts[0], "Q4_0", tmp_path, keep_split=True, force=True)
    assert second.read_bytes() != b"mine"
    assert not made.warnings


def test_a_part_that_is_missing(parts: list[Path], tmp_path: Path) -> None:
    for path in parts[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelNotFoundError, match=re.escape(parts[2].name)):
        quantize(tmp_path / parts[0].name, "Q4_0", tmp_path, keep_split=True)
