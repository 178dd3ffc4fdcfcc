"""The worker that waits: used once, by a job or a session, only in its own environment, and not for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llama_magic.api.quantize import plan, quantize
from llama_magic.backends.setup import BackendSetup
from llama_magic.engine import spare
from llama_magic.engine.client import EngineClient, get_client
from llama_magic.engine.protocol import LoadRequest, StatusRequest, TokenizeRequest
from llama_magic.models.options import ModelSpec
from tests.native.test_quantize import tiny
from tests.waiting import wait_until


@pytest.fixture
def kept() -> Iterator[None]:
    spare.keep_spare(True)
    yield
    spare.keep_spare(False)


def waiting() -> list[int]:
    """Process ids of the workers that wait, once what ends has ended."""
    spare._settle()
    return [one.process.pid for one in spare._waiting if one.process.alive]


def test_the_session_takes_it_for_a_model_and_goes_on_with_it(kept: None, smollm2_path: Path) -> None:
    client = EngineClient()
    smollm2 = ModelSpec(str(smollm2_path), "smollm2")
    spare.prepare_spare()
    (first,) = waiting()
    try:
        client.request(LoadRequest(smollm2))
        assert client.pid == first
        assert waiting() == []
        assert len(client.request(TokenizeRequest(smollm2, "A llama"))) > 1
        assert client.pid == first
    finally:
        client.close()
    assert not psutil.pid_exists(first)


def test_other_backends_get_a_worker_of_their_own(kept: None) -> None:
    client = EngineClient(BackendSetup(environment=(("LLAMA_MAGIC_TEST", "yes"),)))
    spare.prepare_spare()
    try:
        client.request(StatusRequest())
        assert client.pid not in waiting()
        assert len(waiting()) == 1
    finally:
        client.close()


def test_it_imports_what_is_needed_before_it_is_asked(kept: None) -> None:
    spare.prepare_spare()
    (pid,) = waiting()
    process = psutil.Process(pid)
    wait_until(lambda: any("_multiarray_umath" in place.path for place in process.memory_maps()))
    taken = spare.take_spare()
    assert taken is not None
    taken.kill()


def test_a_job_finds_its_worker_started(kept: None, tmp_path: Path) -> None:
    source = tiny(tmp_path / "tiny-F32.gguf")
    assert waiting() == []
    plan(source, "Q8_0")
    (first,) = waiting()
    assert first != get_client().pid
    made = quantize(source, "Q8_0")
    assert made.size == made.path.stat().st_size
    (second,) = waiting()
    assert second != first
    assert not psutil.pid_exists(first), "a worker does one job"
    spare.keep_spare(False)
    assert not psutil.pid_exists(second)
    quantize(source, "Q4_0")
    assert waiting() == []


def test_a_hint_starts_one_in_a_moment_and_a_job_that_is_quicker_takes_it_back(
    kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "_SOON_S", 0.05)
    spare.prepare_soon()
    spare._soon[0].join(20)
    (pid,) = waiting()
    spare.prepare_soon()  # there is one
    assert waiting() == [pid]
    taken = spare.take_spare()
    assert taken is not None
    taken.kill()
    monkeypatch.setattr(spare, "_SOON_S", 60.0)
    spare.prepare_soon()
    (timer,) = spare._soon
    assert spare.take_spare() is None
    timer.join(20)
    assert waiting() == []


def test_scripts_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "_SOON_S", 0.0)
    spare.prepare_soon()
    assert waiting() == []
    assert not [timer for timer in spare._soon if timer.is_alive()]


def test_what_the_environment_says_now_holds(kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spare.prepare_spare()
    (first,) = waiting()
    monkeypatch.setenv("HF_TOKEN", "hf_new")
    assert spare.take_spare() is None
    assert not psutil.pid_exists(first)
    spare.prepare_spare()
    taken = spare.take_spare()
    assert taken is not None
    assert taken.alive
    taken.kill()


def test_it_ends_when_nobody_needs_it(kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "IDLE_S", 0.2)
    spare.prepare_spare()
    (pid,) = waiting()
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(20)
    assert waiting() == []
    assert not psutil.pid_exists(pid)
