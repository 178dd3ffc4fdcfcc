"""Blocks, the microscope and tensor errors, against ggml's own decoding and against numpy in double precision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_magic.api.tensors import microscope, tensor_errors
from llama_magic.errors import InvalidRequestError, JobInterrupted
from llama_magic.native import LogCapture, WorkerTools
from llama_magic.native.ggml_types import dequantize, quantize
from llama_magic.progress import Progress
from llama_magic.quantization.blocks import unpack
from llama_magic.quantization.comparing import run as compare
from llama_magic.quantization.error_sums import ErrorHistogram
from llama_magic.quantization.layouts import CODE_BITS, LAYOUTS, LEVELS
from llama_magic.quantization.looking import fallback
from llama_magic.quantization.looking import run as look
from llama_magic.quantization.microscope import MicroscopeRequest
from llama_magic.quantization.tensor_errors import TensorErrorsRequest
from llama_magic.quantization.tensor_file import TensorFile, traits_of
from tests.gguf import write_gguf

SLOW = {"IQ1_S", "IQ1_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS"}


def weights(rows: int, length: int, seed: int = 1) -> Any:
    return (np.random.default_rng(seed).standard_normal((rows, length)) * 0.05).astype(np.float32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_scales_and_minima_give_what_ggml_decodes(name: str) -> None:
    traits = traits_of(name)
    assert LAYOUTS[name].dtype.itemsize == traits.size
    data = quantize(traits, weights(2 if name in SLOW else 16, 512))
    decoded = dequantize(traits, data)
    blocks = unpack(traits, data, decoded)
    assert np.array_equal(blocks.values().ravel(), decoded), "exactly, not nearly"
    assert blocks.group == LAYOUTS[name].group
    assert set(np.unique(blocks.levels)) <= set(map(float, LEVELS[name]))
    low = -(1 << CODE_BITS[name] - 1) if name == "Q8_0" else 0
    assert low <= blocks.codes.min()
    assert blocks.codes.max() < low + (1 << CODE_BITS[name])


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.codebook > 1])
def test_an_index_always_means_the_same_vector(name: str) -> None:
    traits, width = traits_of(name), LAYOUTS[name].codebook
    data = quantize(traits, weights(6, 512, seed=3))
    blocks = unpack(traits, data, dequantize(traits, data))
    # signs are stored apart from the index, but for the types of one bit
    levels = blocks.levels if name.startswith("IQ1") else np.abs(blocks.levels)
    seen: dict[int, tuple[float, ...]] = {}
    scales = np.repeat(blocks.scales, blocks.group, 1).reshape(-1, width)
    for index, vector, scale in zip(blocks.codes.reshape(-1, width), levels.reshape(-1, width), scales, strict=True):
        assert len(set(index)) == 1
        if scale[0]:
            assert seen.setdefault(int(index[0]), tuple(vector)) == tuple(vector)
    assert len(seen) > 20


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A source and a quantized file of the same tensors."""
    arrays = {"blk.0.ffn_up.weight": weights(64, 512), "blk.0.odd.weight": weights(8, 96, 2), "norm": weights(1, 32)}
    kinds = {"blk.0.ffn_up.weight": (12, "Q4_K"), "blk.0.odd.weight": (2, "Q4_0"), "norm": (0, "F32")}
    values = {"general.architecture": "llama"}

    def shape(array: Any) -> tuple[int, ...]:
        return tuple(reversed(array.shape)) if len(array) > 1 else (array.shape[1],)

    source = write_gguf(
        tmp_path / "source.gguf", values, [(name, shape(a), 0, a.tobytes()) for name, a in arrays.items()]
    )
    target = write_gguf(
        tmp_path / "target.gguf", values,
        [(name, shape(a), kinds[name][0], quantize(traits_of(kinds[name][1]), a).tobytes()) for name, a in arrays.items()],
    )  # fmt: skip
    return source, target, arrays


def test_tensor_errors_against_double_precision(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    source, target, arrays = pair
    steps: list[Progress] = []
    found = tensor_errors(target, source, progress=steps.append)
    assert [tensor.name for tensor in found] == list(arrays)
    every = []
    with TensorFile(str(target)) as file:
        for tensor in found:
            a = arrays[tensor.name].astype(np.float64)
            b = file.rows(file.tensors[tensor.name], 0, len(a)).astype(np.float64)
            every.append((a.ravel(), b.ravel()))
            error = b - a
            stats = tensor.stats
            assert stats.rmse == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-12)
            assert stats.relative == pytest.approx(np.linalg.norm(error) / np.linalg.norm(a), rel=1e-12)
            cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
            assert stats.cosine == pytest.approx(cosine, rel=1e-12)
            assert stats.max == np.abs(error).max()
    a, b = (np.concatenate(parts) for parts in zip(*every, strict=True))
    assert found.total.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-12)
    assert found["norm"].stats.max == 0
    assert found["blk.0.ffn_up"].type == "Q4_K"
    assert 0.01 < found["blk.0.ffn_up"].stats.relative < 0.15
    assert steps[-1].fraction == 1
    assert found.worst[-1].name == "norm"
    assert "target.gguf against source.gguf" in repr(found)
    assert "<table" in found._repr_html_()
    assert found.to_dict()["tensors"][2]["max"] == 0


def test_other_models_are_refused(pair: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    source, target, _ = pair
    data = np.zeros((2, 32), np.float32).tobytes()
    stranger = write_gguf(tmp_path / "other.gguf", {"general.architecture": "x"}, [("a", (32, 2), 0, data)])
    with pytest.raises(InvalidRequestError, match="no tensor in common"):
        tensor_errors(target, stranger)
    reshaped = write_gguf(tmp_path / "shape.gguf", {"general.architecture": "x"}, [("norm", (32, 2), 0, data)])
    with pytest.raises(InvalidRequestError, match="different models"):
        tensor_errors(reshaped, source)


def test_cancel(pair: tuple[Path, Path, dict[str, Any]], log: LogCapture) -> None:
    source, target, _ = pair
    tools = WorkerTools(lambda _step: None, lambda: True, log)
    with pytest.raises(JobInterrupted):
        compare(TensorErrorsRequest(str(target), str(source)), tools)
    with pytest.raises(JobInterrupted):
        look(MicroscopeRequest(str(source), "blk.0.ffn_up", "Q4_K", "Q4_K"), tools)


def test_microscope(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    source, target, arrays = pair
    seen = microscope(source, "blk.0.ffn_up", "q4_k_m", block=5)
    array = arrays["blk.0.ffn_up.weight"]
    assert (seen.type, seen.row, seen.column, seen.n_blocks) == ("Q4_K", 2, 256, 128)
    assert seen.original == tuple(map(float, array[2, 256:]))
    for place, value in enumerate(seen.quantized):
        group = seen.group_of(place)
        assert value == np.float32(np.float32(group.scale) * np.float32(seen.levels[place])) + np.float32(group.minimum)
    # the error of the whole tensor is that of a file quantized the same way
    assert seen.stats == tensor_errors(target, source)["blk.0.ffn_up"].stats
    assert sum(seen.histogram.counts) + seen.histogram.outside == array.size
    assert sum(field.size for field in seen.fields) == 144
    html = seen._repr_html_()
    assert html.count("<svg") == 2
    assert "<script" not in html
    assert "Q4_K_M file" in repr(seen)


def test_microscope_says_what_llama_cpp_would_do(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    source, target, _ = pair
    assert microscope(source, "blk.0.odd", "Q4_K").type == "Q5_0"
    assert (fallback("IQ2_XXS", 96), fallback("Q4_K", 33), fallback("Q8_0", 96)) == ("IQ4_NL", "F16", "Q8_0")
    assert any("Q4_0" in note for note in microscope(target, "blk.0.odd", "Q8_0").notes)
    assert any("equally important" in note for note in microscope(source, "blk.0.ffn_up", "IQ2_XXS").notes)
    for tensor, ftype, block, words in (
        ("blk.0.ffn_upp", "Q4_0", 0, "Did you mean blk.0.ffn_up.weight"),
        ("blk.0.odd", "Q4_0", 24, "0 to 23"),
        ("blk.0.odd", "F16", 0, "no block to look at"),
        ("blk.0.odd", "Q9_0", 0, "no tensor type"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            microscope(source, tensor, ftype, block=block)


def test_the_histogram_counts_like_numpy() -> None:
    rng = np.random.default_rng(5)
    parts = [(rng.standard_normal(1000) * 2.0**-k).astype(np.float32) for k in (6, 3, 0, 4)]
    histogram = ErrorHistogram()
    histogram.add(np.zeros(7, np.float32))
    for part in parts:
        histogram.add(part)
    every = np.concatenate([np.zeros(7), *parts])
    found = histogram.result()
    assert sum(found.counts) + found.outside == len(every)
    expected, _ = np.histogram(every, len(found.counts), (found.low, found.high))
    # single values may lie on an edge of a bin
    assert np.abs(np.array(found.counts) - expected).sum() <= 16
    assert ErrorHistogram().result().counts == (0,)
    assert math.isclose(-found.low, found.high)
