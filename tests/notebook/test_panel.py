"""`%llama panel` in a real IPython shell: what is displayed, and what it has in common with the magics."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from llama_magic.api.session import current_session, set_session
from llama_magic.engine.client import get_client, set_client
from tests.fakes import FakeClient
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def one_shell() -> Iterator[Any]:
    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(one_shell: Any, fresh_home: object) -> Iterator[Any]:
    before, fake = get_client(), FakeClient()
    set_client(fake)
    set_session(None)
    one_shell.run_line_magic("load_ext", "llama_magic.notebook")
    yield one_shell
    one_shell.run_line_magic("unload_ext", "llama_magic.notebook")
    set_client(before)
    set_session(None)


def run(shell: InteractiveShell, line: str) -> Any:
    with capture_output() as said:
        shell.run_line_magic("llama", line)
    return said


def test_it_shows_a_view_and_a_page_for_saving(shell: InteractiveShell) -> None:
    said = run(shell, "panel chat --out panel")
    page, view = (output.data for output in said.outputs)
    assert "none is loaded" in page["text/html"]
    assert view["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert "anywidget" in view["text/html"]
    panel = shell.user_ns["panel"]
    assert panel.widget.state["open"] == "chat"
    panel.close()
    panel.close()


def test_what_a_magic_changes_the_panel_shows_and_the_other_way_round(shell: InteractiveShell) -> None:
    run(shell, "panel --out panel")
    panel = shell.user_ns["panel"]
    bench = panel._bench
    run(shell, "config --temp 0.125 -sys Short.")
    wait_until(lambda: bench.state["chat"]["sampling"]["temperature"] == 0.125)
    assert bench.state["chat"]["system_default"] == "Short."
    bench.receive(panel._id, {"do": "chat.sampling", "with": {"top_k": 3}})
    wait_until(lambda: current_session().sampling.top_k == 3)
    assert "top_k          = 3" in run(shell, "config").stdout.replace("  =", "  =")
    with capture_output():
        shell.run_cell_magic("llama", "-cnv", "hello")
    wait_until(lambda: [turn["user"] for turn in bench.state["chat"].get("turns", [])] == ["hello"])
    panel.close()


def test_a_cell_that_runs_again_takes_its_panels_place(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cell(name: str, message: str) -> Any:
        parent = {"metadata": {"cellId": name}, "header": {"msg_id": message}}
        monkeypatch.setattr(shell, "get_parent", lambda: parent, raising=False)
        run(shell, "panel --out panel")
        return shell.user_ns["panel"]

    first, elsewhere = cell("a", "1"), cell("b", "2")
    bench = first._bench
    assert {first._id, elsewhere._id} <= set(bench._sinks)
    second = cell("a", "3")
    wait_until(lambda: first._id not in bench._sinks)
    assert {second._id, elsewhere._id} <= set(bench._sinks)
    bench.receive(second._id, {"do": "app.hello"})
    second.widget._receive(None, {"do": "app.close", "ack": 1}, [])  # the cross of the view
    wait_until(lambda: second._id not in bench._sinks)
    elsewhere.close()


def test_plain_widgets(shell: InteractiveShell) -> None:
    run(shell, "panel --plain --out panel")
    panel = shell.user_ns["panel"]
    view = panel.widget
    view.ask.value = "hello"
    view.send.click()
    wait_until(lambda: "hello" in view.turns.value)
    assert "ok" in view.turns.value
    wait_until(lambda: not view.send.disabled and view.stop.disabled)
    wait_until(lambda: "Q4_K_M" in view.ftype.options)
    panel.close()


def test_an_unknown_section_names_the_nearest(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    from IPython.core.error import UsageError

    with pytest.raises(UsageError, match="Did you mean chat"):
        shell.run_line_magic("llama", "panel chta")


@pytest.mark.parametrize(("missing", "words"), [("anywidget", "--plain"), ("ipywidgets", "pip install ipywidgets")])
def test_what_is_missing_is_named(missing: str, words: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
import llama_magic as lm
try:
    lm.panel()
except lm.MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert missing in done.stdout, done.stderr
    assert words in done.stdout
