"""How quick the panel is. `benchmarks` judges the same figures exactly; here they have slack for a loaded machine."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenNotebook
from tests.browser.figures import (
    CELLS,
    answer_bytes,
    clicks,
    conversation_scripting,
    open_panel,
    stop_s,
    updates,
    visible_s,
)


@pytest.mark.timeout(180)
def test_it_opens_answers_clicks_and_streams_quickly(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook([*CELLS, "1"])
    open_panel(notebook)
    slow = [(name, seconds) for name, seconds in clicks(notebook.page) if seconds > 3 * 0.15]
    assert slow == []
    assert updates(notebook, 100, 0.02) >= 8 / 2
    assert visible_s(notebook, 4) <= 3 * 1.5


@pytest.mark.timeout(180)
def test_bytes_are_linear_in_the_text(open_notebook: OpenNotebook, page: Page) -> None:
    short, long = answer_bytes(lambda: open_notebook(CELLS), page, (1000, 2000), 0.002)
    assert long <= 2.2 * short


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_long_conversation_stays_smooth(open_notebook: OpenNotebook) -> None:
    """Ten thousand tokens: the last do not cost more scripting than the first."""
    notebook = open_notebook(CELLS)
    open_panel(notebook)
    spent = conversation_scripting(notebook, 10, 1000, 0.0005)
    assert statistics.median(spent[-3:]) <= 2 * statistics.median(spent[:3]), spent


@pytest.mark.timeout(120)
def test_stop_stops(open_notebook: OpenNotebook, smollm2_path: Path) -> None:
    assert smollm2_path.exists()
    notebook = open_notebook(["%load_ext llama_magic\n%llama config --ignore-eos", "%llama panel chat"])
    notebook.run(0)
    notebook.run(1)
    page = notebook.page
    page.locator(".llama-panel .lm-ask").wait_for()
    assert stop_s(page) <= 3 * 0.3
    expect(page.locator(".lm-turn.last .lm-foot")).to_contain_text("interrupted")
