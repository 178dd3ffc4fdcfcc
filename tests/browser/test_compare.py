"""A comparison in JupyterLab: the race, the table, and what is left."""

from __future__ import annotations

import pytest

from tests.browser.conftest import OpenNotebook
from tests.tiny import tiny_llama

pytestmark = pytest.mark.browser

LINE = (
    "%llama compare tiny-F32.gguf Q8_0 Q4_0 -p 'the quick brown fox' --complete -n 400 -t 1 "
    "--text text.txt -c 64 --chunks 4 --runs 1 --n-prompt 16 --n-gen 4"
)
#: What JupyterLab draws wider than the notebook.
TOO_WIDE = """() => {
    const area = document.querySelector('.jp-NotebookPanel .jp-Cell:nth-of-type(2) .jp-OutputArea-output');
    return area.scrollWidth - area.clientWidth;
}"""


def test_the_race_and_what_is_left(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook(["%load_ext llama_magic", LINE])
    tiny_llama(notebook.lab.root / "tiny-F32.gguf", still_query=False)
    (notebook.lab.root / "text.txt").write_text("a lazy dog sleeps under the brown bridge " * 12)
    notebook.run(0)
    notebook.start(1)
    notebook.wait_for_text(1, "tok/s · ")
    notebook.screenshot("compare-race")
    notebook.wait_idle()
    assert "2 levels against F32" in notebook.text(1)
    outputs = notebook.outputs(1)
    assert len(outputs) == 1
    assert outputs[0]["output_type"] == "display_data"
    assert "llama_magic" in outputs[0]["metadata"]
    for theme in ("light", "dark"):
        notebook.set_theme(theme)
        notebook.screenshot(f"compare-{theme}", cell=1)
    notebook.page.set_viewport_size({"width": 480, "height": 900})
    assert notebook.page.evaluate(TOO_WIDE) <= 1, "what is too wide scrolls inside of itself"
    notebook.screenshot("compare-narrow")
    assert not notebook.errors
