"""Folders with checkpoints: what they are, what they lack, and the words for it. No weights are read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from llama_magic.api.convert import convert_checkpoint
from llama_magic.errors import InvalidModelError, InvalidRequestError, ModelNotFoundError
from llama_magic.quantization.checkpoint import architectures_of, has_tokenizer, kind_of, read_checkpoint
from llama_magic.quantization.convert import check_outtype
from llama_magic.quantization.convert_failures import converter_failure, unsupported
from llama_magic.quantization.converter import ConverterError, known_architectures
from llama_magic.quantization.safetensors import read_header


def safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int]], *, cut: int = 0) -> Path:
    """Write a file of zeros; each tensor by dtype, shape and bytes."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(at)
    path.write_bytes(data[: len(data) - cut])
    return path


def folder(path: Path, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    return path


def test_a_whole_checkpoint(tmp_path: Path) -> None:
    made = folder(tmp_path / "one")
    safetensors(made / "model.safetensors", {"norm": ("F32", (8,), 32), "w": ("BF16", (8, 4), 64)})
    found = read_checkpoint(made)
    assert (found.kind, found.architectures, found.files) == ("model", ("LlamaForCausalLM",), ("model.safetensors",))
    assert (found.n_params, found.main_type(), found.likely_type()) == (40, "BF16", "bf16")
    assert found.estimate("auto") == 8 * 4 + 32 * 2
    assert found.estimate("f32") == 40 * 4
    assert found.estimate("q8_0") == 32 + 34
    assert not found.pickled


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    made = folder(tmp_path / "one")
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = {"weight_map": {f"w{place}": name for place, name in enumerate(names)}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in (names[0], names[2]):
        safetensors(made / name, {name: ("F16", (4,), 8)})
    with pytest.raises(ModelNotFoundError, match=r"1 of 3 files with weights are missing in .*: model-00002-of-00003"):
        read_checkpoint(made)
    (made / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelNotFoundError, match="model-00002-of-00003"):
        read_checkpoint(made)
    safetensors(made / names[1], {"w": ("F16", (4,), 8)})
    assert read_checkpoint(made).files == tuple(names)


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    made = folder(tmp_path / "one")
    path = safetensors(made / "model.safetensors", {"w": ("F32", (100,), 400)}, cut=30)
    with pytest.raises(
        InvalidModelError, match=r"model.safetensors is cut off: .* \([\d,]+ bytes\).*download it again"
    ):
        read_checkpoint(made)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InvalidModelError, match="cut off"):
        read_header(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(InvalidModelError, match="git lfs pull"):
        read_checkpoint(made)
    for data in (b"", b"<html>not found</html>", struct.pack("<Q", 4) + b"[{}]", struct.pack("<Q", 9) + b'{"w": {}}'):
        path.write_bytes(data)
        with pytest.raises(InvalidModelError, match="no safetensors file"):
            read_header(path)


def test_an_index_can_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    made = folder(tmp_path / "one")
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../../secret"}}))
    with pytest.raises(InvalidModelError, match="outside of its folder"):
        read_checkpoint(made)


def test_what_is_there_instead(tmp_path: Path) -> None:
    def told(name: str, *files: str) -> str:
        made = tmp_path / name
        made.mkdir()
        for file in files:
            (made / file).parent.mkdir(exist_ok=True)
            (made / file).write_text("{}")
        with pytest.raises(ModelNotFoundError) as caught:
            read_checkpoint(made)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "holds no config.json. A checkpoint is a folder" in told("empty")
    assert "GGUF files: those need no converting" in told("gguf", "model.gguf")
    assert "params.json" in told("mistral", "params.json", "consolidated.safetensors")
    assert "Folders in it do: inner" in told("outer", "inner/config.json")
    assert "holds no weights" in told("bare", "config.json")
    assert "consolidated.pth, which the converter does not read" in told("meta", "config.json", "consolidated.pth")
    (tmp_path / "bare" / "config.json").write_text("{")
    with pytest.raises(InvalidModelError, match="config.json can not be read"):
        read_checkpoint(tmp_path / "bare")


def test_names_of_architectures() -> None:
    assert architectures_of({"architectures": ["A"]}) == (("A",), ("A",))
    inner = {"architectures": ["Big"], "text_config": {"architectures": ["Small"]}, "vision_config": {}}
    assert architectures_of(inner) == (("Small", "Big"), ("Big",))
    assert architectures_of({"ssm_cfg": {"layer": "Mamba2"}})[0] == ("Mamba2ForCausalLM",)
    assert architectures_of({"architectures": "text", "text_config": None}) == ((), ())


def test_adapters_and_tokenizers(tmp_path: Path) -> None:
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert kind_of(made) == "adapter"
    with pytest.raises(ModelNotFoundError, match="no adapter_model.safetensors"):
        read_checkpoint(made)
    folder(made)
    assert kind_of(made) == "adapter", "some adapters bring the settings of their base"
    safetensors(made / "model.safetensors", {"w": ("F16", (4,), 8)})
    assert kind_of(made) == "model"
    assert not has_tokenizer(made, ["LlamaForCausalLM"])
    assert has_tokenizer(made, ["WavTokenizerDec"])
    (made / "tokenizer.json").write_text("{}")
    assert has_tokenizer(made, ["LlamaForCausalLM"])


def test_the_registry_is_read_and_near_names_are_told(tmp_path: Path) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").write_text(
        "raise SystemExit  # nothing of it is run\n"
        'TEXT_MODEL_MAP: dict[str, str] = {"Qwen2ForCausalLM": "qwen", "Qwen3ForCausalLM": "qwen", "MptModel": "mpt"}\n'
        'MMPROJ_MODEL_MAP: dict[str, str] = {"SmolVLM": "smolvlm"}\n'
    )
    known = known_architectures(tmp_path)
    assert known["mmproj"] == {"SmolVLM"}
    text = str(unsupported("Qwen9ForCausalLM", known["model"]))
    assert "can not convert Qwen9ForCausalLM. Near ones that it knows: Qwen" in text
    assert "Qwen2ForCausalLM" in text
    assert "none near" in str(unsupported("Zebra", known["model"]))
    (tmp_path / "conversion" / "__init__.py").write_text("")
    with pytest.raises(InvalidModelError):
        known_architectures(tmp_path)


@pytest.mark.parametrize(
    ("failed", "error", "words"),
    [
        (ConverterError("Signal", "9"), "OutOfMemoryError", "memory ran out"),
        (ConverterError("Signal", "11"), "NativeError", "SIGSEGV"),
        (ConverterError("ModuleNotFoundError", "No module named 'x'"), "MissingDependencyError", "llama-magic[convert]"),
        (ConverterError("ImportError", "Mistral format requires `mistral-common`"), "MissingDependencyError", "mistral"),
        (ConverterError("ValueError", "requires trust_remote_code"), "InvalidModelError", "never run here"),
        (ConverterError("UnpicklingError", "Weights only load failed."), "InvalidModelError", "safetensors"),
        (ConverterError("NotImplementedError", "BPE pre-tokenizer was not recognized"), "InvalidModelError", "newer"),
        (ConverterError("ValueError", "Can not map tensor 'x.y'"), "InvalidModelError", "'x.y'"),
        (ConverterError("NotImplementedError", "Quant method is not yet supported: 'bitsandbytes'"), "InvalidModelError",
         "quantized already"),
        (ConverterError("MemoryError", ""), "OutOfMemoryError", "out of memory"),
        (ConverterError("TypeError", "odd"), "NativeError", "odd"),
    ],
)  # fmt: skip
def test_words_for_failures(tmp_path: Path, failed: ConverterError, error: str, words: str) -> None:
    made = converter_failure(failed, name="one", target=tmp_path / "x", tokenizer=True)
    assert type(made).__name__ == error
    assert words in str(made)
    assert "\n" not in str(made)


def test_refusals_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "one")
    (tmp_path / "file.gguf").write_bytes(b"GGUF")

    def refused(words: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises((InvalidRequestError, ModelNotFoundError)) as caught:
            convert_checkpoint(*arguments, **options)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("is a GGUF file already", "file.gguf")
    refused("is a GGUF file already", "smollm2")
    refused("name the folder of the checkpoint", str(tmp_path / "one" / "config.json"))
    refused("Did you mean one?", "./onee")
    refused("a checkpoint is owner/repo", "owner/repo:Q4_K_M")
    refused("type hf:owner/repo", "https://huggingface.co/owner/repo")
    refused("Did you mean Q4_K_M?", "one", ["Q4_KM"])
    refused("Did you mean bf16?", "one", outtype="bf-16")
    refused("give one of them", "one", mmproj=True, vocab_only=True)
    refused("lost something already", "one", ["Q4_K_M"], outtype="q8_0")
    refused("IQ1_S needs an importance matrix", "one", ["Q8_0", "IQ1_S"])
    refused("there is no importance matrix none.gguf", "one", ["IQ1_S"], imatrix="none.gguf")
    refused("there is no folder", "one", out="nowhere")
    refused("several types need a folder", "one", ["Q8_0", "Q4_0"], out="x.gguf")
    (tmp_path / "one-Q4_0.gguf").write_bytes(b"mine")
    refused("one-Q4_0.gguf exists; --force", "one", ["Q8_0", "Q4_0"])
    refused("file.gguf exists; --force", "one", out="file.gguf")
    assert check_outtype("BF16") == "bf16"
