"""The panel in JupyterLab and Chromium, with an engine that answers from a list; Stop is measured with SmolLM2."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.rows import Row, at_least, at_most
from benchmarks.runner import Setup
from tests.browser import figures
from tests.browser.jupyter import CHROMIUM_FLAGS, Lab, NotebookPage, new_notebook, start_lab

__all__ = ["measure"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TOKENS, _TURNS = 1000, 10


def measure(setup: Setup) -> list[Row]:
    """Opening, clicks, updates, bytes, scripting over 10,000 tokens, and Stop."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, _BROWSERS)), None)
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        lab = start_lab(Path(folder))
        try:
            rounds = setup.rounds(5, 1)
            return [*_quick(browser, lab, rounds), *_long(browser, lab), _stop(browser, lab, rounds)]
        finally:
            lab.close()
            browser.close()


@contextmanager
def _page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def _open(page: Page, lab: Lab, name: str, cells: Sequence[str]) -> NotebookPage:
    (lab.root / f"{name}.ipynb").write_text(json.dumps(new_notebook(cells)), encoding="utf-8")
    return NotebookPage(page, lab, f"{name}.ipynb").open()


def _quick(browser: Browser, lab: Lab, rounds: int) -> list[Row]:
    opened, clicked, rates = [], [], []
    slowest = ""
    for number in range(rounds):
        with _page(browser) as page:
            notebook = _open(page, lab, f"quick-{number}", [*figures.CELLS, "1"])
            figures.open_panel(notebook)
            found = figures.clicks(page)
            slowest, most = max(found, key=lambda pair: pair[1])
            clicked.append(most)
            rates.append(figures.updates(notebook, 300, 0.02))
            opened.append(figures.visible_s(notebook, 4))
            notebook.close()
    return [
        at_most("panel: from the cell's start to a panel in the page, warm kernel", 1.5, opened, "s"),
        at_most("panel: from a click to its visible effect, the slowest of five", 0.15, clicked, "s", slowest),
        at_least("panel: updates a second of an answer of 50 tok/s", 8, rates, "/s"),
    ]


def _long(browser: Browser, lab: Lab) -> list[Row]:
    with _page(browser) as page:
        short, long = figures.answer_bytes(
            lambda: _open(page, lab, "bytes", figures.CELLS), page, (_TOKENS, 2 * _TOKENS), 0.005
        )
    with _page(browser) as page:
        notebook = _open(page, lab, "long", figures.CELLS)
        figures.open_panel(notebook)
        spent = figures.conversation_scripting(notebook, _TURNS, _TOKENS, 0.002)
        notebook.close()
    ratio = statistics.median(spent[-3:]) / statistics.median(spent[:3])
    told = f"{statistics.median(spent):.2f} ms of scripting a token; turns of {_TOKENS:,} tokens"
    note = f"{long / (2 * _TOKENS):,.0f} bytes a token, on the page's web sockets"
    return [
        at_most("panel: bytes to the page, 2,000 tokens / 1,000 tokens", 2.2, [long / short], note=note),
        at_most("panel: scripting per token, last / first 3,000 of 10,000 tokens", 1.25, [ratio], note=told),
    ]


def _stop(browser: Browser, lab: Lab, rounds: int) -> Row:
    with _page(browser) as page:
        notebook = _open(page, lab, "stop", ["%load_ext llama_magic\n%llama config --ignore-eos", "%llama panel chat"])
        notebook.run(0)
        notebook.run(1)
        page.locator(".llama-panel .lm-ask").wait_for()
        seconds = [figures.stop_s(page) for _ in range(rounds)]
        notebook.close()
    return at_most("panel: from Stop to the end of an answer of SmolLM2", 0.3, seconds, "s")
