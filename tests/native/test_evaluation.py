"""Perplexity and KL divergence: by hand in double precision, against llama-perplexity, stopped, and with models that fail."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import llama_magic as lm
from llama_magic.errors import (
    InvalidModelError,
    InvalidRequestError,
    JobInterrupted,
    LlamaMagicError,
    NativeError,
    OutOfMemoryError,
)
from llama_magic.evaluation import evaluating, lockstep, reader
from llama_magic.evaluation.requests import EVALUATION, EvaluateRequest, EvaluationProgress
from llama_magic.evaluation.results import Evaluation, KLDivergence, Perplexity
from llama_magic.evaluation.scoring import NotANumber, Scorer
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.native import LogCapture, NativeModel, WorkerTools
from llama_magic.progress import Progress
from llama_magic.quantization.texts import TextPart
from tests.tiny import EMBD, HEADS, HEADS_KV, LAYERS, Weights, tiny_llama, vocabulary

N_CTX = 64
OPTIONS = LoadOptions(n_batch=256, n_ubatch=128, n_threads=2, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
#: 12 chunks: in this vocabulary each letter is a token.
TEXT = " ".join("the quick brown fox jumps over a lazy dog and sleeps".split() * 16)[: 12 * N_CTX + 5]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Weights]]:
    folder = tmp_path_factory.mktemp("evaluated")
    return {name: (folder / f"{name}.gguf", tiny_llama(folder / f"{name}.gguf", seed=seed))
            for seed, name in enumerate(["base", "other"])}  # fmt: skip


def spec(path: Path | str, options: LoadOptions = OPTIONS) -> ModelSpec:
    return ModelSpec(str(path), Path(path).name, options)


def evaluate(
    log: LogCapture, *models: ModelSpec, base: ModelSpec | None = None, reports: list[Progress] | None = None,
    cancelled: Callable[[], bool] = lambda: False, **changes: Any,
) -> Evaluation:  # fmt: skip
    """Do the job in this process."""
    request = EvaluateRequest(models, base, (TextPart("text", text=TEXT),), N_CTX)
    told: list[Progress] = [] if reports is None else reports
    return evaluating.run(replace(request, **changes), WorkerTools(told.append, cancelled, log))


# -- by hand ---------------------------------------------------------------------------------------------------------


def chunks_of(model: Path, log: LogCapture) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What the model reads, and the text itself."""
    loaded = NativeModel(str(model), log, vocab_only=True)
    tokens = loaded.tokenize(TEXT, add_special=True, parse_special=False)
    loaded.close()
    count = len(tokens) // N_CTX
    targets = np.array(tokens[: count * N_CTX]).reshape(count, N_CTX)
    inputs = targets.copy()
    inputs[:, 0] = vocabulary().index("<s>")
    return inputs, targets


def rms(x: Any, weight: Any) -> Any:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * weight


def log_probabilities(weights: Weights, tokens: Any) -> Any:
    """The whole model in double precision. Its queries are zero, so that attention is a mean over what came before."""
    double = {name.removesuffix(".weight"): value.astype(np.float64) for name, value in weights.items()}
    x = double["token_embd"][tokens]
    for layer in range(LAYERS):
        block = {name: double[f"blk.{layer}.{name}"] for name in ("attn_norm", "attn_v", "attn_output", "ffn_norm",
                                                                 "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
        values = rms(x, block["attn_norm"]) @ block["attn_v"].T
        seen = np.cumsum(values, axis=1) / np.arange(1, x.shape[1] + 1)[:, None]
        heads = seen.reshape(*seen.shape[:2], HEADS_KV, EMBD // HEADS)
        x = x + np.repeat(heads, HEADS // HEADS_KV, axis=2).reshape(x.shape) @ block["attn_output"].T
        h = rms(x, block["ffn_norm"])
        gate = h @ block["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ block["ffn_up"].T)) @ block["ffn_down"].T
    logits = rms(x, double["output_norm"]) @ double["output"].T
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def scored(weights: Weights, inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Log-probabilities at the places that are scored, and of the tokens that follow."""
    rows = log_probabilities(weights, inputs)[:, N_CTX // 2 : N_CTX - 1].reshape(-1, len(vocabulary()))
    following = targets[:, N_CTX // 2 + 1 :].reshape(-1)
    return rows, rows[np.arange(len(following)), following]


def error_of(values: Any) -> float:
    return float(np.std(values) / math.sqrt(len(values) - 1))


def test_perplexity_by_hand(pair: dict[str, tuple[Path, Weights]], log: LogCapture) -> None:
    path, weights = pair["base"]
    (found,), *_ = evaluate(log, spec(path)).results
    assert isinstance(found, Perplexity)
    _, chosen = scored(weights, *chunks_of(path, log))
    assert (found.chunks, found.chunks_total, found.tokens) == (12, 12, 12 * 31)
    assert found.ppl == pytest.approx(math.exp(-chosen.mean()), rel=1e-5)
    assert found.ppl_error == pytest.approx(math.exp(-chosen.mean()) * error_of(chosen), rel=1e-4)
    per_chunk = -chosen.reshape(12, 31).mean(axis=1)
    running = np.exp(np.cumsum(per_chunk) / np.arange(1, 13))
    assert [point.ppl for point in found.running] == pytest.approx(list(running), rel=1e-5)


def test_every_statistic_by_hand(pair: dict[str, tuple[Path, Weights]], log: LogCapture) -> None:
    inputs, targets = chunks_of(pair["base"][0], log)
    base, base_chosen = scored(pair["base"][1], inputs, targets)
    other, chosen = scored(pair["other"][1], inputs, targets)
    evaluation = evaluate(log, spec(pair["other"][0]), spec(pair["base"][0]), base=spec(pair["base"][0]))
    ((found,), (same,)) = evaluation.results
    assert isinstance(found, KLDivergence)
    assert isinstance(same, KLDivergence)
    counted = np.where(base > -16, np.exp(base), 0)
    kld = (counted * (base - other)).sum(axis=1)
    dp = np.exp(chosen) - np.exp(base_chosen)
    ratio = base_chosen.mean() - chosen.mean()
    ratio_error = error_of(chosen - base_chosen)
    top = (base.argmax(axis=1) == other.argmax(axis=1)).mean()
    expected = {
        "ppl": math.exp(-chosen.mean()), "ppl_base": math.exp(-base_chosen.mean()),
        "ppl_base_error": math.exp(-base_chosen.mean()) * error_of(base_chosen),
        "correlation": np.corrcoef(chosen, base_chosen)[0, 1], "ln_ratio": ratio, "ln_ratio_error": ratio_error,
        "ratio": math.exp(ratio), "ratio_error": math.exp(ratio) * ratio_error,
        "difference": math.exp(-chosen.mean()) - math.exp(-base_chosen.mean()),
        "kld": kld.mean(), "kld_error": error_of(kld), "dp": dp.mean(), "dp_error": error_of(dp),
        "rms_dp": math.sqrt((dp**2).mean()), "rms_dp_error": error_of(dp**2) / 2 / math.sqrt((dp**2).mean()),
        "same_top": top, "same_top_error": math.sqrt(top * (1 - top) / (len(kld) - 1)),
    }  # fmt: skip
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=2e-4, abs=1e-9)
    for values, percentiles in ((kld, found.kld_percentiles), (dp, found.dp_percentiles)):
        for name, value in percentiles.items():
            share = {"Maximum": 100.0, "Median": 50.0, "Minimum": 0.0}.get(name)
            share = float(name.rstrip("%")) if share is None else share
            assert value == pytest.approx(np.percentile(values, share), rel=1e-3, abs=1e-7), name
    assert (same.kld, same.dp, same.ln_ratio, same.same_top, same.kld_max) == pytest.approx((0, 0, 0, 1, 0), abs=1e-7)
    assert evaluation.base[0].ppl == same.ppl == same.ppl_base


def plans(monkeypatch: pytest.MonkeyPatch) -> list[reader.Plan]:
    """Return the list that every plan from now on is put into."""
    made: list[reader.Plan] = []

    def planned(*arguments: Any, **named: Any) -> reader.Plan:
        made.append(reader.plan(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(lockstep, "plan", planned)
    return made


def test_long_windows_are_read_in_spans(
    pair: dict[str, tuple[Path, Weights]], log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spec(pair["other"][0]), spec(pair["base"][0])
    whole = evaluate(log, asked[0], base=asked[1], n_ctx=128).results[0][0]
    made = plans(monkeypatch)
    monkeypatch.setattr(reader, "_BUDGET", 4 * 96 * len(vocabulary()))  # 96 rows
    parts = evaluate(log, asked[0], base=asked[1], n_ctx=128).results[0][0]
    assert made[0].keep
    assert len(made[0].spans) > 2
    assert isinstance(whole, KLDivergence)
    assert isinstance(parts, KLDivergence)
    assert (parts.kld, parts.ppl, parts.same_top) == pytest.approx((whole.kld, whole.ppl, whole.same_top), rel=1e-5)
    assert len(parts.running) == len(whole.running)


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_change_nothing(
    lanes: int, pair: dict[str, tuple[Path, Weights]], tmp_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, base = spec(pair["other"][0], OPTIONS.replace(n_threads=4)), spec(pair["base"][0])
    made = plans(monkeypatch)
    for chunks in (1, 2, 11):  # fewer than lanes, and some that are left over
        monkeypatch.setattr(lockstep, "lanes_for", lambda *_of: 1)
        before = evaluate(log, asked, base=base, chunks=chunks).results[0][0]
        monkeypatch.setattr(lockstep, "lanes_for", lambda *_of: lanes)
        found = evaluate(log, asked, base=base, chunks=chunks).results[0][0]
        assert made[-1].lanes == min(lanes, chunks)
        assert isinstance(before, KLDivergence)
        assert isinstance(found, KLDivergence)
        assert found.chunks == chunks
        assert [point.kld for point in found.running] == pytest.approx([p.kld for p in before.running], rel=1e-5)
        assert found.kld_percentiles == pytest.approx(before.kld_percentiles, rel=1e-4, abs=1e-7)
    with pytest.raises(NativeError, match="bad gives logits that are no numbers"):
        evaluate(log, spec(broken(pair["other"], tmp_path / "bad.gguf")), base=base)


def test_a_lane_that_is_done_helps_another(
    pair: dict[str, tuple[Path, Weights]], log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS.replace(n_threads=4)
    asked, base = [spec(pair[name][0], options) for name in ("other", "base", "other")], spec(pair["base"][0], options)
    monkeypatch.setattr(lockstep, "lanes_for", lambda *_of: 1)
    alone = evaluate(log, *asked, base=base, chunks=5)
    real, helped = lockstep.LockStep._read_span, threading.Event()

    def read(self: Any, unit: Any, place: int, lane: int, span: tuple[int, int]) -> None:
        if unit.slot != lane:
            helped.set()
        elif unit.windows == (2, 3) and place == 1:
            assert helped.wait(20), "the other lane takes a model of the last window meanwhile"
        real(self, unit, place, lane, span)

    monkeypatch.setattr(lockstep.LockStep, "_read_span", read)
    monkeypatch.setattr(lockstep, "lanes_for", lambda *_of: 2)
    shares, opened = list[tuple[int, int]](), reader.Reader.open

    def share(self: Any, plan: reader.Plan, lane: int = 0, lanes: int = 1) -> Any:
        shares.append((lane, lanes))
        return opened(self, plan, lane, lanes)

    monkeypatch.setattr(reader.Reader, "open", share)
    found = evaluate(log, *asked, base=base, chunks=5)
    assert helped.is_set()
    assert shares[-4:] == [(0, 1)] * 4, "the last chunk, which would leave a lane empty, has all threads"
    assert {lanes for _, lanes in shares[:-4]} == {2}
    for (one,), (other,) in zip(alone.results, found.results, strict=True):
        assert isinstance(one, KLDivergence)
        assert isinstance(other, KLDivergence)
        assert (other.chunks, other.kld, other.ppl) == pytest.approx((5, one.kld, one.ppl), rel=1e-5, abs=1e-7)


def test_threads_are_parted_among_lanes_where_only_processors_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [reader.lanes_for(threads, 512) for threads in (1, 2, 3, 4, 6, 16)] == [1, 2, 1, 2, 2, 2]
    assert reader.lanes_for(2, 128) == 1
    gpu = SimpleNamespace(type="gpu")
    monkeypatch.setattr(reader, "list_devices", lambda: [gpu])
    assert reader.lanes_for(2, 512) == 1


def test_several_texts_have_results_for_themselves(pair: dict[str, tuple[Path, Weights]], log: LogCapture) -> None:
    texts = (TextPart("first", text=TEXT[:200]), TextPart("second", text=TEXT[200:500]))
    both = evaluate(log, spec(pair["other"][0]), base=spec(pair["base"][0]), texts=texts).results[0]
    assert [(found.text, found.chunks) for found in both] == [("first", 3), ("second", 4)]
    for part, found in zip(texts, both, strict=True):
        alone = evaluate(log, spec(pair["other"][0]), base=spec(pair["base"][0]), texts=(part,)).results[0][0]
        assert isinstance(found, KLDivergence)
        assert isinstance(alone, KLDivergence)
        assert found.kld == pytest.approx(alone.kld, rel=1e-5)
    texts = (TextPart("first", text=TEXT[:200]), TextPart("too short", text="x"))
    with pytest.raises(InvalidRequestError, match="too short: the text has only"):
        evaluate(log, spec(pair["other"][0]), texts=texts)


def test_models_of_any_vocabulary_without_a_base(
    pair: dict[str, tuple[Path, Weights]], smollm2_path: Path, log: LogCapture
) -> None:
    alone = evaluate(log, spec(pair["other"][0])).results[0][0]
    (tiny,), (large,) = evaluate(log, spec(pair["other"][0]), spec(smollm2_path), chunks=1).results[:2]
    assert (tiny.chunks, large.chunks) == (1, 1)
    assert tiny.running[0].ppl == pytest.approx(alone.running[0].ppl, rel=1e-5)


# -- the arithmetic over rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_a_large_vocabulary(threads: int) -> None:
    random = np.random.default_rng(5)
    base = (4 * random.standard_normal((70, 32001))).astype(np.float32)
    other = base + 0.01 * random.standard_normal(base.shape).astype(np.float32)
    other[3, 17] = -np.inf
    base[3, 17] = -np.inf
    following = random.integers(0, 32001, 70).astype(np.int32)
    scorer = Scorer(32001, threads)
    rows = scorer.base(base.copy(), following, np.empty_like(base))
    found = scorer.against(rows, other, following)
    scorer.close()
    double = [value.astype(np.float64) for value in (base, other)]
    p, q = (value - np.log(np.exp(value).sum(axis=1, keepdims=True)) for value in double)
    counted = p > -16
    kld = (np.exp(p) * np.subtract(p, q, out=np.zeros_like(p), where=counted)).sum(axis=1, where=counted)
    assert found.kld == pytest.approx(kld, abs=2e-7)
    assert found.nll == pytest.approx(-q[np.arange(70), following], rel=1e-6)
    assert found.nll_base == pytest.approx(-p[np.arange(70), following], rel=1e-6)
    assert found.same is not None
    assert found.same.tolist() == (p.argmax(axis=1) == q.argmax(axis=1)).tolist()


def test_nan_in_a_row_is_noticed() -> None:
    logits = np.zeros((5, 300), dtype=np.float32)
    broken = logits.copy()
    broken[4, 200] = np.nan
    following = np.zeros(5, dtype=np.int32)
    scorer = Scorer(300, 1)
    rows = scorer.base(logits, following, np.empty_like(logits))
    with pytest.raises(NotANumber):
        scorer.against(rows, broken, following)
    with pytest.raises(NotANumber):
        scorer.alone(broken, following)
    with pytest.raises(NotANumber):
        scorer.base(broken, following, np.empty_like(broken))


# -- against the tool ------------------------------------------------------------------------------------------------

#: Chunks of the usual length. In short ones, the last bits depend more on how many tokens are computed at once.
_CHUNKS = ["--chunks", 2, "-t", 2]


@pytest.fixture(scope="session")
def files(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SmolLM2 in F16 and Q4_0. What a Q4_1 computes depends on its last bits with how tokens are batched."""
    made = lm.quantize(smollm2_path, ["F16", "Q4_0"], tmp_path_factory.mktemp("files"), allow_requantize=True)
    return made[0].path, made[1].path


def printed(said: str) -> dict[str, list[float]]:
    """Name and numbers of every line of statistics that llama-perplexity printed."""
    lines = re.findall(r"^ *([^\n:]*(?:PPL|KLD|Δp|Same top p)[^\n:]*?) *: +(-?[\d.]+[^\n]*)$", said, re.MULTILINE)
    return {" ".join(name.split()): [float(value) for value in re.findall(r"-?[\d.]+", rest)] for name, rest in lines}


def test_every_statistic_against_llama_perplexity(
    files: tuple[Path, Path], llama_tool: Callable[..., str], log: LogCapture, tmp_path: Path
) -> None:
    base, q4_0 = files
    store = ["--kl-divergence-base", tmp_path / "logits.kld"]
    said = llama_tool("llama-perplexity", "-m", base, "-f", EVALUATION, *_CHUNKS, *store)
    alone = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", said)
    theirs = printed(llama_tool("llama-perplexity", "-m", q4_0, *_CHUNKS, *store, "--kl-divergence"))
    options = LoadOptions(n_threads=2)
    request = EvaluateRequest((spec(q4_0, options),), spec(base, options), chunks=2)
    tools = WorkerTools(lambda _progress: None, lambda: False, log)
    exact = evaluating.run(request, tools)
    assert alone is not None
    assert exact.base[0].ppl == pytest.approx(float(alone[1]), rel=0.01)
    assert exact.base[0].ppl_error == pytest.approx(float(alone[2]), rel=0.01)
    for round_base, most in ((True, 0.01), (False, 0.02)):
        found = evaluating.run(replace(request, round_base=True), tools) if round_base else exact
        ours = printed(repr(found.results[0][0]))
        assert ours.keys() == theirs.keys()
        assert len(ours) == 6 + 12 + 16
        for name, values in theirs.items():
            # what they print is rounded, and their base to 16 bits: a step is 1.2e-4 in a log-probability
            least = 1.5e-4 if "KLD" in name else 2e-3 if "Δp" in name else 1e-5
            assert ours[name] == pytest.approx(values, rel=most, abs=least), name


def test_stride_against_llama_perplexity(
    files: tuple[Path, Path], llama_tool: Callable[..., str], log: LogCapture
) -> None:
    flags = ["-c", 64, "-b", 64, "--chunks", 3, "-t", 2, "--ppl-stride", 48]
    said = llama_tool("llama-perplexity", "-m", files[0], "-f", EVALUATION, *flags)
    theirs = [float(value) for value in re.findall(r"\[\d+\]([\d.]+),", said)]
    # the tool makes its window longer than was asked for: by half a stride, and up to a multiple of 256
    window = re.search(r"Calculation chunk = (\d+)", said)
    assert window is not None
    options = LoadOptions(n_threads=2)
    request = EvaluateRequest((spec(files[0], options),), n_ctx=int(window[1]), chunks=3, stride=48)
    (found,) = evaluating.run(request, WorkerTools(lambda _progress: None, lambda: False, log)).results[0]
    assert [point.ppl for point in found.running] == pytest.approx(theirs, rel=0.01)
    assert found.tokens == 3 * 48


# -- what it must withstand ------------------------------------------------------------------------------------------


def test_other_vocabularies_are_refused(
    pair: dict[str, tuple[Path, Weights]], smollm2_path: Path, tmp_path: Path, log: LogCapture
) -> None:
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(pair["other"][0].read_bytes().replace(b"<0x01>", b"<0x02>", 1))
    base = spec(pair["base"][0])
    with pytest.raises(InvalidRequestError, match="49,152 and 286 tokens"):
        evaluate(log, spec(smollm2_path), base=base)
    tolerant = evaluate(log, spec(smollm2_path), spec(pair["other"][0]), base=base, tolerant=True)
    assert tolerant.results[0] == ()
    assert tolerant.results[1][0].chunks == 12
    ((place, reason),) = tolerant.failures
    assert place == 0
    assert "different vocabularies" in reason
    assert "\n" not in reason


def broken(source: tuple[Path, Weights], path: Path) -> Path:
    """A copy whose last layer gives NaN from some token on."""
    weight = source[1]["token_embd.weight"].copy()
    data, letter = source[0].read_bytes(), vocabulary().index("z")
    row = weight[letter].tobytes()
    assert data.count(row) == 1
    path.write_bytes(data.replace(row, np.full_like(weight[letter], np.nan).tobytes()))
    return path


def test_logits_that_are_no_numbers(pair: dict[str, tuple[Path, Weights]], tmp_path: Path, log: LogCapture) -> None:
    bad = spec(broken(pair["other"], tmp_path / "bad.gguf"))
    base, good = spec(pair["base"][0]), spec(pair["other"][0])
    with pytest.raises(NativeError, match=r"bad gives logits that are no numbers \(NaN\) in chunk 1 of 12"):
        evaluate(log, bad, base=base)
    with pytest.raises(NativeError, match="bad gives logits"):
        evaluate(log, good, base=bad, tolerant=True)
    tolerant = evaluate(log, bad, good, base=base, tolerant=True)
    assert [len(results) for results in tolerant.results] == [0, 1]
    assert tolerant.failures[0][0] == 0
    alone = evaluate(log, good, base=base).results[0][0]
    assert isinstance(alone, KLDivergence)
    assert getattr(tolerant.results[1][0], "kld", None) == alone.kld


def test_what_can_not_work_says_why(
    pair: dict[str, tuple[Path, Weights]], log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = spec(pair["base"][0])
    cases: list[tuple[type[LlamaMagicError], str, dict[str, Any]]] = [
        (
            InvalidRequestError,
            "only 7 tokens; chunks of 64 need 128 or more",
            {"texts": (TextPart("t", text="hello"),)},
        ),
        (InvalidRequestError, "none.txt can not be read", {"texts": (TextPart("n", "none.txt"),)}),
        (InvalidModelError, "is a web page|can not load|not a GGUF", {"models": (spec(EVALUATION),)}),
    ]
    for kind, words, changes in cases:
        with pytest.raises(kind, match=words) as caught:
            evaluate(log, model, **changes)
        assert "\n" not in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "available_memory", lambda: 1 << 20)
        with pytest.raises(OutOfMemoryError, match=r"1\.00 MiB are free"):
            evaluate(log, model)
        assert evaluate(log, model, force=True).complete
    monkeypatch.setattr(NativeModel, "has_decoder", False)
    with pytest.raises(InvalidModelError, match="only embeds texts: perplexity is defined for"):
        evaluate(log, model)


def test_stopped_early_keeps_what_was_read(pair: dict[str, tuple[Path, Weights]], log: LogCapture) -> None:
    reports: list[Progress] = []

    def cancelled() -> bool:
        last = reports[-1] if reports else None
        return isinstance(last, EvaluationProgress) and last.chunk >= 4

    asked = spec(pair["other"][0]), spec(pair["base"][0])
    found = evaluate(log, asked[0], base=asked[1], reports=reports, cancelled=cancelled)
    assert not found.complete
    kept = found.results[0][0]
    assert isinstance(kept, KLDivergence)
    assert 4 <= kept.chunks < kept.chunks_total == 12
    whole = evaluate(log, asked[0], base=asked[1]).results[0][0]
    assert kept.running == whole.running[: kept.chunks]
    last = [report for report in reports if isinstance(report, EvaluationProgress)][-1]
    names = [(name, place) for name, place, _ in last.estimates]
    assert names == [("base.gguf", -1), ("other.gguf", 0)]
    assert last.estimates[1][2] == kept.running[-1]
    low, high = last.estimates[1][2].kld_interval or (0.0, 0.0)
    assert low < kept.kld < high


def test_an_interrupt_keeps_the_result(pair: dict[str, tuple[Path, Weights]]) -> None:
    def interrupt(progress: Progress) -> None:
        if isinstance(progress, EvaluationProgress) and progress.chunk:
            raise KeyboardInterrupt

    with pytest.raises(JobInterrupted) as caught:
        lm.kl_divergence(str(pair["other"][0]), str(pair["base"][0]), TEXT * 40, n_ctx=N_CTX, progress=interrupt)
    kept = caught.value.result
    assert isinstance(kept, KLDivergence)
    assert 0 < kept.chunks < kept.chunks_total
    assert f"stopped after {kept.chunks} of {kept.chunks_total} chunks" in str(caught.value)
