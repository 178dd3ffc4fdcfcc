"""A real JupyterLab in a real Chromium.

``open_notebook(["1 + 1"])`` or ``open_notebook(Path("notebooks/x.ipynb"))`` gives a `NotebookPage`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.jupyter import CHROMIUM_FLAGS, Lab, NotebookPage, new_notebook, start_lab
from tests.conftest import skip_or_fail

OpenNotebook: TypeAlias = Callable[[Sequence[str] | Path], NotebookPage]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The Chromium that the system has."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        skip_or_fail(f"no Chromium on PATH (looked for {', '.join(names)})")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """JupyterLab with a configuration of its own, serving an empty folder."""
    # not below pytest's own folder: its long path would be too long for the sockets that kernels make
    with tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True) as folder:
        server = start_lab(Path(folder))
        yield server
        server.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """An empty page in a context of its own."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def open_notebook(page: Page, lab: Lab, request: pytest.FixtureRequest) -> Iterator[OpenNotebook]:
    """Open a notebook made of the given cells, or a copy of a notebook file."""
    opened: list[NotebookPage] = []

    def open_it(content: Sequence[str] | Path) -> NotebookPage:
        name = f"{request.node.name.translate(_PLAIN)}-{len(opened)}.ipynb"
        if isinstance(content, Path):
            (lab.root / name).write_bytes(content.read_bytes())
        else:
            (lab.root / name).write_text(json.dumps(new_notebook(content)), encoding="utf-8")
        opened.append(NotebookPage(page, lab, name))
        return opened[-1].open()

    yield open_it
    for notebook in opened[-1:]:
        if os.environ.get("SHOTS"):
            notebook.screenshot(Path(notebook.name).stem)
        notebook.close()


_PLAIN = {ord(c): "-" for c in "[]/\\ :?#&%"}
