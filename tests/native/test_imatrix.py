"""Importance matrices: against numpy in double precision and against llama-imatrix; stopped, killed, gone on with."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import llama_magic as lm
from llama_magic.api.imatrix import collect_imatrix
from llama_magic.engine.client import EngineClient
from llama_magic.engine.jobs import set_job_client
from llama_magic.errors import (
    EngineCrashed,
    InvalidModelError,
    InvalidRequestError,
    JobInterrupted,
    ModelNotFoundError,
    NativeError,
    OutOfMemoryError,
)
from llama_magic.models.options import LoadOptions
from llama_magic.native import LogCapture, NativeModel, WorkerTools
from llama_magic.native import imatrix as native
from llama_magic.progress import Progress
from llama_magic.quantization import collecting
from llama_magic.quantization.chunk_reader import ChunkReader, pieces
from llama_magic.quantization.imatrix import ImatrixRequest, ImatrixResult, ImatrixStopped, resume_path
from llama_magic.quantization.imatrix_file import read_imatrix
from llama_magic.quantization.texts import TextPart
from tests.tiny import EMBD, EXPERTS, HEADS, HEADS_KV, USED, Weights, tiny_llama, vocabulary

N_CTX = 64
OPTIONS = LoadOptions(
    n_ctx=N_CTX, n_batch=256, n_ubatch=128, n_threads=1, flash_attn="off", cache_type_k="f32", cache_type_v="f32"
)
#: 12 chunks: in this vocabulary each letter is a token.
TEXT = " ".join("the quick brown fox jumps over a lazy dog and sleeps".split() * 16)[: 12 * N_CTX + 5]


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    path = tmp_path_factory.mktemp("tiny") / "dense.gguf"
    return path, tiny_llama(path)


@pytest.fixture(scope="session")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    path = tmp_path_factory.mktemp("tiny") / "experts.gguf"
    return path, tiny_llama(path, experts=True)


def collect(
    path: Path, out: Path, log: LogCapture, *, cancelled: Callable[[], bool] = lambda: False, **changes: Any
) -> Any:
    """Do the job in this process."""
    request = ImatrixRequest(str(path), path.name, str(out), (TextPart("text", text=TEXT),), OPTIONS, token="t")
    return collecting.run(replace(request, **changes), WorkerTools(lambda _progress: None, cancelled, log))


# -- by hand ---------------------------------------------------------------------------------------------------------


def tokens_of(model: Path, log: LogCapture) -> npt.NDArray[np.int64]:
    loaded = NativeModel(str(model), log, vocab_only=True)
    tokens = loaded.tokenize(TEXT, add_special=True, parse_special=False)
    loaded.close()
    count = len(tokens) // N_CTX
    chunks = np.array(tokens[: count * N_CTX]).reshape(count, N_CTX)
    chunks[:, 0] = vocabulary().index("<s>")
    return chunks


def rms(x: Any, weight: Any) -> Any:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * weight


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def squares(x: Any) -> Any:
    return (x.reshape(-1, x.shape[-1]) ** 2).sum(axis=0)


def attention_of_layer_0(weights: dict[str, Any], tokens: Any) -> tuple[Any, Any, Any]:
    """Inputs of the query matrix, of the output matrix, and what comes out; queries are zero, so all weigh the same."""
    embedded = weights["token_embd.weight"][tokens]
    normed = rms(embedded, weights["blk.0.attn_norm.weight"])
    values = normed @ weights["blk.0.attn_v.weight"].T
    seen = np.cumsum(values, axis=1) / np.arange(1, N_CTX + 1)[:, None]
    heads = seen.reshape(*seen.shape[:2], HEADS_KV, EMBD // HEADS)
    mixed = np.repeat(heads, HEADS // HEADS_KV, axis=2).reshape(*seen.shape[:2], EMBD)
    return normed, mixed, embedded + mixed @ weights["blk.0.attn_output.weight"].T


def double(weights: Weights) -> dict[str, Any]:
    return {name: value.astype(np.float64) for name, value in weights.items()}


def test_a_dense_layer_by_hand(dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture) -> None:
    model, weights = dense[0], double(dense[1])
    result = collect(model, tmp_path / "m.gguf", log)
    tokens = tokens_of(model, log)
    normed, mixed, x = attention_of_layer_0(weights, tokens)
    h = rms(x, weights["blk.0.ffn_norm.weight"])
    inner = silu(h @ weights["blk.0.ffn_gate.weight"].T) * (h @ weights["blk.0.ffn_up.weight"].T)
    expected = {"attn_q": normed, "attn_k": normed, "attn_v": normed, "attn_output": mixed, "ffn_gate": h, "ffn_up": h,
                "ffn_down": inner}  # fmt: skip
    entries = read_imatrix(tmp_path / "m.gguf").entries
    assert set(entries) == {f"blk.{layer}.{name}.weight" for name in expected for layer in range(2)}
    for name, inputs in expected.items():
        found = entries[f"blk.0.{name}.weight"]
        assert found.sums[0] == pytest.approx(squares(inputs), rel=2e-5)
        assert list(found.counts) == [tokens.size]
    assert (result.chunks, result.chunk_size, result.tokens) == (len(tokens), N_CTX, tokens.size)
    assert result.uncovered == ("token_embd.weight", "output.weight")
    about = {kind.kind: kind for kind in result.kinds}
    assert about["attn_q"].mean_square == pytest.approx(
        np.mean([entries[f"blk.{layer}.attn_q.weight"].sums.mean() / tokens.size for layer in range(2)])
    )


def test_experts_by_hand(sparse: tuple[Path, Weights], tmp_path: Path, log: LogCapture) -> None:
    model, weights = sparse[0], double(sparse[1])
    collect(model, tmp_path / "m.gguf", log)
    tokens = tokens_of(model, log)
    _, _, x = attention_of_layer_0(weights, tokens)
    h = rms(x, weights["blk.0.ffn_norm.weight"]).reshape(-1, EMBD)
    chosen = np.argsort(-(h @ weights["blk.0.ffn_gate_inp.weight"].T), axis=1)[:, :USED]
    entries = read_imatrix(tmp_path / "m.gguf").entries
    assert entries["blk.0.ffn_gate_inp.weight"].sums[0] == pytest.approx(squares(h), rel=2e-5)
    for expert in range(EXPERTS):
        sent = h[(chosen == expert).any(axis=1)]
        gate, up = (weights[f"blk.0.ffn_{part}_exps.weight"][expert] for part in ("gate", "up"))
        inner = silu(sent @ gate.T) * (sent @ up.T)
        for name, inputs in (("gate", sent), ("up", sent), ("down", inner)):
            found = entries[f"blk.0.ffn_{name}_exps.weight"]
            assert found.counts[expert] == len(sent)
            assert found.sums[expert] == pytest.approx(squares(inputs), rel=5e-5)
    assert entries["blk.0.ffn_up_exps.weight"].counts.sum() == USED * tokens.size


def test_the_perplexity_by_hand(dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture) -> None:
    """The whole model in numpy; tokens of the second half of each chunk count."""
    model, weights = dense[0], double(dense[1])
    result = collect(model, tmp_path / "m.gguf", log)
    tokens = tokens_of(model, log)
    x = weights["token_embd.weight"][tokens]
    for layer in range(2):
        block = {name: weights[f"blk.{layer}.{name}.weight"] for name in
                 ("attn_norm", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
        seen = np.cumsum(rms(x, block["attn_norm"]) @ block["attn_v"].T, axis=1) / np.arange(1, N_CTX + 1)[:, None]
        heads = np.repeat(seen.reshape(*seen.shape[:2], HEADS_KV, -1), HEADS // HEADS_KV, axis=2)
        x = x + heads.reshape(x.shape) @ block["attn_output"].T
        h = rms(x, block["ffn_norm"])
        x = x + (silu(h @ block["ffn_gate"].T) * (h @ block["ffn_up"].T)) @ block["ffn_down"].T
    logits = rms(x, weights["output_norm.weight"]) @ weights["output.weight"].T
    total = np.log(np.exp(logits).sum(axis=-1))
    half = N_CTX // 2
    following = tokens[:, half + 1 :]
    rows = np.take_along_axis(logits[:, half:-1], following[..., None], axis=-1)[..., 0]
    values = (total[:, half:-1] - rows).ravel()
    assert result.perplexity == pytest.approx(np.exp(values.mean()), rel=1e-5)
    error = values.std() / np.sqrt(values.size - 1) * np.exp(values.mean())
    assert result.perplexity_error == pytest.approx(error, rel=1e-4)


# -- the collector ---------------------------------------------------------------------------------------------------


def sums_of(model: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch, **how: Any) -> dict[str, Any]:
    loaded = NativeModel(str(model), log)
    request = ImatrixRequest(str(model), "m", "o", (), replace(OPTIONS, n_batch=how.pop("n_batch", 256)))
    made: list[native.ActivationSums] = []

    def make(cancelled: Callable[[], bool], *, process_output: bool) -> native.ActivationSums:
        made.append(native.ActivationSums(cancelled, process_output=process_output, **how))
        return made[0]

    monkeypatch.setattr("llama_magic.quantization.chunk_reader.ActivationSums", make)
    with ChunkReader(loaded, TEXT, request, lambda: False) as reader:
        done = 0
        while done < reader.chunks:
            done = reader.read(done)
        entries = reader.entries()
    loaded.close()
    return {name: entry.sums for name, entry in entries.items()}


def test_copied_inputs_give_the_same(
    sparse: tuple[Path, Weights], log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = sums_of(sparse[0], log, monkeypatch)
    copied = sums_of(sparse[0], log, monkeypatch, host_memory=False)
    assert set(there) == set(copied)
    assert all(np.array_equal(there[name], copied[name]) for name in there)


def test_how_many_chunks_are_read_side_by_side_changes_nothing(
    dense: tuple[Path, Weights], log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = sums_of(dense[0], log, monkeypatch)
    alone = sums_of(dense[0], log, monkeypatch, n_batch=64)
    assert set(together) == set(alone)
    assert all(together[name] == pytest.approx(alone[name], rel=1e-4) for name in together)


def test_a_library_with_other_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.check_layout() == native.check_layout()
    monkeypatch.setattr(native, "_OBJECT", 24)
    native.check_layout.cache_clear()
    with pytest.raises(NativeError, match="lays its tensors out"):
        native.check_layout()
    monkeypatch.undo()
    fields = native._Tensor._fields_
    shifted = type("Shifted", (ctypes.Structure,), {"_fields_": (*fields[2:], *fields[:2])})
    monkeypatch.setattr(native, "_Tensor", shifted)
    with pytest.raises(NativeError, match="lays its tensors out"):
        native.check_layout()
    native.check_layout.cache_clear()


def test_an_error_in_the_callback_is_raised(
    dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("in the callback")

    monkeypatch.setattr(native, "_sum_rows", fail)
    with pytest.raises(ZeroDivisionError, match="in the callback"):
        collect(dense[0], tmp_path / "m.gguf", log)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, log: LogCapture) -> None:
    model = tmp_path / "bad.gguf"
    weights = tiny_llama(model)
    data = bytearray(model.read_bytes())
    at = data.index(weights["blk.0.attn_norm.weight"].tobytes())
    data[at : at + 4] = np.float32("nan").tobytes()
    model.write_bytes(data)
    with pytest.raises(InvalidModelError, match=r"blk\.0\.\w+\.weight .* not finite"):
        collect(model, tmp_path / "m.gguf", log)
    assert not (tmp_path / "m.gguf").exists()


def test_pieces_are_even_and_stop_at_the_middle() -> None:
    for n_ctx in (32, 33, 64, 100, 512, 1040, 4096):
        for most in (16, 31, 128, 512, 4096):
            for count in (1, 4):
                cut = pieces(n_ctx, most, count)
                assert (cut[0][0], cut[-1][1]) == (0, n_ctx)
                assert all(before[1] == after[0] for before, after in pairwise(cut))
                lengths = [end - start for start, end in cut]
                assert max(lengths) <= most
                assert n_ctx // 2 in {end for _, end in cut}
                if most >= 31:
                    assert min(lengths) * count >= 16, "smaller ones would not be collected"


# -- stopping and going on -------------------------------------------------------------------------------------------


def equal(one: Path, other: Path) -> bool:
    first, second = read_imatrix(one), read_imatrix(other)
    return list(first.entries) == list(second.entries) and all(
        np.array_equal(entry.sums, second.entries[name].sums)
        and np.array_equal(entry.counts, second.entries[name].counts)
        for name, entry in first.entries.items()
    )


def test_what_was_stopped_goes_on_to_the_same_end(dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture) -> None:
    whole = collect(dense[0], tmp_path / "whole.gguf", log)
    out, calls = tmp_path / "m.gguf", iter(range(10**6))
    stopped = collect(dense[0], out, log, cancelled=lambda: next(calls) > 60)
    assert isinstance(stopped, ImatrixStopped)
    assert 0 < stopped.done < stopped.chunks == whole.chunks
    assert not out.exists()
    assert resume_path(out).exists()
    result = collect(dense[0], out, log)
    assert result.resumed == stopped.done
    assert equal(out, tmp_path / "whole.gguf")
    assert result.perplexity == whole.perplexity
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "whole.gguf"]


def test_a_stop_before_the_first_chunks_leaves_nothing(
    dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture
) -> None:
    stopped = collect(dense[0], tmp_path / "m.gguf", log, cancelled=lambda: True)
    assert stopped.done == 0
    assert not list(tmp_path.iterdir())


def test_a_state_of_another_call_or_a_damaged_one_is_started_over(
    dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture
) -> None:
    out, calls = tmp_path / "m.gguf", iter(range(10**6))
    collect(dense[0], out, log, cancelled=lambda: next(calls) > 60)
    kept = resume_path(out).read_bytes()
    other = collect(dense[0], out, log, texts=(TextPart("text", text=TEXT[::-1]),))
    assert other.resumed == 0
    assert any("another call" in note for note in other.notes)
    assert not resume_path(out).exists()
    for damaged in (kept[:100], b"", b"x" * 500, kept[: len(kept) // 2]):
        resume_path(out).write_bytes(damaged)
        assert collect(dense[0], out, log, force=True).resumed == 0
        out.unlink()


def test_copies_on_the_way(dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture) -> None:
    result = collect(dense[0], tmp_path / "m.gguf", log, save_frequency=4)
    assert [Path(copy).name for copy in result.copies] == ["m.gguf.at_4", "m.gguf.at_8"]
    assert read_imatrix(tmp_path / "m.gguf.at_8").chunk_count == 8
    assert len(list(tmp_path.iterdir())) == 3


def test_the_same_again_is_there_at_once_and_another_is_not_overwritten(
    dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture
) -> None:
    out = tmp_path / "m.gguf"
    first = collect(dense[0], out, log)
    before = out.stat().st_mtime_ns
    again = collect(dense[0], out, log)
    assert again.reused
    assert out.stat().st_mtime_ns == before
    assert (again.chunks, again.perplexity, again.entries) == (first.chunks, first.perplexity, first.entries)
    for kind, before_kind in zip(again.kinds, first.kinds, strict=True):
        assert kind.kind == before_kind.kind
        assert kind.mean_square == pytest.approx(before_kind.mean_square, rel=1e-6)
    with pytest.raises(InvalidRequestError, match="--force overwrites it"):
        collect(dense[0], out, log, chunks=4)
    assert collect(dense[0], out, log, chunks=4, force=True).chunks == 4
    out.write_text("notes of mine")
    with pytest.raises(InvalidRequestError, match="--force overwrites it"):
        collect(dense[0], out, log)
    assert out.read_text() == "notes of mine"


# -- settings --------------------------------------------------------------------------------------------------------


def test_chunks_from_the_middle_add_up_to_the_whole(
    dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture
) -> None:
    collect(dense[0], tmp_path / "whole.gguf", log, perplexity=False)
    first = collect(dense[0], tmp_path / "first.gguf", log, chunks=4)
    assert first.chunks == 4
    in_files = (str(tmp_path / "first.gguf"),)
    rest = collect(dense[0], tmp_path / "rest.gguf", log, from_chunk=4, in_files=in_files)
    whole, found = read_imatrix(tmp_path / "whole.gguf"), read_imatrix(tmp_path / "rest.gguf")
    assert rest.chunks == found.chunk_count == whole.chunk_count
    assert found.datasets == ("text", "text")
    for name, entry in whole.entries.items():
        assert found.entries[name].sums == pytest.approx(entry.sums, rel=1e-5)
        assert np.array_equal(found.entries[name].counts, entry.counts)


def test_the_output_matrix(dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture) -> None:
    plain = collect(dense[0], tmp_path / "a.gguf", log)
    result = collect(dense[0], tmp_path / "b.gguf", log, process_output=True)
    assert result.uncovered == ("token_embd.weight",)
    assert result.perplexity == plain.perplexity, "what is skipped is not missed"
    entry = read_imatrix(tmp_path / "b.gguf").entries["output.weight"]
    assert list(entry.counts) == [result.tokens]


def test_adding_up_needs_no_model(dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture) -> None:
    for name in "ab":
        collect(dense[0], tmp_path / f"{name}.gguf", log)
    request = ImatrixRequest(None, "", str(tmp_path / "c.gguf"), options=LoadOptions(n_ctx=512), n_ctx_given=False,
                             in_files=tuple(str(tmp_path / f"{name}.gguf") for name in "ab"))  # fmt: skip
    result = collecting.run(request, WorkerTools(lambda _progress: None, lambda: False, log))
    assert isinstance(result, ImatrixResult)
    once, twice = read_imatrix(tmp_path / "a.gguf"), read_imatrix(tmp_path / "c.gguf")
    assert (twice.chunk_size, twice.chunk_count) == (N_CTX, 2 * once.chunk_count)
    for name, entry in once.entries.items():
        assert twice.entries[name].sums == pytest.approx(2 * entry.sums, rel=1e-6)
    with pytest.raises(InvalidRequestError, match="--force"):
        collecting.run(request, WorkerTools(lambda _progress: None, lambda: False, log))


def test_what_can_not_work_says_why(dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture) -> None:
    model, out = dense[0], tmp_path / "m.gguf"
    (tmp_path / "latin1.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    (tmp_path / "page.gguf").write_bytes(b"<!DOCTYPE html><html>")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InvalidRequestError, "only 7 tokens; chunks of 64 need 128", {"texts": (TextPart("t", text="hello"),)}),
        (InvalidRequestError, "after leaving out 40 chunks", {"from_chunk": 40}),
        (InvalidRequestError, "l.txt is not UTF-8", {"texts": (TextPart("l.txt", str(tmp_path / "latin1.txt")),)}),
        (InvalidRequestError, "none.txt can not be read", {"texts": (TextPart("n", str(tmp_path / "none.txt")),)}),
        (InvalidRequestError, "none.gguf can not be read", {"in_files": (str(tmp_path / "none.gguf"),)}),
        (InvalidModelError, "is a model, not an importance matrix", {"in_files": (str(model),)}),
        (InvalidModelError, "is a web page", {"model": str(tmp_path / "page.gguf")}),
        (ModelNotFoundError, "there is no file", {"model": str(tmp_path / "none.gguf")}),
    ]
    for kind, words, changes in cases:
        with pytest.raises(kind, match=words) as caught:
            collect(model, out, log, **changes)
        assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not resume_path(out).exists()


def test_a_model_that_does_not_fit_is_refused(
    dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "available_memory", lambda: 1 << 16)
    with pytest.raises(OutOfMemoryError, match=r"64\.0 KiB are free.*-b 64"):
        collect(dense[0], tmp_path / "m.gguf", log)
    assert collect(dense[0], tmp_path / "m.gguf", log, force=True).chunks


# -- through a worker ------------------------------------------------------------------------------------------------


@pytest.fixture
def clients() -> Iterator[list[EngineClient]]:
    """The clients of the jobs, as they are made."""
    made: list[EngineClient] = []

    def make() -> EngineClient:
        made.append(EngineClient())
        return made[-1]

    set_job_client(make)
    yield made
    set_job_client(None)


def ask(model: Path, out: Path, progress: Callable[[Progress], None] | None = None) -> ImatrixResult:
    return collect_imatrix(
        str(model), TEXT + "\n", out=out, n_ctx=N_CTX, n_batch=128, n_threads=1, output_frequency=1, progress=progress
    )


def test_a_killed_worker_leaves_what_the_next_goes_on_from(
    dense: tuple[Path, Weights], tmp_path: Path, clients: list[EngineClient]
) -> None:
    out = tmp_path / "m.gguf"

    def kill(progress: Progress) -> None:
        if resume_path(out).exists() and clients[0].pid is not None:
            os.kill(clients[0].pid, signal.SIGKILL)

    with pytest.raises(EngineCrashed):
        ask(dense[0], out, kill)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf.resume"]
    seen: list[Progress] = []
    result = ask(dense[0], out, seen.append)
    assert result.resumed > 0
    assert seen[-1].stage == "imatrix"
    assert seen[-1].fraction is not None
    assert 0 < seen[-1].fraction < 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert all(not client.alive for client in clients)
    ask(dense[0], tmp_path / "whole.gguf")
    assert equal(out, tmp_path / "whole.gguf")


def test_an_interrupt_says_where_it_goes_on(dense: tuple[Path, Weights], tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"

    def interrupt(progress: Progress) -> None:
        if progress.stage == "imatrix" and progress.fraction and progress.fraction > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(JobInterrupted) as caught:
        ask(dense[0], out, interrupt)
    assert isinstance(caught.value, KeyboardInterrupt)
    # on a fast machine the work may be done before the cancel arrives
    if out.exists():
        assert "done already" in str(caught.value)
    else:
        assert "goes on from there" in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["m.gguf.resume"]
        assert ask(dense[0], out).resumed > 0


def test_the_public_function(dense: tuple[Path, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = lm.imatrix(str(dense[0]), chunks=4, n_ctx=N_CTX, n_threads=1)
    assert path == tmp_path / "dense.imatrix.gguf"
    assert read_imatrix(path).datasets == ("llama_magic calibration text",)
    assert lm.imatrix(None, in_files=[path, path], out="sum.gguf") == tmp_path / "sum.gguf"
    assert read_imatrix("sum.gguf").chunk_count == 8


@pytest.mark.slow
def test_types_below_three_bits_work_with_it(tmp_path: Path) -> None:
    """The rows are divisible by 256, so every matrix gets the type that is asked for."""
    model = tmp_path / "wide.gguf"
    tiny_llama(model, embd=256, ff=256, still_query=False)
    matrix = lm.imatrix(str(model), TEXT + "\n", out=tmp_path / "wide.imatrix.gguf", n_ctx=N_CTX, n_threads=1)
    made = lm.quantize(model, ["IQ2_XXS", "IQ1_S"], tmp_path, imatrix=matrix, n_threads=2)
    assert isinstance(made, lm.QuantizeResults)
    for result in made:
        assert result.ftype in result.types
        assert not result.fallbacks
        with lm.load(str(result.path), n_ctx=128, n_threads=1) as loaded:
            assert len(loaded.generate("the fox", max_tokens=4, ignore_eos=True).tokens) == 4
    lm.current_session().unload()


# -- against llama.cpp's own tools -----------------------------------------------------------------------------------


def assert_close(ours: Path, theirs: Path, tolerance: float = 1e-4) -> None:
    first, second = read_imatrix(ours), read_imatrix(theirs)
    assert list(first.entries) == list(second.entries)
    assert first.datasets == second.datasets
    assert (first.chunk_count, first.chunk_size) == (second.chunk_count, second.chunk_size)
    for name, entry in first.entries.items():
        other = second.entries[name]
        assert entry.sums.size == other.sums.size
        assert np.array_equal(entry.counts, other.counts), name
        assert entry.sums.ravel() == pytest.approx(other.sums.ravel(), rel=tolerance), name


@pytest.mark.parametrize("extra", [(), ("--process-output", "--chunk", "3"), ("-ub", "96")], ids=str)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_as_llama_imatrix(
    kind: str,
    extra: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    log: LogCapture,
    llama_tool: Callable[..., str],
) -> None:
    model: Path = request.getfixturevalue(kind)[0]
    text = tmp_path / "text.txt"
    text.write_text(TEXT + "\n")
    arguments = ("-m", model, "-f", text, "-c", N_CTX, "-t", "1", *extra)
    said = llama_tool("llama-imatrix", *map(str, arguments), "-o", tmp_path / "theirs.gguf")
    changes: dict[str, Any] = {"options": LoadOptions(n_ctx=N_CTX, n_threads=1)}
    if "-ub" in extra:
        changes["options"] = LoadOptions(n_ctx=N_CTX, n_threads=1, n_ubatch=96)
    if "--process-output" in extra:
        changes |= {"process_output": True, "from_chunk": 3}
    result = collect(model, tmp_path / "ours.gguf", log, texts=(TextPart(str(text), str(text)),), **changes)
    assert_close(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert f"PPL = {result.perplexity:.4f} +/- {result.perplexity_error:.5f}" in said


@pytest.mark.smollm2
def test_smollm2_as_llama_imatrix(
    smollm2_path: Path, tmp_path: Path, log: LogCapture, llama_tool: Callable[..., str]
) -> None:
    calibration = Path(collecting.__file__).parent / "data" / "calibration.txt"
    arguments = ("-m", smollm2_path, "-f", calibration, "--chunks", "2", "-c", "256", "-b", "512", "-t", "2")
    said = llama_tool("llama-imatrix", *map(str, arguments), "-o", tmp_path / "theirs.gguf")
    options = LoadOptions(n_ctx=256, n_batch=512, n_threads=2)
    part = TextPart(str(calibration), str(calibration))
    result = collect(smollm2_path, tmp_path / "ours.gguf", log, texts=(part,), options=options, chunks=2)
    assert_close(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert f"PPL = {result.perplexity:.4f}" in said


def test_llama_quantize_reads_it(tmp_path: Path, llama_tool: Callable[..., str]) -> None:
    model = tmp_path / "wide.gguf"
    tiny_llama(model, embd=256, ff=256)
    matrix = lm.imatrix(str(model), TEXT + "\n", out=tmp_path / "m.gguf", n_ctx=N_CTX, n_threads=1)
    llama_tool("llama-quantize", "--imatrix", matrix, model, tmp_path / "theirs.gguf", "IQ2_XXS", "1")
    lm.quantize(model, "IQ2_XXS", tmp_path / "ours.gguf", imatrix=matrix, n_threads=1)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_files_go_both_ways(
    dense: tuple[Path, Weights], tmp_path: Path, log: LogCapture, llama_tool: Callable[..., str]
) -> None:
    """llama-imatrix adds up what we wrote, we add up what it wrote, in both of its formats."""
    for number in (1, 2):
        collect(dense[0], tmp_path / f"{number}.gguf", log, chunks=4 * number)
    files = [tmp_path / "1.gguf", tmp_path / "2.gguf"]
    given = ["-m", "unused", *(word for file in files for word in ("--in-file", file))]
    llama_tool("llama-imatrix", "-c", str(N_CTX), *given, "-o", tmp_path / "theirs.gguf")
    llama_tool("llama-imatrix", "-c", str(N_CTX), *given, "--output-format", "dat", "-o", tmp_path / "theirs.dat")
    lm.imatrix(None, in_files=files, out=tmp_path / "ours.gguf")
    assert_close(tmp_path / "ours.gguf", tmp_path / "theirs.gguf", 1e-6)
    again = [tmp_path / "theirs.dat", files[0]]
    given = ["-m", "unused", "--in-file", again[0], "--in-file", again[1]]
    llama_tool("llama-imatrix", "-c", str(N_CTX), *given, "-o", tmp_path / "both.gguf")
    lm.imatrix(None, in_files=again, out=tmp_path / "ours-both.gguf", n_ctx=N_CTX)
    assert_close(tmp_path / "ours-both.gguf", tmp_path / "both.gguf", 1e-5)
