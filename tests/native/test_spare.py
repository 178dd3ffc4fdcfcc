"""The worker that waits for the next job: used once, only in its own environment, and not for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llama_magic.api.quantize import plan, quantize
from llama_magic.engine import spare
from llama_magic.engine.client import get_client
from tests.native.test_quantize import tiny


@pytest.fixture
def kept() -> Iterator[None]:
    spare.keep_spare(True)
    yield
    spare.keep_spare(False)


def waiting() -> list[int]:
    """Process ids of the workers that wait, once what ends has ended."""
    spare._settle()
    return [one.client.pid for one in spare._waiting if one.client.pid is not None]


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
    taken.close()
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
    taken.close()


def test_it_ends_when_nobody_needs_it(kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "IDLE_S", 0.2)
    spare.prepare_spare()
    (pid,) = waiting()
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(20)
    assert waiting() == []
    assert not psutil.pid_exists(pid)
