"""`%llama fit`, `loaded` and `unload`, with a real worker and what it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from llama_magic.api.session import Session
from llama_magic.engine.client import EngineClient, set_client
from llama_magic.engine.jobs import set_job_client
from llama_magic.models.fit import DeviceFit, FitReport
from llama_magic.models.options import LoadOptions
from llama_magic.notebook.commands import Context
from llama_magic.notebook.subcommands import SUBCOMMANDS


@pytest.fixture
def session() -> Iterator[Session]:
    client = EngineClient()
    set_client(client)
    yield Session()
    client.close()
    set_client(None)
    set_job_client(None)


def say(session: Session, line: str) -> Any:
    name, _, rest = line.partition(" ")
    stages: list[Any] = []
    context = Context(session, None, stages.append)  # type: ignore[arg-type]
    return SUBCOMMANDS[name].action()(context, SUBCOMMANDS[name].parse(rest))


def test_fit_load_loaded_unload(session: Session) -> None:
    assert repr(say(session, "loaded")) == "No model is loaded."
    report = say(session, "fit smollm2 -c 1024 -ctk q8_0 -ctv q8_0")
    assert isinstance(report, FitReport)
    assert (report.n_ctx, report.options.cache_type_k) == (1024, "q8_0")
    assert say(session, "fit smollm2 -c 0").n_ctx == report.n_ctx_train == 8192
    assert "smollm2 fits" in repr(report)
    assert "fits" in report._repr_html_()
    assert "loaded in" in say(session, "load smollm2 -c 1024")
    assert "was loaded already" in say(session, "load")
    shown = say(session, "loaded")
    assert re.search(r"\*\s+SmolLM2-135M-Instruct\.Q4_1\s+Q4_1\s+1,024", repr(shown))
    assert "SmolLM2-135M-Instruct.Q4_1" in shown._repr_html_()
    assert say(session, "fit -c 512").reclaimable > 100 << 20
    freed = re.search(r"the worker gave ([\d.]+) MiB back", say(session, "unload"))
    assert freed is not None
    assert float(freed[1]) > 10
    assert say(session, "unload") == "No model was loaded."


def test_names_are_only_text() -> None:
    name = "<img src=x onerror=alert(1)>\x1b[31m\u202e"
    device = DeviceFit("CPU", "main memory", 10, 10, 10, 10, 20, 20)
    report = FitReport(
        name, "m", "F16", 8, 16.0, 512, 512, LoadOptions(), (device,), 1, 3, None, 1e9, 10, 1.0, 10.0, 5.0, 0, (), None,
        0,
    )  # fmt: skip
    page = report._repr_html_()
    assert "<img" not in page
    assert "\x1b" not in page + repr(report)
    assert "\u202e" not in page + repr(report)
    assert "does not fit" in page
    assert "take a smaller model" in page
