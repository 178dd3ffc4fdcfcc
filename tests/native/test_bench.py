"""`bench` with a real worker, beside llama-bench itself."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama_magic as lm
from llama_magic.engine import measuring
from llama_magic.evaluation.speed import SpeedLane, bench_settings
from llama_magic.evaluation.speed_test import CloseLanesRequest, OpenLaneRequest, SpeedTest
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.native import LogCapture, NativeModel, WorkerTools

#: Columns that a second run gives other values, or that only llama.cpp's tools know.
TIMED = {
    "build_commit",
    "build_number",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "samples_ns",
    "samples_ts",
}


@pytest.fixture(scope="module")
def both(smollm2_path: Path, llama_tool: Callable[..., str]) -> tuple[lm.BenchResult, list[dict[str, Any]]]:
    flags = "-p 8,16 -n 2 -pg 8,2 -d 0,8 -t 1 -ub 256 -fa 1 -r 2".split()
    theirs = llama_tool("llama-bench", "-m", smollm2_path, *flags, "-o", "json")
    ours = lm.bench(
        smollm2_path, n_prompt=[8, 16], n_gen=2, pg=[(8, 2)], n_depth=[0, 8], n_threads=1, n_ubatch=256,
        flash_attn="on", repetitions=2,
    )  # fmt: skip
    return ours, json.loads(theirs)


def test_rows_and_columns_are_llama_benchs(both: tuple[lm.BenchResult, list[dict[str, Any]]]) -> None:
    ours, theirs = both
    mine = json.loads(ours.to_json())
    assert [list(row) for row in mine] == [list(row) for row in theirs]
    for own, other in zip(mine, theirs, strict=True):
        assert {k: v for k, v in own.items() if k not in TIMED} == {k: v for k, v in other.items() if k not in TIMED}
        assert [type(value) for value in own.values()] == [type(value) for value in other.values()]


def test_the_csv_is_llama_benchs(smollm2_path: Path, llama_tool: Callable[..., str]) -> None:
    theirs = list(
        csv.reader(io.StringIO(llama_tool("llama-bench", "-m", smollm2_path, *"-p 8 -n 0 -r 1 -t 1 -o csv".split())))
    )
    mine = lm.bench(smollm2_path, n_prompt=8, n_gen=0, repetitions=1, n_threads=1)
    ours = list(csv.reader(io.StringIO(mine.to_csv())))
    assert ours[0] == theirs[0]
    for name, own, other in zip(*ours, theirs[1], strict=True):
        assert name in TIMED or own == other, name
    printed = llama_tool("llama-bench", "-m", smollm2_path, *"-p 8 -n 0 -r 1 -t 1 -o md".split()).splitlines()
    assert mine.to_markdown().splitlines()[:2] == printed[:2]
    assert mine.to_markdown().splitlines()[2].split("|")[:-2] == printed[2].split("|")[:-2]


def test_what_a_repetition_computes(model: NativeModel) -> None:
    test = SpeedTest(n_prompt=20, n_gen=5, n_depth=30)
    settings = bench_settings(LoadOptions(n_threads=2, n_batch=16), test, 1)
    with SpeedLane(model, test, settings) as lane:
        assert lane.warm_up() > 0
        first = lane.repeat()
        assert lane.context.last_position(0) == 30 + 20 + 5 - 1
        again = lane.repeat()
        assert lane.context.last_position(0) == 54
        assert min(first, again) > 0
    assert settings.n_batch == 16
    assert settings.n_threads == settings.n_threads_batch == 2


def test_what_lanes_need_beside_each_other(
    smollm2_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = WorkerTools(lambda _progress: None, lambda: False, log)
    spec = ModelSpec(str(smollm2_path), "smollm2", LoadOptions(n_threads=1))

    def open_lane(number: int, test: SpeedTest, path: str = spec.path) -> None:
        request = OpenLaneRequest(number, ModelSpec(path, "smollm2", spec.options), test, warmup=False)
        measuring.open_lane(request, tools)

    monkeypatch.setattr(measuring, "available_memory", lambda: 180 << 20)
    try:
        open_lane(1, SpeedTest(n_prompt=8))
        open_lane(2, SpeedTest(n_gen=8))  # the weights are there, and only a small context is added
        assert len(measuring._BENCH.models) == 1
        with pytest.raises(lm.OutOfMemoryError, match=r"needs .* more for a context of 8,008 tokens"):
            open_lane(3, SpeedTest(n_gen=8, n_depth=8000))
        with pytest.raises(lm.OutOfMemoryError, match="are free"):
            open_lane(4, SpeedTest(n_prompt=8), f"{smollm2_path.parent}/./{smollm2_path.name}")  # weights once more
    finally:
        measuring.close_lanes(CloseLanesRequest(), tools)
    assert not measuring._BENCH.models


def test_a_stop_is_quick_and_keeps_rows(smollm2_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.partial is not None:
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
            threading.Event().wait(5)  # the interrupt comes here

    with pytest.raises(lm.JobInterrupted) as stopped:
        lm.bench(smollm2_path, n_prompt=8, n_gen=4, repetitions=50, n_threads=1, progress=stop)
    result = stopped.value.result
    assert result.stopped
    assert sum(len(row.samples_ns) for row in result) == 1


def test_models_that_can_not_be_measured(tmp_path: Path, smollm2_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(smollm2_path.read_bytes()[: 1 << 20])
    result = lm.bench([smollm2_path, broken], n_prompt=8, n_gen=0, repetitions=1, n_threads=1)
    assert result[0].samples_ns
    assert result[1].error
    with pytest.raises(lm.InvalidModelError):
        lm.bench(broken)
    seen: list[object] = []
    with pytest.raises(lm.InvalidRequestError, match="no backend"):
        lm.bench(smollm2_path, backends=["cpu", "cuda9"], progress=seen.append)
    assert seen == [], "it is told before anything is measured"
