"""`%llama bench`, `tune` and `doctor` in a real IPython shell."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

import llama_magic as lm
from llama_magic.engine.client import EngineClient, set_client
from llama_magic.engine.jobs import set_job_client
from llama_magic.errors import GenerationInterrupted
from llama_magic.evaluation.speed_test import OpenLaneRequest, TimeLaneRequest
from tests.tiny import tiny_llama
from tests.unit.test_bench import FACTS


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "llama_magic")
    yield made
    InteractiveShell.clear_instance()


@pytest.fixture
def tiny(tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "tiny.gguf", still_query=False)
    client = EngineClient()
    set_client(client)
    yield "tiny.gguf"
    client.close()
    set_client(None)
    set_job_client(None)


def shown(shell: Any, line: str) -> tuple[list[RichOutput], str]:
    with capture_output() as captured:
        shell.run_line_magic("llama", line)
    return captured.outputs, captured.stdout


def test_bench(shell: Any, tiny: str) -> None:
    outputs, _ = shown(shell, f"bench {tiny} -p 8,16 -n 2 -t 1 -r 2 --out speeds")
    result = shell.user_ns["speeds"]
    assert isinstance(result, lm.BenchResult)
    assert [row.test.name for row in result] == ["pp8", "pp16", "tg2"]
    assert all(len(row.samples_ns) == 2 for row in result)
    html = outputs[-1].data["text/html"]
    assert "<svg" in html
    assert "text/markdown" not in outputs[-1].data
    for row in result:
        assert f"{row.avg_ts:,.2f}" in html


@pytest.mark.parametrize("shape", ["md", "csv", "json"])
def test_bench_as_llama_bench_prints_it(shell: Any, tiny: str, shape: str) -> None:
    outputs, _ = shown(shell, f"bench {tiny} -p 8 -n 0 -t 1 -r 1 --format {shape} --out speeds")
    text, page = outputs[-1].data["text/plain"], outputs[-1].data["text/html"]
    value = shell.user_ns["speeds"][0].avg_ts
    if shape == "md":
        assert f"{value:.2f} ± 0.00" in text
        assert text.startswith("| model ")
    elif shape == "csv":
        assert float(next(csv.DictReader(io.StringIO(text)))["avg_ts"]) == pytest.approx(value, abs=1e-6)
    else:
        assert json.loads(text)[0]["avg_ts"] == value
    assert "white-space:pre" in page


def test_a_stopped_bench_shows_what_there_is(shell: Any, tiny: str) -> None:
    class Worker:
        """Is interrupted at the third repetition."""

        alive, pid, times = True, None, 0

        def request(self, request: object, on_progress: object = None) -> object:
            if isinstance(request, OpenLaneRequest):
                return FACTS
            if isinstance(request, TimeLaneRequest):
                self.times += 1
                if self.times == 3:
                    raise GenerationInterrupted
                return 10**9
            return None

        def close(self) -> None:
            pass

    set_job_client(Worker)  # type: ignore[arg-type]
    with capture_output() as captured, pytest.raises(lm.JobInterrupted, match="2 repetitions measured is kept"):
        shell.run_line_magic("llama", f"bench {tiny} -r 5 --out partial")
    assert shell.user_ns["partial"].stopped
    assert "stopped after 2 of 10 repetitions" in captured.outputs[-1].data["text/plain"]


def test_tune_load_reset(shell: Any, tiny: str) -> None:
    outputs, _ = shown(shell, f"tune {tiny} --quick -c 512 --out tuned")
    result = shell.user_ns["tuned"]
    assert isinstance(result, lm.TuneResult)
    assert result.verdict in outputs[-1].data["text/plain"]
    _, said = shown(shell, f"load {tiny} -c 512")
    assert ("tuned: " in said) == bool(result.settings)
    if result.settings:
        assert re.search(rf"^tuned: {re.escape(result.flags)} ", said, re.MULTILINE)
    _, said = shown(shell, f"tune {tiny} --reset")
    assert ("Forgotten" in said) == bool(result.settings)
    _, said = shown(shell, f"load {tiny} -c 512")
    assert "tuned" not in said
    shown(shell, "unload")


def test_doctor(shell: Any, tiny: str) -> None:
    outputs, _ = shown(shell, "doctor --out report")
    report = shell.user_ns["report"]
    states = {finding.name: finding.state for finding in report}
    assert states["worker"] == states["Python"] == states["llama-cpp-python"] == "ok"
    assert states["instruction sets"] in ("ok", "warning")
    assert "HF_HUB_OFFLINE is set" in next(row.evidence for row in report if row.area == "Hub")
    assert "in order" in outputs[-1].data["text/html"]
    _, said = shown(shell, "doctor --json")
    data = json.loads(said)
    assert {row["name"] for row in data["findings"]} == set(states)
