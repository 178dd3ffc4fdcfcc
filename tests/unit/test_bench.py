"""`bench` without a model: its grid, its turns, its figures and what it prints."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import llama_magic as lm
from llama_magic.engine.jobs import set_job_client
from llama_magic.errors import EngineCrashed, GenerationInterrupted, NativeError, OutOfMemoryError
from llama_magic.evaluation.bench import BenchResult, BenchRow, stdev
from llama_magic.evaluation.speed_test import (
    CloseLanesRequest,
    LaneFacts,
    OpenLaneRequest,
    SpeedTest,
    TimeLaneRequest,
    model_options,
)
from llama_magic.models.options import LoadOptions
from llama_magic.notebook.converters import numbers
from llama_magic.notebook.subcommands import SUBCOMMANDS
from llama_magic.progress import Progress

FACTS = LaneFacts("llama 135M Q4_1", 96576768, 134515008, 31, 2, ("CPU",), "A CPU", "", "CPU", "0c1e570", 10**9)


class FakeWorker:
    """Answers as a measuring worker; `took` gives the nanoseconds of a lane's next repetition."""

    def __init__(self, took: Callable[[OpenLaneRequest], Any] = lambda _lane: 10**9, room: int = 99) -> None:
        self.took, self.room = took, room
        self.lanes: dict[int, OpenLaneRequest] = {}
        self.order: list[str] = []
        self.alive = True
        self.pid = None
        self.closed = 0

    def request(self, request: Any, on_progress: Any = None) -> Any:
        if isinstance(request, OpenLaneRequest):
            if len(self.lanes) >= self.room:
                raise OutOfMemoryError("does not fit")
            if request.spec.options.flash_attn == "off":
                raise NativeError("this one can not")
            self.lanes[request.lane] = request
            return FACTS
        if isinstance(request, TimeLaneRequest):
            lane = self.lanes[request.lane]
            self.order.append(f"{lane.test.name} -t {lane.spec.options.n_threads}")
            took = self.took(lane)
            if isinstance(took, BaseException):
                raise took
            return took
        assert isinstance(request, CloseLanesRequest)
        self.lanes = {n: lane for n, lane in self.lanes.items() if request.lanes and n not in request.lanes}
        return None

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorker]:
    monkeypatch.setattr("llama_magic.api.speed.busy_share", lambda: 0.1)
    made = FakeWorker()
    set_job_client(lambda: made)  # type: ignore[arg-type, return-value]
    yield made
    set_job_client(None)


@pytest.fixture
def model(tmp_path: Any) -> str:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return str(path)


def test_the_grid_and_the_turns(worker: FakeWorker, model: str) -> None:
    seen: list[Progress] = []
    result = lm.bench(
        model, n_prompt=[16, 32], n_gen=8, pg=[(4, 2)], n_threads=[1, 2], repetitions=2, progress=seen.append
    )
    names = ["pp16", "pp32", "tg8", "pp4+tg2"]
    rows = [f"{name} -t {threads}" for threads in (1, 2) for name in names]
    assert [f"{row.test.name} -t {row.options.n_threads}" for row in result] == rows
    assert worker.order == [*rows, *reversed(rows)]
    assert all(len(row.samples_ns) == 2 for row in result.rows)
    assert result[0].avg_ts == 16.0
    assert worker.closed == 1
    parts = [progress.partial for progress in seen if progress.partial is not None]
    assert sum(len(row.samples_ns) for row in parts[-1]) == 15
    assert "pp16" in parts[-1]._repr_html_()


def test_depths_and_nothing_to_do(worker: FakeWorker, model: str) -> None:
    result = lm.bench(model, n_prompt=0, n_gen=4, n_depth=[0, 64], repetitions=1)
    assert [row.test for row in result] == [SpeedTest(0, 4), SpeedTest(0, 4, 64)]
    assert result[1].test.name == "tg4 @ d64"
    assert result[1].test.n_ctx == 68
    with pytest.raises(lm.InvalidRequestError, match="nothing to measure"):
        lm.bench(model, n_prompt=0, n_gen=0)
    with pytest.raises(TypeError, match="bench takes no n_ctx"):
        lm.bench(model, n_ctx=512)
    with pytest.raises(TypeError, match="Did you mean flash_attn"):
        lm.bench(model, flash_atn="on")
    with pytest.raises(lm.InvalidRequestError, match="counts from 0"):
        SpeedTest()


def test_one_row_fails_and_the_others_go_on(worker: FakeWorker, model: str) -> None:
    result = lm.bench(model, n_gen=0, flash_attn=["on", "off"], repetitions=3)
    assert [row.error for row in result] == ["", "this one can not"]
    assert len(result[0].samples_ns) == 3
    assert "this one can not" in result._repr_html_()
    assert "not measured" in repr(result)
    assert len(json.loads(result.to_json())) == 1
    with pytest.raises(NativeError, match="this one can not"):
        lm.bench(model, flash_attn="off")


def test_a_worker_that_dies_takes_its_rows(worker: FakeWorker, model: str) -> None:
    worker.took = lambda lane: EngineCrashed("it died") if lane.test.n_gen and len(worker.order) > 2 else 10**9
    result = lm.bench(model, repetitions=3)
    assert [row.error.startswith("it died") for row in result] == [True, True]
    assert all(row.samples_ns for row in result)


def test_what_does_not_fit_together_is_measured_in_groups(worker: FakeWorker, model: str) -> None:
    worker.room = 2
    result = lm.bench(model, n_gen=0, n_threads=[1, 2, 3], repetitions=2)
    assert worker.order == [f"pp512 -t {n}" for n in (1, 2, 2, 1, 3, 3)]
    assert "2 groups" in result.notes[0]
    worker.room = 0
    with pytest.raises(OutOfMemoryError):
        lm.bench(model)


def test_a_stop_keeps_what_is_done(worker: FakeWorker, model: str) -> None:
    worker.took = lambda _lane: GenerationInterrupted() if len(worker.order) > 3 else 10**9
    with pytest.raises(lm.JobInterrupted, match="what 3 repetitions measured is kept") as stopped:
        lm.bench(model, repetitions=5)
    result = stopped.value.result
    assert result.stopped
    assert [len(row.samples_ns) for row in result] == [1, 2]
    assert "stopped after 3 of 10 repetitions" in repr(result)
    assert worker.closed == 1


def test_a_busy_machine_is_said(worker: FakeWorker, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_magic.api.speed.busy_share", lambda: 0.75)
    assert "other work took 75 %" in lm.bench(model, repetitions=1).notes[0]


def row(test: SpeedTest, *samples: int, **options: Any) -> BenchRow:
    chosen = LoadOptions.from_keywords(**options)
    return BenchRow("m", "/m.gguf", test, chosen, "", "2026-01-01T00:00:00Z", FACTS, samples)


def test_the_figures() -> None:
    samples = (1_000_000_000, 1_100_000_000, 950_000_000, 2_000_000_000)
    made = row(SpeedTest(512), *samples)
    speeds = [512e9 / ns for ns in samples]
    assert made.avg_ts == pytest.approx(statistics.fmean(speeds), rel=1e-12)
    assert made.stddev_ts == pytest.approx(statistics.stdev(speeds), rel=1e-12)
    assert made.avg_ns == 1_262_500_000
    assert made.stddev_ns == int(statistics.stdev(samples))
    assert stdev([3.0]) == stdev([]) == 0.0


def test_llama_benchs_formats() -> None:
    result = BenchResult(
        (row(SpeedTest(512), 10**9, 11 * 10**8), row(SpeedTest(0, 128, 1024), 10**9, n_ubatch=256, flash_attn="on")),
        2,
        1.0,
    )
    lines = result.to_markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == "model size params backend threads n_ubatch fa test t/s".split()
    assert cells[2] == ["llama 135M Q4_1", "92.10 MiB", "134.52 M", "CPU", "2", "512", "-1", "pp512", "488.73 ± 32.91"]
    assert cells[3][-2:] == ["tg128 @ d1024", "128.00 ± 0.00"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[-1] == "build: 0c1e570 (0)"
    table = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert table[1]["flash_attn"] == "1"
    assert table[0]["avg_ts"] == "488.727273"
    data = json.loads(result.to_json())
    assert list(data[0])[:3] == ["build_commit", "build_number", "cpu_info"]
    assert data[0]["samples_ns"] == [10**9, 11 * 10**8]
    assert data[0]["no_kv_offload"] is False
    frame = result.to_pandas()
    assert list(frame["test"]) == ["pp512", "tg128 @ d1024"]
    assert result.to_dict()["rows"][0]["avg_ts"] == data[0]["avg_ts"]


def test_what_is_shown_is_escaped_and_told_apart() -> None:
    facts = FACTS
    rows = tuple(
        BenchRow(ref, f"/{ref}", SpeedTest(512), LoadOptions(n_threads=2), backend, "", facts, (10**9, 2 * 10**9))
        for ref, backend in (("<b>a</b>.gguf", "cpu"), ("b.gguf", "blas"))
    )
    page = BenchResult(rows, 2, 3.0)._repr_html_()
    assert "<b>a" not in page
    assert "backend blas" in page
    assert "<svg" in page
    assert "384.0 ± 181.0" in page
    assert "backend cpu" in repr(BenchResult(rows, 2, 3.0))


def test_lanes_share_a_model_unless_the_weights_differ() -> None:
    plain = LoadOptions()
    assert model_options(LoadOptions(n_threads=3, flash_attn="on", cache_type_k="q8_0")) == plain
    assert model_options(LoadOptions(n_gpu_layers=3)) != plain
    assert model_options(LoadOptions(repack=False)) != plain


def test_the_line() -> None:
    parser = SUBCOMMANDS["bench"]
    arguments = parser.parse(
        "a.gguf b.gguf -p 128-512*2 -n 0 -pg 64,16 -t 1,2 -t 4 -fa on,0 -dev CUDA0/CUDA1,none -ngl 0,all"
    )
    assert arguments.words == ("a.gguf", "b.gguf")
    values = arguments.values
    assert values["n_prompt"] == (128, 256, 512)
    assert values["pg"] == ((64, 16),)
    assert values["n_threads"] == (1, 2, 4)
    assert values["flash_attn"] == ("on", "off")
    assert values["devices"] == (("CUDA0", "CUDA1"), ("CPU",))
    assert values["n_gpu_layers"] == (0, "all")
    assert parser.parse("--backends cpu,blas/rpc").get("backends") == ("cpu", "blas,rpc")
    assert parser.parse("--format md").get("format") == "md"
    with pytest.raises(lm.InvalidRequestError, match="-p takes numbers"):
        parser.parse("-p many")
    with pytest.raises(lm.InvalidRequestError, match="prompt,generated"):
        parser.parse("-pg 512")
    with pytest.raises(lm.InvalidRequestError, match="bench does not take -c"):
        parser.parse("-c 512")


def test_ranges_as_llama_bench_reads_them() -> None:
    assert numbers("7") == (7,)
    assert numbers("1,3,5-7") == (1, 3, 5, 6, 7)
    assert numbers("128-512+128") == (128, 256, 384, 512)
    assert numbers("1-10*3") == (1, 3, 9)
    for bad in ("", "a", "1-", "1-5*1", "0-4*2", "5,"):
        with pytest.raises(ValueError, match=r"numbers|grows"):
            numbers(bad)
