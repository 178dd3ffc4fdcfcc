"""SmolLM2 through the types that people use: every file loads and generates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import llama_magic as lm
from llama_magic.models.gguf import read_metadata
from tests.gguf import read_gguf

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def whole(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """F16, made of the Q4_1 that is at hand."""
    made = lm.quantize(smollm2_path, "F16", tmp_path_factory.mktemp("smollm2"), allow_requantize=True)
    assert "Q4_1" in made.warnings[0]
    yield made.path
    made.path.unlink()


def generated(path: Path) -> str:
    """Load a file and let it go on for some tokens."""
    with lm.load(str(path), n_ctx=256) as model:
        made = model.generate(PROMPT, max_tokens=8, temperature=0, ignore_eos=True)
    assert len(made.tokens) == 8
    return made.text


@pytest.mark.smollm2
def test_types_without_a_matrix(whole: Path, tmp_path: Path) -> None:
    made = lm.quantize(whole, ["Q8_0", "Q4_0", "Q4_K_M", "Q2_K"], tmp_path)
    bits = [item.bits_per_weight for item in made]
    assert bits == pytest.approx([8.51, 5.35, 6.17, 5.14], abs=0.01)
    for item in made:
        # what is told, by the gguf package
        tensors = read_gguf(item.path)[1]
        weights = sum(tensor.n_params for tensor in read_metadata(item.path).tensors)
        assert item.bits_per_weight == pytest.approx(8 * sum(len(content) for *_, content in tensors) / weights)
        text = generated(item.path)
        if item.ftype == "Q8_0":
            assert "Paris" in text
        item.path.unlink()


@pytest.mark.smollm2
def test_types_with_a_matrix(whole: Path, tmp_path: Path) -> None:
    """The first and the last of the thirty layers: searching the codes of all takes a minute."""
    small = lm.quantize(whole, "F16", tmp_path / "two-F16.gguf", prune_layers=range(1, 29))
    assert read_metadata(small.path).n_layer == 2
    matrix = lm.imatrix(str(small.path), chunks=4, n_ctx=128, perplexity=False, out=tmp_path / "two.imatrix.gguf")
    made = lm.quantize(small.path, ["IQ2_XXS", "IQ1_S"], imatrix=matrix)
    for item, kind in zip(made, ("IQ2_XXS", "IQ1_S"), strict=True):
        assert kind in item.types
        assert item.provenance["quantize.imatrix.chunks_count"] == 4
        assert item.fallbacks
        generated(item.path)
