"""Tuning without a model: what is decided from times, what is kept, and what load makes of it."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama_magic as lm
from llama_magic.api.session import Session
from llama_magic.engine.client import set_client
from llama_magic.engine.jobs import set_job_client
from llama_magic.errors import EngineCrashed, GenerationInterrupted, OutOfMemoryError
from llama_magic.evaluation import tuned
from llama_magic.evaluation.speed_test import CloseLanesRequest, LaneFacts, OpenLaneRequest, TimeLaneRequest
from llama_magic.evaluation.tune import TuneResult, flags_of, speedup
from llama_magic.evaluation.tune_plan import knobs, size_tests
from llama_magic.models.options import LoadOptions
from llama_magic.models.places import tuned_file
from llama_magic.notebook.commands import Context
from llama_magic.notebook.subcommands import SUBCOMMANDS
from tests.fakes import FakeClient

CPU = LaneFacts("llama", 10**8, 10**8, 31, 2, ("CPU",), "A CPU", "", "CPU", "0c1e570", 10**8)
GPU = LaneFacts("llama", 10**8, 10**8, 31, 2, ("G0",), "A CPU", "A GPU", "X", "0c1e570", 10**8)


class Machine:
    """A worker whose speed depends on the options in a known way, with noise."""

    def __init__(self, factors: dict[str, dict[Any, float]], noise: float = 0.01, facts: LaneFacts = CPU) -> None:
        self.factors, self.facts = factors, facts
        self.random = random.Random(3)
        self.noise = noise
        self.lanes: dict[int, OpenLaneRequest] = {}
        self.room = 99
        self.opened: list[OpenLaneRequest] = []
        self.broken: dict[str, Any] = {}
        self.alive, self.pid = True, None

    def request(self, request: Any, on_progress: Any = None) -> Any:
        if isinstance(request, OpenLaneRequest):
            if len(self.lanes) >= self.room:
                raise OutOfMemoryError("too little memory")
            for name, (value, error) in self.broken.items():
                if getattr(request.spec.options, name) == value:
                    if isinstance(error, EngineCrashed):
                        self.lanes.clear()
                    raise error
            self.lanes[request.lane] = request
            self.opened.append(request)
            return self.facts
        if isinstance(request, CloseLanesRequest):
            self.lanes.clear()
            return None
        assert isinstance(request, TimeLaneRequest)
        lane = self.lanes[request.lane]
        speed = 1000.0
        for name, factors in self.factors.items():
            speed *= factors.get(getattr(lane.spec.options, name), 1.0)
        return int(1e9 * lane.test.n_tokens / speed * math.exp(self.random.gauss(0, self.noise)))

    def close(self) -> None:
        self.lanes.clear()


@pytest.fixture
def model(tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("llama_magic.api.speed.busy_share", lambda: 0.0)
    monkeypatch.setattr("llama_magic.api.tune.default_threads", lambda: 4)
    monkeypatch.setattr("llama_magic.api.tune._cpus", lambda _threads: 8)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(range(200)))
    yield str(path)
    set_job_client(None)
    set_client(None)


def tune(machine: Machine, model: str, **options: Any) -> TuneResult:
    set_job_client(lambda: machine)  # type: ignore[arg-type, return-value]
    found = lm.tune(model, **options)
    assert isinstance(found, TuneResult)
    return found


def test_what_is_faster_beyond_the_noise() -> None:
    before, after = [1.0, 1.1, 0.9, 1.0, 1.05], [0.8, 0.9, 0.7, 0.81, 0.83]
    found = speedup(before, after)
    logs = [math.log(a / b) for a, b in zip(before, after, strict=True)]
    reach = 2.776 * statistics.stdev(logs) / math.sqrt(5)  # Student's t: 97.5 %, 4 degrees of freedom
    assert found.ratio == pytest.approx(math.exp(statistics.fmean(logs)))
    assert found.low == pytest.approx(math.exp(statistics.fmean(logs) - reach), rel=1e-3)
    assert found.high == pytest.approx(math.exp(statistics.fmean(logs) + reach), rel=1e-3)
    assert found.faster
    assert speedup(after, before).slower
    assert not speedup([1.0, 1.0, 1.0], [0.5, 1.4, 0.9]).faster
    assert not speedup([1.0, 1.0, 1.0], [0.995, 0.995, 0.995]).faster  # real, and too small to matter
    one = speedup([2.0], [1.0])
    assert (one.ratio, one.faster, one.slower) == (2.0, False, False)
    assert speedup([], []).ratio == 1.0


def test_noise_alone_is_seldom_taken_for_a_gain() -> None:
    chance = random.Random(1)
    wrong = 0
    for _ in range(2000):
        times = [[math.exp(chance.gauss(0, 0.1)) for _ in range(5)] for _ in range(2)]
        wrong += speedup(*times).faster
    assert 0.01 < wrong / 2000 < 0.03  # 2.5 % to one side, a little less for the least gain


def test_it_finds_what_is_faster_and_keeps_it(model: str) -> None:
    machine = Machine({"n_threads": {8: 1.5, 3: 0.8}, "n_ubatch": {256: 1.2}, "flash_attn": {"off": 0.7}})
    seen: list[Any] = []
    result = tune(machine, model, progress=seen.append)
    assert result.settings == {"n_threads": 8, "n_threads_batch": 4, "n_ubatch": 256}
    assert result.flags == "-t 8 -tb 4 -ub 256"
    assert result.gain is not None
    assert result.gain.ratio == pytest.approx(1.5 * 1.2, rel=0.03)
    assert [check.what for check in result.checks] == ["prompt", "answer", "follow-up"]
    assert {trial.flags for trial in result.trials if trial.kept} == {"-t 8 -tb 4", "-ub 256"}
    assert any(trial.verdict == "dropped early" for trial in result.trials)
    assert {request.as_loaded for request in machine.opened} == {"solo", "chat"}
    assert "cache_type_k" not in {name for name, value in result.settings.items() if value.__class__ is str}
    assert seen[-1].partial.trials
    assert tuned.tuned_settings(model) == result.settings
    assert "1.8" in result._repr_html_()
    assert "times as fast as the defaults" in repr(result)
    assert len(result.to_pandas()) == len(result.trials)
    assert json.loads(json.dumps(result.to_dict()))["flags"] == result.flags


def test_chance_finds_are_not_confirmed(model: str) -> None:
    found = []
    for seed in range(30):
        machine = Machine({"n_gpu_layers": {0: 2.0}}, facts=GPU)
        machine.random = random.Random(seed)
        result = tune(machine, model, quick=True)
        assert result.settings["n_gpu_layers"] == 0
        found.append(len(result.settings))
    assert found.count(1) >= 29


def test_nothing_is_faster(model: str) -> None:
    result = tune(Machine({"n_threads": {8: 0.5}}, noise=0.002), model)
    assert result.settings == {}
    assert result.stored == ""
    assert "nothing is changed" in repr(result)
    assert not tuned_file().exists()


def test_the_last_check_decides(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"n_threads": {8: 1.4}})
    checks = iter([False])
    real = Machine.request

    def request(self: Machine, request: Any, on_progress: Any = None) -> Any:
        if isinstance(request, OpenLaneRequest) and request.as_loaded == "chat" and next(checks, True) is False:
            self.factors = {}  # from the trials of flash attention on, threads make no difference any more
        return real(self, request, on_progress)

    monkeypatch.setattr(Machine, "request", request)
    result = tune(machine, model, quick=True)
    assert result.settings == {}
    assert "looked faster, but the last check did not confirm a gain" in result.notes[-1]
    assert result.verdict == "the last check confirmed no gain: the defaults stay"
    assert not tuned_file().exists()


def test_what_makes_a_test_slower_is_not_kept(model: str) -> None:
    machine = Machine({"flash_attn": {"on": 1.0}}, noise=0.001)
    real = machine.request

    def request(request: Any, on_progress: Any = None) -> Any:
        found = real(request, on_progress)
        if isinstance(request, TimeLaneRequest):
            lane = machine.lanes[request.lane]
            if lane.spec.options.flash_attn == "on":
                found = int(found * (1.2 if lane.as_loaded == "chat" else 0.6))
        return found

    machine.request = request  # type: ignore[method-assign]
    result = tune(machine, model)
    trial = next(trial for trial in result.trials if trial.flags == "-fa on")
    assert trial.verdict.startswith("slower in pp32+tg16 @ d1024")
    assert result.settings == {}


def test_lossy_caches_only_when_asked(model: str) -> None:
    factors = {"cache_type_k": {"q8_0": 1.5}}
    assert tune(Machine(factors), model).settings == {}
    asked = tune(Machine(factors), model, allow_kv_quant=True)
    assert asked.settings == {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    assert asked.flags == "-ctk q8_0 -ctv q8_0"


def test_too_little_memory_for_all_at_once(model: str) -> None:
    machine = Machine({"n_threads": {8: 1.5}})
    machine.room = 3
    result = tune(machine, model, quick=True)
    assert result.settings["n_threads"] == 8


def test_a_candidate_that_fails_or_ends_the_worker(model: str) -> None:
    machine = Machine({"n_threads": {8: 1.5}})
    machine.broken = {"flash_attn": ("off", EngineCrashed("it died")), "n_ubatch": (128, lm.NativeError("no"))}
    result = tune(machine, model)
    verdicts = {trial.flags: trial.verdict for trial in result.trials}
    assert verdicts["-fa off"].startswith("it died")
    assert verdicts["-ub 128"] == "no"
    assert result.settings["n_threads"] == 8


def test_a_stop_stores_nothing(model: str) -> None:
    machine = Machine({"n_threads": {8: 1.5}})
    machine.broken = {"flash_attn": ("on", GenerationInterrupted())}
    with pytest.raises(lm.JobInterrupted, match="nothing is stored") as stopped:
        tune(machine, model)
    assert "nothing is stored" in stopped.value.result.verdict
    assert stopped.value.result.settings["n_threads"] == 8
    assert not tuned_file().exists()


def test_what_was_said_is_not_tuned(model: str) -> None:
    result = tune(Machine({"n_threads": {8: 1.5}}), model, n_threads=2, flash_attn="off")
    assert {trial.knob for trial in result.trials} == {"ubatch", "batch"}


def test_accelerators_are_tried_with_fewer_layers(model: str) -> None:
    result = tune(Machine({"n_gpu_layers": {0: 2.0}}, facts=GPU), model, quick=True)
    assert result.settings == {"n_gpu_layers": 0}
    assert [trial.flags for trial in result.trials][:4] == ["-ngl auto", "-ngl 31", "-ngl 15", "-ngl 0"]


def test_sizes_follow_the_speed() -> None:
    fast, slow = (size_tests(*speeds, 4096, gpu=False, quick=False) for speeds in ((2000, 100), (8, 2)))
    assert (fast.prompt.test.n_prompt, fast.large.test.n_prompt, fast.answer.test.n_gen) == (512, 1024, 50)
    assert (slow.prompt.test.n_prompt, slow.large.test.n_prompt, slow.answer.test.n_gen) == (32, 32, 4)
    assert slow.follow_up is None
    assert fast.follow_up is not None
    assert fast.follow_up.test.n_depth == 1024
    assert size_tests(2000, 100, 256, gpu=False, quick=False).follow_up is None
    names = [
        knob.name for knob in knobs(slow, CPU, {"n_threads": 1, "n_threads_batch": 1}, 1, quick=True, kv_quant=False)
    ]
    assert names == ["flash attention"]


# what is kept


def test_settings_belong_to_file_machine_and_backends(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.store_tuned(model, "", {"n_threads": 3}, {})
    tuned.store_tuned(model, "blas", {"n_ubatch": 128}, {})
    assert tuned.tuned_settings(model) == {"n_threads": 3}
    assert tuned.tuned_settings(model, "blas") == {"n_ubatch": 128}
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(Path(model).read_bytes())
    assert tuned.tuned_settings(str(copy)) == {"n_threads": 3}  # the same model under another name
    copy.write_bytes(Path(model).read_bytes() + b"more")
    assert tuned.tuned_settings(str(copy)) == {}
    with monkeypatch.context() as patch:
        patch.setattr(tuned, "machine_name", lambda: "another")
        assert tuned.tuned_settings(model) == {}
    assert tuned.forget_tuned(model) == 2
    assert tuned.tuned_settings(model) == {}


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", '{"version": 9, "tuned": {}}', '{"version": 1, "tuned": {"KEY": {"settings": 3}}}',
             '{"version": 1, "tuned": {"KEY": {"settings": {"n_threads": -4}}}}',
             '{"version": 1, "tuned": {"KEY": {"settings": {"unknown": 1}}}}'],
)  # fmt: skip
def test_a_damaged_file_counts_as_empty(model: str, text: str) -> None:
    tuned.store_tuned(model, "", {"n_threads": 3}, {})
    key = next(iter(json.loads(tuned_file().read_text())["tuned"]))
    tuned_file().write_text(text.replace("KEY", key))
    assert tuned.tuned_settings(model) == {}
    tuned.store_tuned(model, "", {"n_threads": 2}, {})
    assert tuned.tuned_settings(model) == {"n_threads": 2}


def test_load_uses_them_where_nothing_is_said(model: str) -> None:
    settings = {"n_threads": 3, "n_threads_batch": 2, "n_ubatch": 128, "flash_attn": "off"}
    tuned.store_tuned(model, "", settings, {})
    client = FakeClient()
    set_client(client)
    session = Session()
    assert session.spec(model).options == LoadOptions(**settings)  # type: ignore[arg-type]
    assert session.spec(model, {"n_threads": 1}).options == LoadOptions(n_threads=1, n_ubatch=128, flash_attn="off")
    # a V cache that needs flash attention does not meet the tuned "off"
    assert session.spec(model, {"cache_type_v": "q8_0"}).options.flash_attn == "auto"
    assert session.spec(model, {"backend": "blas"}).options == LoadOptions(backend="blas")
    assert session.spec(model, tuned=False).options == LoadOptions()
    session.options = LoadOptions(n_batch=512)
    assert session.spec(model).options.n_ubatch == 512
    session.options = LoadOptions()

    def say(line: str) -> Any:
        name, _, rest = line.partition(" ")
        context = Context(session, None, lambda _progress: None)  # type: ignore[arg-type]
        return SUBCOMMANDS[name].action()(context, SUBCOMMANDS[name].parse(rest))

    said = say(f"load {model}")
    assert said.endswith("tuned: -t 3 -tb 2 -ub 128 -fa off (%llama tune --reset forgets it)")
    assert client.loaded[-1].options.n_threads == 3
    assert "tuned" not in say(f"load {model} -t 1 -b 64 -fa on")
    assert lm.load(model).spec.options == LoadOptions(**settings)  # type: ignore[arg-type]
    assert lm.load(model, n_threads=1, flash_attn="on").spec.options == LoadOptions(
        n_threads=1, flash_attn="on", n_ubatch=128
    )
    assert "is loaded with the defaults" in say(f"tune {model} --reset")
    assert "was not tuned here" in say(f"tune {model} --reset")
    session.unload()
    assert session.spec(model).options == LoadOptions()
    tuned.store_tuned(model, "", settings, {})
    assert lm.tune(model, reset=True) is None
    assert lm.load(model).spec.options == LoadOptions()


def test_flags() -> None:
    assert flags_of({"n_threads": 2, "flash_attn": "on", "backend": "blas"}) == "--backend blas -t 2 -fa on"
