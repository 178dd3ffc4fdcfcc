"""The first notebook, run by a person: JupyterLab, Chromium, the embedded model."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser.conftest import OpenNotebook
from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "notebooks" / "01_first_prompt.ipynb"

# Counts how many different texts a cell's output shows on its way.
_WATCH = """(n) => {
    const area = window.jupyterapp.shell.currentWidget.content.widgets[n].node;
    window.seen = new Set();
    new MutationObserver(() => {
        window.seen.add([...area.querySelectorAll('.jp-OutputArea-output')].map((node) => node.innerText).join('|'));
    }).observe(area, { childList: true, subtree: true, characterData: true });
}"""


@pytest.mark.slow
def test_an_answer_streams(open_notebook: OpenNotebook, smollm2_path: Path) -> None:
    assert smollm2_path.exists()
    notebook = open_notebook(
        [
            "%load_ext llama_magic",
            "%%llama --temp 0 -n 64 --ignore-eos --out answer\nTell a story.",
            "print(answer.text)",
        ]
    )
    notebook.run(0)
    notebook.page.evaluate(_WATCH, 1)
    shown = notebook.run(1)
    seen = notebook.page.evaluate("() => [...window.seen]")
    assert len(seen) >= 4, "the answer came at once"
    lengths = [len(text) for text in seen if text]
    assert lengths[0] < lengths[-1] / 2
    assert "tok/s" in shown
    assert " ".join(notebook.run(2).split()[:5]) in " ".join(shown.split())
    assert [output["output_type"] for output in notebook.outputs(1)] == ["display_data"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_from_top_to_bottom(open_notebook: OpenNotebook, smollm2_path: Path) -> None:
    assert smollm2_path.exists()
    notebook = open_notebook(NOTEBOOK)
    notebook.command("notebook:clear-all-cell-outputs")
    notebook.run_all(timeout=500)
    saved = notebook.save()
    for number, cell in enumerate(saved["cells"]):
        if cell["cell_type"] != "code":
            continue
        assert cell["execution_count"] is not None
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"], cell["source"]
        if "".join(cell["source"]).startswith("%%llama"):
            assert "tok/s" in notebook.text(number)
            assert "llama_magic" in cell["outputs"][-1]["metadata"]
    hosts = {urlsplit(url).hostname for url in notebook.requests if url.startswith("http")}
    assert hosts == {"127.0.0.1"}
    notebook.select(6)
    notebook.screenshot("first-prompt")
