"""What a model will take, against what it takes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

import llama_magic as lm
from llama_magic.engine.client import EngineClient
from llama_magic.engine.fitting import layers_that_fit, run
from llama_magic.engine.protocol import GenerateRequest, LoadRequest, StatusRequest, UnloadRequest
from llama_magic.errors import GenerationInterrupted, OutOfMemoryError
from llama_magic.inference.params import SamplingParams
from llama_magic.models.bandwidth import read_bandwidth
from llama_magic.models.dryrun import DryRun, dry_run, write_header
from llama_magic.models.fit import FitReport, FitRequest
from llama_magic.models.gguf import read_metadata
from llama_magic.models.memory import estimate
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.native import Device, LogCapture, NativeContext, NativeModel, WorkerTools
from llama_magic.native.breakdown import Buffers, breakdown, logged_buffers
from tests.gguf import write_gguf

LONG = SamplingParams(max_tokens=4, seed=1)


def held(client: EngineClient) -> int:
    """Resident bytes of the worker, mapped files in full: these tests map the same file themselves."""
    assert client.pid is not None
    return int(psutil.Process(client.pid).memory_info().rss)


def use(client: EngineClient, spec: ModelSpec) -> None:
    """Load a model and process a prompt of more than a ubatch, so that its buffers are touched."""
    count = min((spec.options.n_ctx or 0) - 40, 560)
    client.open(GenerateRequest(spec, LONG, prompt="word " * count)).collect()


@pytest.fixture
def started(client: EngineClient) -> EngineClient:
    """A worker that runs and holds nothing."""
    client.request(StatusRequest())
    return client


@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(n_ctx=4096),
        LoadOptions(n_ctx=8192, cache_type_k="q8_0", cache_type_v="q8_0"),
        LoadOptions(n_ctx=600, use_mmap=False, flash_attn="off"),
    ],
    ids=["default", "quantized cache", "no mmap, no flash attention"],
)
def test_the_prediction_is_within_five_percent(started: EngineClient, smollm2_path: Path, options: LoadOptions) -> None:
    report = lm.fit(str(smollm2_path), **options.to_dict())
    before = held(started)
    use(started, ModelSpec(str(smollm2_path), "smollm2", options))
    assert report.need == pytest.approx(held(started) - before, rel=0.05)
    logged = logged_buffers(started.log)
    assert report.fits
    assert report.measured
    cpu = report.devices[0]
    assert cpu.kv_cache == pytest.approx(sum(kinds.get("KV", 0) for kinds in logged.values()), abs=2**15)


def test_the_layout_without_memory_is_that_with_memory(smollm2_path: Path, log: LogCapture) -> None:
    from llama_magic.models.loading import SOLO_SEQUENCES, context_settings

    options = LoadOptions(n_ctx=600, use_mmap=False)
    dry = dry_run(str(smollm2_path), options, 1024, 2, log)
    model = NativeModel(str(smollm2_path), log, use_mmap=False)
    context = NativeContext(model, context_settings(options, 1024, 2, n_seq_max=SOLO_SEQUENCES))
    try:
        rows = breakdown(context)
        if rows is not None:
            assert set(rows) == set(dry.buffers)
        logged = logged_buffers(line for _, line in log.lines)
    finally:
        context.close()
        model.close()
    weights, cache, compute = dry.of("CPU")
    for value, kind in ((weights, "model"), (cache, "KV"), (compute, "compute"), (dry.output, "output")):
        assert value == pytest.approx(sum(kinds.get(kind, 0) for kinds in logged.values()), abs=2**14)


def test_a_header_without_weights_is_laid_out_alike(smollm2_path: Path, tmp_path: Path, log: LogCapture) -> None:
    metadata = read_metadata(str(smollm2_path))
    file = tmp_path / "header.gguf"
    write_header(metadata, file)
    if hasattr(os.stat_result, "st_blocks"):
        assert file.stat().st_blocks * 512 < 1 << 20
    options = LoadOptions(n_ctx=1024)
    assert (
        dry_run(str(file), options, 1024, 2, log).buffers == dry_run(str(smollm2_path), options, 1024, 2, log).buffers
    )


def test_a_model_that_is_not_here(smollm2_path: Path, log: LogCapture) -> None:
    metadata = read_metadata(str(smollm2_path))
    request = FitRequest("hf:a/b", "hf:a/b/c.gguf", LoadOptions(n_ctx=4096), metadata, local=False, bandwidth=1e10)
    report = run(request, WorkerTools(lambda _progress: None, lambda: False, log))
    assert not report.measured
    assert report.need == pytest.approx(lm.fit(str(smollm2_path), n_ctx=4096).need, rel=0.05)
    assert report.tokens_per_second == pytest.approx(1e10 / metadata.size, rel=0.01)


def test_the_fast_estimate_is_near(smollm2_path: Path, log: LogCapture) -> None:
    metadata = read_metadata(str(smollm2_path))
    for options in (LoadOptions(n_ctx=4096), LoadOptions(n_ctx=8192), LoadOptions(n_ctx=1024, flash_attn="off")):
        dry = dry_run(str(smollm2_path), options, options.n_ctx or 0, 2, log)
        need = estimate(metadata, options)
        assert need.kv_cache == dry.of("CPU")[1]
        assert need.total == pytest.approx(sum(dry.of("CPU")) + dry.output + need.other, rel=0.05)


def test_what_does_not_fit_and_what_would(tmp_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_magic.engine import fitting

    path = wide_model(tmp_path / "wide.gguf")
    monkeypatch.setattr(fitting, "available_memory", lambda: 200 << 20)
    metadata = read_metadata(str(path))
    request = FitRequest("wide", str(path), LoadOptions(n_ctx=32768), metadata, local=False, bandwidth=1e9)
    report = run(request, WorkerTools(lambda _progress: None, lambda: False, log))
    assert not report.fits
    assert 0 < report.max_n_ctx < 32768
    assert "does not fit into memory" in report.verdict
    monkeypatch.setattr(fitting, "available_memory", lambda: 60 << 20)
    request = FitRequest("wide", str(path), LoadOptions(n_ctx=256), metadata, local=False, bandwidth=1e9)
    report = run(request, WorkerTools(lambda _progress: None, lambda: False, log))
    assert report.suggestion is not None
    chosen = next(row for row in report.quantizations if row.ftype == report.suggestion)
    assert chosen.fits
    assert all(not row.fits for row in report.quantizations if row.bits_per_weight > chosen.bits_per_weight)
    assert f"{report.suggestion} fits" in repr(report)
    freed = FitRequest("wide", str(path), LoadOptions(n_ctx=256), metadata, False, 1 << 30, 1e9)
    assert run(freed, WorkerTools(lambda _progress: None, lambda: False, log)).fits


def wide_model(path: Path) -> Path:
    """An empty F16 model of a llama's shape, 85 MiB that take no room on the disk."""
    from llama_magic.models.metadata import ModelMetadata, TensorInfo

    width, inner, layers, vocabulary = 512, 2048, 8, 16384
    shapes = {
        "token_embd.weight": (width, vocabulary),
        "output_norm.weight": (width,),
        "output.weight": (width, vocabulary),
    }
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes |= {block + f"{name}.weight": (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {block + f"{name}.weight": (width, inner) for name in ("ffn_gate", "ffn_up")}
        shapes |= {block + "ffn_down.weight": (inner, width)}
        shapes |= {block + f"{name}.weight": (width,) for name in ("attn_norm", "ffn_norm")}
    tensors, at = [], 0
    for name, shape in shapes.items():
        kind, each = ("F32", 4) if len(shape) == 1 else ("F16", 2)
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors.append(TensorInfo(name, shape, kind, at, count * each))
        at += count * each
    values = {
        "general.architecture": "llama", "general.file_type": 1, "llama.context_length": 32768,
        "llama.embedding_length": width, "llama.block_count": layers, "llama.feed_forward_length": inner,
        "llama.attention.head_count": 8, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 64,
        "llama.vocab_size": vocabulary,
    }  # fmt: skip
    write_header(ModelMetadata(str(path), values, tuple(tensors)), path)
    return path


def test_layers_for_accelerators() -> None:
    def lay_out(layers: int) -> DryRun:
        gpu = Buffers("X0", "X0", False, 100 * layers, 10 * layers, 50)
        return DryRun((Buffers("CPU", "", True, 100 * (31 - layers), 0, 5), gpu), 0, 0, 31)

    def device(free: int) -> Device:
        return Device("X0", "", "gpu", free, free)

    for free, expected in ((10**6, 31), (49, 0), (50 + 110 * 7, 7), (50 + 110 * 8 - 1, 7)):
        assert layers_that_fit(lay_out, [device(free)], margin=0) == expected
    assert layers_that_fit(lay_out, [device(50 + 110 * 7 + 1000)], margin=1000) == 7


def test_memory_is_really_read() -> None:
    small, large = read_bandwidth(1, 4 << 20, 3), read_bandwidth(2, 16 << 20, 3)
    assert 1e8 < small < 1e12
    assert 1e8 < large < 2e12


def test_the_bandwidth_bounds_what_is_reached(client: EngineClient, smollm2_path: Path) -> None:
    report: FitReport = lm.fit(str(smollm2_path), n_ctx=512)
    assert report.tokens_per_second is not None
    params = SamplingParams(max_tokens=48, temperature=0, ignore_eos=True)
    spec = ModelSpec(str(smollm2_path), "smollm2", LoadOptions(n_ctx=512))
    reached = client.open(GenerateRequest(spec, params, prompt="Once")).collect().timings.generation_tps
    assert reached < 4 * report.tokens_per_second  # both are measured while the machine does other things


# residency


def test_unloading_gives_the_memory_back(started: EngineClient, smollm2_path: Path) -> None:
    spec = ModelSpec(str(smollm2_path), "smollm2", LoadOptions(n_ctx=8192))
    fresh = held(started)
    # Libraries, templates and threads come with the first model and stay.
    use(started, ModelSpec(spec.path, spec.ref, LoadOptions(n_ctx=256)))
    started.request(UnloadRequest())
    assert held(started) - fresh < 16 << 20
    before = held(started)
    use(started, spec)
    loaded = held(started)
    assert loaded - before > 250 << 20
    assert started.request(UnloadRequest(spec.path)) == (spec.path,)
    assert (loaded - held(started)) / (loaded - before) >= 0.98


def test_the_budget_unloads_what_was_used_longest_ago(
    started: EngineClient, smollm2_path: Path, tmp_path: Path
) -> None:
    files = []
    for name in ("a", "b", "c"):
        files.append(tmp_path / f"{name}.gguf")
        files[-1].symlink_to(smollm2_path)
    one = started.request(LoadRequest(ModelSpec(str(files[0]), "a", LoadOptions(n_ctx=512)))).memory
    options = LoadOptions(n_ctx=512, memory_budget=int(2.5 * one))
    specs = [ModelSpec(str(file), file.stem, options) for file in files]

    def loaded() -> list[str]:
        return [Path(info.path).stem for info in started.request(StatusRequest())]

    started.request(LoadRequest(specs[1]))
    assert loaded() == ["a", "b"]
    started.request(LoadRequest(specs[0]))
    assert loaded() == ["b", "a"]
    started.request(LoadRequest(specs[2]))
    assert loaded() == ["a", "c"]
    small = ModelSpec(str(files[1]), "b", LoadOptions(n_ctx=512, memory_budget=one // 2))
    with pytest.raises(OutOfMemoryError, match="left of the memory_budget"):
        started.request(LoadRequest(small))
    assert loaded() == ["a", "c"]  # what could not help was not unloaded
    assert started.request(LoadRequest(small, force=True)).path == str(files[1])


def test_a_load_reports_and_can_be_stopped(started: EngineClient, smollm2_path: Path) -> None:
    spec = ModelSpec(str(smollm2_path), "smollm2", LoadOptions(n_ctx=512, use_mmap=False))
    stages: list[str] = []

    def stop(progress: object) -> None:
        stages.append(getattr(progress, "stage", ""))
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
        threading.Event().wait(5)  # the interrupt comes here

    with pytest.raises(GenerationInterrupted):
        started.request(LoadRequest(spec), stop)
    assert stages == ["load"]
    seen: list[str] = []
    started.request(LoadRequest(spec), lambda progress: seen.append(progress.stage))
    assert set(seen) <= {"load"}
    assert started.request(StatusRequest())[0].path == spec.path


def test_a_broken_header_is_refused(tmp_path: Path) -> None:
    broken = write_gguf(tmp_path / "m.gguf", {"general.architecture": "nothing"})
    with pytest.raises(lm.InvalidModelError):
        lm.fit(str(broken))
