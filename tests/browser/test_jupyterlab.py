"""The fixtures of this tier, proved with plain Python cells."""

from __future__ import annotations

from tests.browser.conftest import OpenNotebook


def test_run_a_cell(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook(["1 + 1", "# %% [markdown]\n# Title", "print('hello')"])
    assert notebook.run(0) == "2"
    notebook.run_all()
    assert notebook.text(2).strip() == "hello"
    assert notebook.outputs(0)[0]["data"]["text/plain"] == "2"
    assert notebook.save()["cells"][2]["outputs"][0]["text"] == ["hello\n"]


def test_interrupt_restart_and_theme(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook(
        ["x = 1\nprint('started', flush=True)\nimport threading; threading.Event().wait()", "print('x' in dir())"]
    )
    notebook.start(0)
    notebook.wait_for_text(0, "started")
    notebook.interrupt()
    notebook.wait_idle()
    assert "KeyboardInterrupt" in notebook.text(0)
    assert notebook.run(1).strip() == "True"
    notebook.restart()
    assert notebook.run(1).strip() == "False"
    for theme in ("dark", "light"):
        notebook.set_theme(theme)
        assert notebook.screenshot(f"theme-{theme}").stat().st_size > 1000
