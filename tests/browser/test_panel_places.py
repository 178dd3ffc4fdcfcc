"""The panel in other places: a saved notebook, a second view, Notebook 7, and front ends without anywidget."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenNotebook
from tests.browser.jupyter import Lab, NotebookPage, new_notebook, start_lab
from tests.waiting import wait_until

#: An engine that answers from a list, for what needs no model.
FAKE = """from llama_magic.engine.client import set_client
from tests.fakes import FakeClient
set_client(FakeClient([{replies}]))"""
ANSWER = "An *answer* with <img src=x onerror=alert(1)> and <script>alert(2)</script> in it."


def question(page: Page, text: str) -> None:
    box = page.locator(".llama-panel").last.get_by_label("Question", exact=True)
    box.fill(text)
    box.press("Enter")


def test_a_saved_notebook_is_read_without_a_kernel(open_notebook: OpenNotebook, page: Page, tmp_path: Path) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    notebook = open_notebook([FAKE.format(replies=repr(ANSWER)), "%load_ext llama_magic", "%llama panel chat"])
    for number in range(3):
        notebook.run(number)
    question(page, "What is <b>this</b>?")
    expect(page.locator(".lm-turn.last .lm-answer em")).to_have_text("answer")
    wait_until(lambda: "<em>answer</em>" in json.dumps(notebook.outputs(2)[0]))
    saved = notebook.save()
    notebook.close()

    def is_read() -> None:
        shown = page.locator(".llama-panel-page")
        expect(shown).to_be_visible()
        expect(shown).to_contain_text("What is <b>this</b>?")
        expect(shown.locator("em")).to_have_text("answer")
        expect(shown).to_contain_text("<img src=x onerror=alert(1)>")
        expect(shown.locator("img, script")).to_have_count(0)
        expect(shown).to_contain_text("Run the cell to open it again.")
        expect(page.get_by_text(re.compile("Error displaying widget|Loading widget"))).to_be_hidden()

    # as a page of nbconvert
    import nbformat
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter().from_notebook_node(nbformat.reads(json.dumps(saved), as_version=4))
    (tmp_path / "saved.html").write_text(html, encoding="utf-8")
    page.goto((tmp_path / "saved.html").as_uri())
    is_read()
    expect(page.get_by_text("To use the panel, run this cell in JupyterLab 4 or Notebook 7")).to_be_visible()
    # opened again in JupyterLab, nothing was run
    notebook.open()
    is_read()
    assert page.locator(".llama-panel").count() == 0
    notebook.screenshot("panel-saved")


def test_a_second_view_of_the_output(open_notebook: OpenNotebook, page: Page) -> None:
    notebook = open_notebook([FAKE.format(replies="'one', 'two'"), "%load_ext llama_magic", "%llama panel chat"])
    for number in range(3):
        notebook.run(number)
    question(page, "In the notebook")
    expect(page.locator(".lm-turn.last .lm-answer")).to_have_text("one")
    notebook.select(2)
    notebook.command("notebook:create-output-view")
    second = page.locator(".jp-LinkedOutputView .llama-panel")
    expect(second).to_be_visible()
    expect(second.locator(".lm-turn.last .lm-answer")).to_have_text("one")
    expect(page.locator(".jp-LinkedOutputView .llama-panel-page")).to_be_hidden()
    question(page, "Beside it")
    expect(second.locator(".lm-turn.last .lm-answer")).to_have_text("two")
    # both are in step, and one of them can go
    page.locator(
        ".lm-TabBar-tab[title*='Output View'] .lm-TabBar-tabCloseIcon, .lm-TabBar-tab:has-text('Output View') .lm-TabBar-tabCloseIcon"
    ).first.click()
    expect(page.locator(".llama-panel")).to_have_count(1)
    expect(page.locator(".lm-turn.last .lm-answer")).to_have_text("two")
    question(page, "And alone again")
    expect(page.locator(".lm-turn.last .lm-answer")).to_have_text("ok")
    assert notebook.errors == []


@pytest.mark.timeout(180)
def test_a_front_end_without_anywidget(open_notebook: OpenNotebook, page: Page, smollm2_path: Path) -> None:
    """It is said in words, and plain ipywidgets do: load, ask, stop."""
    assert smollm2_path.exists()
    page.route("**/lab/extensions/anywidget/**", lambda route: route.abort())
    notebook = open_notebook(
        ["%load_ext llama_magic\n%llama config --ignore-eos", "%llama panel", "%llama panel --plain"]
    )
    notebook.run(0)
    notebook.run(1)
    expect(page.locator(".llama-panel-missing")).to_be_visible()
    expect(page.locator(".llama-panel-missing")).to_have_css("opacity", "1", timeout=10_000)
    expect(page.locator(".llama-panel-missing")).to_contain_text("%llama panel --plain")
    notebook.run(2)
    plain = notebook.output(2)
    plain.get_by_label("Model").fill("smollm2")
    plain.get_by_role("button", name="Load", exact=True).click()
    expect(plain).to_contain_text("Loaded: SmolLM2", timeout=60_000)
    plain.get_by_role("tab", name="Chat").click()
    plain.get_by_placeholder("Ask something").fill("Count from one to one thousand in words.")
    stop = plain.get_by_role("button", name="Stop")
    expect(stop).to_be_disabled()
    plain.get_by_role("button", name="Send").click()
    expect(stop).to_be_enabled()
    expect(plain.locator(".llama-panel-live p").first).to_be_visible(timeout=60_000)
    expect(plain.locator(".llama-panel-page")).to_be_hidden()
    stop.click()
    expect(stop).to_be_disabled(timeout=10_000)
    expect(plain.locator("b", has_text="Count from one")).to_be_visible()
    notebook.screenshot("panel-plain")


@pytest.fixture(scope="module")
def notebook7() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="nb7-", ignore_cleanup_errors=True) as folder:
        server = start_lab(Path(folder), application="notebook")
        yield server
        server.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_notebook_7(notebook7: Lab, page: Page, smollm2_path: Path) -> None:
    """The whole panel works there as well."""
    assert smollm2_path.exists()
    (notebook7.root / "seven.ipynb").write_text(
        json.dumps(new_notebook(["%load_ext llama_magic\n%llama config --ignore-eos", "%llama panel"]))
    )
    notebook = NotebookPage(page, notebook7, "seven.ipynb").open()
    notebook.errors.clear()  # what Notebook itself stumbles over while it starts
    notebook.run(0)
    notebook.run(1)
    body = page.get_by_role("tabpanel", name="Model")
    expect(body.get_by_text("smollm2 fits")).to_be_visible(timeout=60_000)
    body.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator(".lm-chip")).to_contain_text("SmolLM2", timeout=60_000)
    page.get_by_role("tab", name="Chat").click()
    question(page, "Count from one to one thousand in words.")
    expect(page.locator(".lm-turn.live .lm-answer > div:not(.lm-thinking) > *").first).to_be_visible(timeout=60_000)
    page.locator(".lm-composer").get_by_role("button", name="Stop").click()
    last = page.locator(".lm-turn.last")
    expect(last.locator(".lm-foot")).to_contain_text("interrupted", timeout=10_000)
    last.get_by_role("button", name="Insert below as a %%llama cell").click()
    expect(page.locator(".jp-Notebook .jp-Cell").nth(2)).to_contain_text("%%llama -cnv")
    page.get_by_role("tab", name="Quantize").click()
    expect(page.locator(".lm-figures").first).to_contain_text("bits per weight", timeout=30_000)
    page.get_by_role("tab", name="Hardware").click()
    expect(page.locator(".lm-backend").first).to_contain_text("✓ in use", timeout=30_000)
    page.get_by_role("tab", name="Compare").click()
    expect(page.get_by_role("button", name="Compare", exact=True)).to_be_visible()
    expect(page.locator(".llama-panel-page")).to_be_hidden()
    notebook.screenshot("panel-notebook7")
    page.get_by_role("button", name="Close this panel").click()
    expect(page.locator(".llama-panel-page")).to_contain_text("Count from one to one thousand")
    assert notebook.errors == []
    notebook.close()
