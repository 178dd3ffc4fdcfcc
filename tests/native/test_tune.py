"""Tuning with a real worker, on a model so small that it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import llama_magic as lm
from llama_magic.api.session import Session
from llama_magic.engine.client import EngineClient, set_client
from llama_magic.evaluation.tuned import tuned_settings
from tests.tiny import tiny_llama


@pytest.fixture
def tiny(tmp_path: Path, fresh_home: Path) -> Iterator[str]:
    path = tmp_path / "tiny.gguf"
    tiny_llama(path, still_query=False)
    client = EngineClient()
    set_client(client)
    yield str(path)
    client.close()
    set_client(None)


def test_tuned_settings_are_found_kept_and_loaded(tiny: str) -> None:
    result = lm.tune(tiny, quick=True, n_ctx=512)
    assert isinstance(result, lm.TuneResult)
    knobs = [trial.knob for trial in result.trials]
    assert "flash attention" in knobs
    assert all(speed > 0 for trial in result.trials for speed in trial.speeds if trial.verdict in ("kept", "as fast"))
    if result.settings:
        assert result.gain is not None
        assert result.gain.faster
        assert not any(check.gain.slower for check in result.checks)
    assert tuned_settings(tiny) == result.settings
    session = Session()
    info = session.load(tiny, {"n_ctx": 512})
    assert session.tuned == result.settings
    assert info.n_threads == result.settings.get("n_threads", info.n_threads)
