"""Quantizing: exact sizes, the bytes of llama-quantize, and what happens when something goes wrong."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_magic.api.quantize import plan, quantize
from llama_magic.engine.client import EngineClient, set_client
from llama_magic.engine.jobs import set_job_client
from llama_magic.errors import (
    DiskFullError,
    EngineCrashed,
    InvalidModelError,
    InvalidRequestError,
    JobInterrupted,
)
from llama_magic.models.gguf import read_metadata
from llama_magic.models.metadata import TENSOR_TYPES
from llama_magic.native.library import dll, lib
from llama_magic.progress import Progress
from llama_magic.quantization.ftypes import COPY, FTYPES, find_ftype, is_float
from llama_magic.quantization.imatrix_file import Entry, ImportanceMatrix, write_imatrix
from llama_magic.quantization.tensor_file import TensorFile
from tests.gguf import write_gguf

WIDTH, LAYERS, VOCAB = 256, 2, 64


def tiny(path: Path, *, width: int = WIDTH, seed: int = 1, layers: int = LAYERS) -> Path:
    """Write a Llama of F32 weights whose rows divide by 256."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (width, VOCAB), "output_norm.weight": (width,)}
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            shapes[f"blk.{layer}.{name}.weight"] = (width, width)
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{name}.weight"] = (width,)
    values: dict[str, Any] = {
        "general.architecture": "llama", "general.name": "tiny", "general.file_type": 0,
        "llama.block_count": layers, "llama.context_length": 64, "llama.embedding_length": width,
        "llama.feed_forward_length": width, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 4,
        "llama.rope.dimension_count": width // 4, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [f"t{n}" for n in range(VOCAB)],
        "tokenizer.ggml.scores": [0.0] * VOCAB, "tokenizer.ggml.token_type": [1] * VOCAB,
    }  # fmt: skip
    tensors = [
        (name, shape, 0, random.standard_normal(shape[::-1], np.float32).tobytes()) for name, shape in shapes.items()
    ]
    return write_gguf(path, values, tensors)


@pytest.fixture(scope="module", autouse=True)
def planner() -> Iterator[None]:
    """One worker for the plans of this module."""
    client = EngineClient()
    set_client(client)
    yield
    set_client(None)
    client.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("source") / "tiny-F32.gguf")


@pytest.fixture(scope="module")
def matrix(source: Path) -> Path:
    return write_matrix(source, source.with_name("tiny.imatrix.gguf"))


def write_matrix(model: Path, path: Path, *, width: int | None = None) -> Path:
    random = np.random.default_rng(5)
    entries = {
        tensor.name: Entry(random.uniform(1, 9, (1, width or tensor.shape[0])), np.array([640]))
        for tensor in read_metadata(model).tensors
        if len(tensor.shape) == 2 and tensor.name.startswith("blk.")
    }
    write_imatrix(path, ImportanceMatrix(entries, ("some text.txt",), 20, 32))
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_is_that_of_this_llama_cpp() -> None:
    names = {name for name in vars(lib) if name.startswith(("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_"))}
    theirs = {
        name.removeprefix("LLAMA_FTYPE_MOSTLY_").removeprefix("LLAMA_FTYPE_ALL_"): getattr(lib, name) for name in names
    }
    assert {ftype.name: ftype.number for ftype in FTYPES} == theirs


def test_blocks_are_those_of_ggml() -> None:
    size = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int)(("ggml_type_size", dll))
    block = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int)(("ggml_blck_size", dll))
    name = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(("ggml_type_name", dll))
    numbers = {label: number for number, (label, _, _) in TENSOR_TYPES.items()}
    for ftype in FTYPES:
        number = numbers[ftype.tensor_type]
        assert name(number).decode().upper() == ftype.tensor_type
        assert ftype.bits == 8 * size(number) / block(number)


@pytest.mark.parametrize("name", [ftype.name for ftype in FTYPES if ftype.writable])
def test_types_choose_what_the_table_says(source: Path, name: str) -> None:
    ftype, found = find_ftype(name), plan(source, name)
    assert found.needs_imatrix == (ftype.imatrix == "needed")
    assert not found.fallbacks
    if name != "MXFP4_MOE":  # Q8_0 where a model has no experts
        assert ftype.tensor_type in found.types


# -- plans and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0", "Q4_K_M", "Q2_K", "TQ1_0", COPY])
def test_a_plan_is_exact(source: Path, tmp_path: Path, name: str) -> None:
    planned = plan(source, name, override_kv={"general.name": "renamed", "a.new.key": 7})
    made = quantize(source, name, tmp_path, override_kv={"general.name": "renamed", "a.new.key": 7})
    assert made.path.stat().st_size == made.size == planned.size
    assert made.tensors == planned.tensors
    written = read_metadata(made.path)
    assert {t.name: (t.type, t.size) for t in written.tensors} == {t.name: (t.type, t.size) for t in made.tensors}
    assert made.bits_per_weight == pytest.approx(8 * written.size / written.n_params)
    assert (written.values["general.name"], written.values["a.new.key"]) == ("renamed", 7)
    assert left(tmp_path) == [made.path.name]


@pytest.mark.parametrize(("name", "worst"), [("Q8_0", 0.02), ("Q4_0", 0.2)])
def test_values_by_numpy(source: Path, tmp_path: Path, name: str, worst: float) -> None:
    """Read the blocks with numpy alone: a float16 scale, then signed 8 bits or 4 bits with 8 taken off."""
    made = quantize(source, name, tmp_path)
    with TensorFile(str(made.path)) as new, TensorFile(str(source)) as old:
        tensor = new.find("blk.1.ffn_up.weight")
        blocks = new.raw(tensor, 0, WIDTH).reshape(-1, 34 if name == "Q8_0" else 18)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
        codes = blocks[:, 2:].view(np.int8).astype(np.float64)
        if name == "Q4_0":
            packed = blocks[:, 2:].astype(np.int64)
            codes = np.concatenate([packed & 15, packed >> 4], axis=1) - 8.0
        wanted = old.rows(old.find(tensor.name), 0, WIDTH).reshape(-1, 32)
        error = np.abs(scale * codes - wanted) / np.abs(wanted).max(axis=1, keepdims=True)
    assert error.max() < worst
    assert error.max() > 0


def test_low_bits_are_real(source: Path, matrix: Path, tmp_path: Path) -> None:
    made = quantize(source, ["IQ1_S", "IQ2_XXS", "Q2_K"], tmp_path, matrix)
    assert [item.ftype for item in made] == ["IQ1_S", "IQ2_XXS", "Q2_K"]
    assert all(not item.fallbacks for item in made)
    layers = [t for t in made["IQ1_S"].tensors if "ffn_up" in t.name]
    assert {t.type for t in layers} == {"IQ1_S"}
    assert all(8 * t.size / t.n_weights == 1.5625 for t in layers)


def test_provenance(source: Path, matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(matrix.parent)
    made = quantize(source, "IQ2_XXS", tmp_path, matrix.name)
    values = read_metadata(made.path).values
    assert values["quantize.imatrix.file"] == matrix.name
    assert values["quantize.imatrix.dataset"] == "some text.txt"
    assert values["quantize.imatrix.entries_count"] == 7 * LAYERS
    assert values["quantize.imatrix.chunks_count"] == 20


def test_fallbacks_and_why(tmp_path: Path) -> None:
    odd = tiny(tmp_path / "odd.gguf", width=320)
    found = plan(odd, "Q4_K_M")
    assert {t.name for t in found.fallbacks} == {
        t.name for t in found.tensors if t.name.startswith("blk.") and "norm" not in t.name
    }
    assert {(t.wanted, t.type) for t in found.fallbacks} == {("Q4_K", "Q5_0"), ("Q6_K", "Q8_0")}
    assert "320" in found.fallbacks[0].reason
    assert "256" in found.fallbacks[0].reason
    assert any("token_embd.weight stays Q8_0" in note for note in found.notes)


# -- against the tool -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flags", "options"),
    [
        ("F16", [], {}),
        ("Q8_0", [], {}),
        ("Q4_0", ["--pure"], {"pure": True}),
        ("Q4_K_M", [], {}),
        ("Q2_K", ["--prune-layers", "0"], {"prune_layers": [0]}),
        ("Q4_K_M", ["--tensor-type", r"blk\.1\.ATTN_v=q8_0"], {"tensor_types": {r"blk\.1\.ATTN_v": "Q8_0"}}),
        ("Q5_K_M", ["--output-tensor-type", "q5_1", "--token-embedding-type", "q4_0"],
         {"output_tensor_type": "Q5_1", "token_embedding_type": "q4_0"}),
        ("Q8_0", ["--override-kv", "x.y=float:0.5"], {"override_kv": ["x.y=float:0.5"]}),
        ("IQ2_XXS", ["--imatrix"], {"imatrix": True}),
        ("Q4_K_M", ["--imatrix"], {"imatrix": True}),
    ],
)  # fmt: skip
def test_the_bytes_of_llama_quantize(
    source: Path,
    matrix: Path,
    tmp_path: Path,
    llama_tool: Callable[..., str],
    name: str,
    flags: list[str],
    options: Any,
) -> None:
    if "imatrix" in options:
        flags, options = [*flags, str(matrix)], {"imatrix": matrix}
    llama_tool("llama-quantize", *flags, source, tmp_path / "theirs.gguf", name, 2)
    made = quantize(source, name, tmp_path / "ours.gguf", n_threads=2, **options)
    assert made.path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


# -- refusals ---------------------------------------------------------------------------------------------------------


def refused(words: str, *arguments: Any, error: type[Exception] = InvalidRequestError, **options: Any) -> None:
    with pytest.raises(error) as caught:
        quantize(*arguments, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refusals(source: Path, tmp_path: Path) -> None:
    refused("Did you mean Q4_K_M?", source, "Q4_KM", tmp_path)
    refused("reads NVFP4 files but can not make them", source, "NVFP4", tmp_path)
    refused("is the source itself", source, "F32", source, force=True)
    refused("%llama imatrix", source, "IQ1_S", tmp_path)
    refused("regular expression", source, "Q4_K_M", tmp_path, tensor_types={"attn[": "Q8_0"})
    refused("no layer 9 to prune", source, "Q8_0", tmp_path, prune_layers=[9])
    (tmp_path / "there.gguf").write_bytes(b"mine")
    refused("exists; --force", source, "Q8_0", tmp_path / "there.gguf")
    (tmp_path / "broken.gguf").write_bytes(source.read_bytes()[:-5000])
    refused("cut off", tmp_path / "broken.gguf", "Q8_0", error=InvalidModelError)
    with pytest.raises(TypeError):
        quantize(source, "Q8_0", tmp_path, no_such_option=1)
    assert (tmp_path / "there.gguf").read_bytes() == b"mine"
    assert left(tmp_path) == ["broken.gguf", "there.gguf"]


def test_a_matrix_of_another_model(source: Path, tmp_path: Path) -> None:
    wrong = write_matrix(source, tmp_path / "wrong.gguf", width=128)
    refused("matrix of another model: it has 128 columns", source, "Q4_0", tmp_path, wrong)
    deeper = tiny(tmp_path / "deep.gguf", layers=3)
    more = write_matrix(deeper, tmp_path / "more.gguf")
    refused("matrix of another model: it has blk.2.", source, "Q4_0", tmp_path, more)


def test_requantizing(source: Path, tmp_path: Path) -> None:
    shutil.copy(source, tmp_path / "tiny-F32.gguf")
    small = quantize(tmp_path / "tiny-F32.gguf", "Q4_0")
    refused(f"Take {tmp_path / 'tiny-F32.gguf'} instead", small.path, "Q8_0")
    made = quantize(small.path, "F16", allow_requantize=True)
    assert "Q4_0" in made.warnings[0]
    assert str(tmp_path / "tiny-F32.gguf") in made.warnings[0]
    (tmp_path / "tiny-F32.gguf").unlink()
    # What was made from the small file knows no more than it.
    with pytest.raises(InvalidRequestError) as caught:
        quantize(small.path, "Q8_0")
    assert "Take" not in str(caught.value)
    assert all(is_float(t.type) for t in read_metadata(made.path).tensors)


# -- what it must withstand -------------------------------------------------------------------------------------------


class _Watched(EngineClient):
    """A client that tests can reach."""

    last: _Watched | None = None

    def __init__(self) -> None:
        super().__init__()
        type(self).last = self


@pytest.fixture
def watched() -> Iterator[None]:
    set_job_client(_Watched)
    yield
    set_job_client(None)


def test_killed_worker(source: Path, tmp_path: Path, watched: None) -> None:
    def kill(progress: Progress) -> None:
        client = _Watched.last
        if progress.fraction and client is not None and client.pid is not None:
            os.kill(client.pid, signal.SIGKILL)

    with pytest.raises(EngineCrashed):
        quantize(source, ["Q2_K", "Q3_K_M", "Q4_K_M"], tmp_path, progress=kill, n_threads=1)
    assert not [name for name in left(tmp_path) if name.endswith(".part")]
    for path in tmp_path.glob("*.gguf"):
        assert read_metadata(path).tensors  # what was finished before is whole


@pytest.mark.parametrize("moment", [0, 1, 3])
def test_cancelled(source: Path, tmp_path: Path, moment: int) -> None:
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) > moment:
            raise KeyboardInterrupt

    with pytest.raises(JobInterrupted):
        quantize(source, ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"], tmp_path, progress=stop, n_threads=1)
    assert not [name for name in left(tmp_path) if ".part" in name]
    for path in tmp_path.glob("*.gguf"):
        assert read_metadata(path).tensors
    assert quantize(source, "Q8_0", tmp_path).path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("more are needed", source, "F16", small_disk, error=DiskFullError)
    assert left(small_disk) == []


def test_a_disk_that_fills_meanwhile(source: Path, small_disk: Path, tmp_path: Path) -> None:
    """What is promised at the start is taken away by another: the write itself fails."""
    free = shutil.disk_usage(small_disk).free
    need = plan(source, "IQ4_XS").size
    assert need < free

    def fill(progress: Progress) -> None:
        rest = shutil.disk_usage(small_disk).free
        # the worker writes meanwhile: whoever comes last finds the disk full
        with contextlib.suppress(OSError), (small_disk / "other").open("ab") as file:
            file.write(b"x" * rest)

    with pytest.raises(DiskFullError):
        quantize(source, "IQ4_XS", small_disk, progress=fill, n_threads=1)
    assert left(small_disk) == ["other"]


def test_stale_files_go(source: Path, tmp_path: Path) -> None:
    from llama_magic.quantization.sources import temporary_name

    gone = subprocess.Popen(["true"])
    gone.wait()
    ours = temporary_name(tmp_path / "mine.gguf")
    stale = ours.with_name(ours.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-"))
    stale.write_bytes(b"half")
    ours.write_bytes(b"at work")
    (tmp_path / ".other.part").write_bytes(b"not ours")
    made = quantize(source, "Q8_0", tmp_path)
    assert left(tmp_path) == sorted([ours.name, ".other.part", made.path.name])
