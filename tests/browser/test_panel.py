"""The panel in a real JupyterLab: the story a person would follow, and what a script may do to it."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from llama_magic.backends.built import BuildResult
from tests.browser.conftest import OpenNotebook
from tests.browser.jupyter import NotebookPage
from tests.browser.looks import dead_controls
from tests.conftest import REPOSITORY
from tests.waiting import wait_until

ASSETS = REPOSITORY / "src" / "llama_magic" / "notebook" / "panel" / "assets"
CELLS = ["%load_ext llama_magic", "%llama panel", "1 + 1"]


@pytest.fixture
def panel(open_notebook: OpenNotebook, smollm2_path: Path) -> Iterator[NotebookPage]:
    assert smollm2_path.exists()
    notebook = open_notebook(CELLS)
    notebook.run(0)
    notebook.run(1)
    notebook.page.locator(".llama-panel").wait_for()
    yield notebook
    assert notebook.errors == []
    assert [line for line in notebook.console if "llama" in line.lower()] == []


def tab(page: Page, name: str) -> Locator:
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel", name=name)


def ask(page: Page, text: str, tokens: int) -> None:
    body = tab(page, "Chat")
    length = body.get_by_label("Most tokens")
    if not length.is_visible():
        body.get_by_text("System prompt, length").click()
    for field, value in ((length, str(tokens)), (body.get_by_label("Seed", exact=True), "3")):
        field.fill(value)
        field.press("Tab")
    question = body.get_by_label("Question", exact=True)
    question.fill(text)
    question.press("Enter")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_story(panel: NotebookPage, tmp_path: Path, modules: BuildResult) -> None:
    """What a person would do from the first click to the last, asserted by what is to be seen."""
    assert modules.modules
    page = panel.page
    load(page)
    chat_and_stop(page)
    retry_edit_branch_undo(page)
    theatre(page)
    cells(panel)
    quantize(page, tmp_path)
    compare(page, tmp_path)
    serve(page)
    switch_backend(page)
    lines_that_the_magics_take(page)
    close(panel)


def load(page: Page) -> None:
    body = page.get_by_role("tabpanel", name="Model")
    expect(body.get_by_text("smollm2 fits")).to_be_visible(timeout=60_000)
    search = body.get_by_label("Search models")
    search.fill("smolm2")
    expect(body.locator(".lm-group").first).to_have_text("Did you mean")
    expect(body.locator(".lm-item").first).to_contain_text("smollm2")
    search.fill("no such model")
    expect(body.get_by_text("Nothing here has that name.")).to_be_visible()
    search.fill("")
    body.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator(".lm-chip")).to_contain_text("SmolLM2-135M", timeout=60_000)
    expect(body.locator(".lm-resident")).to_contain_text("current", timeout=30_000)


def chat_and_stop(page: Page) -> None:
    ask(page, "Say hello.", 12)
    expect(page.locator(".lm-turn").first.locator(".lm-foot")).to_contain_text("tok/s", timeout=60_000)
    ask(page, "Write a very long story about a llama, in many chapters.", -1)
    stop = page.locator(".lm-composer").get_by_role("button", name="Stop")
    expect(page.locator(".lm-turn.live .lm-answer p").first).to_be_visible(timeout=60_000)
    stop.click()
    expect(stop).to_be_hidden(timeout=5_000)
    expect(page.locator(".lm-turn.last .lm-foot")).to_contain_text("interrupted")


def retry_edit_branch_undo(page: Page) -> None:
    turns = page.locator(".lm-turn:not(.live)")
    talks = page.get_by_role("combobox", name="Conversation or branch")
    ask(page, "Name an animal.", 12)
    expect(turns).to_have_count(3, timeout=60_000)
    last = page.locator(".lm-turn.last")
    expect(last.locator(".lm-bubble")).to_have_text("Name an animal.")
    said = last.locator(".lm-answer").inner_text()
    # again, with another seed than the one that is set
    last.get_by_role("button", name="Answer again with another seed").click()
    expect(last.locator(".lm-answer")).not_to_have_text(said, timeout=60_000)
    expect(last.locator(".lm-foot")).to_contain_text("tok/s", timeout=60_000)
    expect(turns).to_have_count(3)
    expect(talks).to_contain_text("chat/branch-1 · 3 turns")
    # a question is edited: what followed is a branch
    turns.nth(1).get_by_role("button", name="Edit the question").click()
    question = page.get_by_label("Question", exact=True)
    expect(question).to_have_value("Write a very long story about a llama, in many chapters.")
    expect(page.get_by_text("Editing turn 2")).to_be_visible()
    question.fill("Say goodbye.")
    question.press("Enter")
    expect(turns.nth(1).locator(".lm-bubble")).to_have_text("Say goodbye.", timeout=60_000)
    expect(turns).to_have_count(2)
    expect(talks).to_contain_text("chat/branch-2 · 3 turns")
    # back to the first turn: what followed is another branch, and can be gone to
    turns.nth(0).get_by_role("button", name="Go back to here").click()
    expect(turns).to_have_count(1)
    expect(talks).to_contain_text("chat/branch-3 · 2 turns")
    talks.select_option("chat/branch-3")
    expect(turns).to_have_count(2)
    page.locator(".lm-turn.last").get_by_role("button", name="Remove this turn").click()
    expect(turns).to_have_count(1)


def theatre(page: Page) -> None:
    """Candidates fall away."""
    page.locator(".lm-turn.last").get_by_role("button", name="Tokens and their probabilities").click()
    page.locator(".lm-turn.last .lm-tok").nth(1).click()
    expect(page.locator(".lm-candidate").first).to_be_visible(timeout=90_000)
    page.get_by_label("Top-k--top-k").fill("2")
    expect(page.locator(".lm-candidate:not(.gone)")).to_have_count(2)
    expect(page.locator(".lm-funnel li").nth(1)).to_contain_text("2")


def cells(panel: NotebookPage) -> None:
    """A cell sees what the panel set, the panel sees what a cell asks, and a turn goes into the notebook as a cell."""
    page = panel.page
    panel.set_source(2, "%%llama -cnv -n 4\nFrom a cell.")
    panel.run(2)
    expect(page.locator(".lm-turn.last .lm-bubble")).to_have_text("From a cell.")
    page.locator(".lm-turn.last").get_by_role("button", name="Insert below as a %%llama cell").click()
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.content.widgets.length === 4")
    inserted = "() => window.jupyterapp.shell.currentWidget.content.widgets[2].model.sharedModel.source"
    page.wait_for_function(f"() => ({inserted})().includes('From a cell.')")
    assert page.evaluate(inserted).startswith("%%llama -cnv")


def quantize(page: Page, folder: Path) -> None:
    body = tab(page, "Quantize")
    body.get_by_role("radio", name="Q4_0").click()
    expect(body.locator(".lm-figures")).to_contain_text("bits per weight", timeout=30_000)
    body.get_by_label("quantize what is quantized already").check()
    body.get_by_label("Write to").fill(str(folder))
    body.get_by_role("button", name="Quantize", exact=True).click()
    expect(body.locator(".lm-resident")).to_contain_text("Q4_0.gguf", timeout=120_000)
    planned = body.locator(".lm-figure b").first.inner_text()
    made = next(folder.glob("*Q4_0.gguf"))
    assert planned == f"{made.stat().st_size / 2**20:.1f} MiB"


def compare(page: Page, folder: Path) -> None:
    """Q4_0 and Q8_0 on a text of one's own: the race, the table, the chart. A text that is not there is told."""
    text = folder / "mine.txt"
    body = tab(page, "Compare")
    body.get_by_role("button", name="Q4_K_M").click()
    expect(body.locator('[aria-pressed="true"]')).to_have_text(["Q8_0", "Q4_0"])
    for label, value in (("Chunks of text", "2"), ("Timed runs", "0"), ("Tokens", "24")):
        body.get_by_label(label, exact=True).fill(value)
    body.get_by_label("Text that all read").fill(str(text))
    expect(body.locator(".lm-line-code").first).to_contain_text(f"--chunks 2 --text {text} --runs 0")
    body.get_by_role("button", name="Compare", exact=True).click()
    expect(body.locator(".lm-card").first).to_contain_text(f"there is no text file '{text}'", timeout=60_000)
    text.write_text("The tide came in over the sand and took the castle with it, tower after tower. " * 80)
    body.get_by_role("button", name="Compare", exact=True).click()
    expect(body.locator(".lm-live")).to_contain_text(re.compile(r"[\d.]+ tok/s · \d+ tokens"), timeout=180_000)
    result = body.locator(".lm-result")
    expect(result).to_contain_text("2 levels against F16", timeout=180_000)
    expect(result).to_contain_text("mine.txt")
    heads = result.locator("table").first.locator("tbody th")
    expect(heads).to_have_text([re.compile("F16"), re.compile("Q8_0"), re.compile("Q4_0")])
    expect(result.locator("svg").first).to_contain_text("mean KL divergence")
    expect(body.locator(".lm-live")).to_have_text("")


def serve(page: Page) -> None:
    """Another program asks, and is seen; the key is shown where it is asked for, and nowhere else."""
    body = tab(page, "Serve")
    body.get_by_label("Port").fill("0")
    body.get_by_label("ask for an API key").check()
    expect(body.locator(".lm-line-code")).to_have_text("%llama serve smollm2 --port 0 --api-key auto")
    body.get_by_role("button", name="Serve the model").click()
    url = body.locator(".lm-address").inner_text(timeout=60_000)
    secret = body.locator(".lm-secret")
    expect(secret).to_have_text(re.compile(r"sk-….{4}"))
    body.get_by_role("button", name="Show").click()
    expect(secret).to_have_text(re.compile(r"sk-[\w-]{43}"))
    key = secret.inner_text()
    body.get_by_role("button", name="Hide").click()
    expect(secret).to_have_text(f"sk-…{key[-4:]}")
    asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        assert client.post("/chat/completions", json=asked).status_code == 401
        done = client.post("/chat/completions", json=asked, headers={"Authorization": f"Bearer {key}"})
        assert done.json()["usage"]["completion_tokens"] == 4
        rows = body.locator(".lm-requests tbody tr")
        expect(rows).to_have_count(2)
        expect(rows.nth(0)).to_contain_text(re.compile(r"/v1/chat/completions✓ 200\d+4[\d.]+"))
        expect(rows.nth(1)).to_contain_text("401 refused")
        assert key not in page.content()
        assert key not in json.dumps(
            page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.toJSON()")
        )
        expect(body.locator(".lm-line-code")).to_have_text(re.compile(r"%llama stop \d+"))
        body.get_by_role("button", name="Stop serving").click()
        expect(body.locator(".lm-server")).to_have_count(0)
        with pytest.raises(httpx.ConnectError):
            client.get("/models")


def switch_backend(page: Page) -> None:
    """BLAS is used, answers, and is switched off again; the model is loaded anew each time."""
    body = tab(page, "Hardware")
    blas = body.locator(".lm-backend").filter(has_text="BLAS").first
    expect(blas).to_contain_text("ready", timeout=60_000)
    expect(body.locator(".lm-meter").first).to_contain_text("%")
    blas.get_by_role("button", name="Use BLAS").click()
    expect(blas).to_contain_text("✓ in use", timeout=60_000)
    expect(blas.locator(".lm-device-row")).to_contain_text("BLAS")
    expect(page.locator(".lm-chip")).to_contain_text("SmolLM2-135M")
    turns = page.locator(".lm-turn:not(.live)")
    before = turns.count()
    ask(page, "Say hello once more, on other hardware.", 6)
    expect(turns).to_have_count(before + 1, timeout=60_000)
    expect(page.locator(".lm-turn.last .lm-foot")).to_contain_text("tok/s")
    tab(page, "Hardware")
    blas.get_by_role("button", name="Switch off BLAS").click()
    expect(blas).to_contain_text("ready", timeout=60_000)
    expect(blas.get_by_role("button", name="Use BLAS")).to_have_attribute("aria-disabled", "false")


def lines_that_the_magics_take(page: Page) -> None:
    """What the controls show as their line, the magics read."""
    from llama_magic.notebook.subcommands import SUBCOMMANDS

    read = 0
    for line in page.locator(".lm-line-code").all_text_contents():
        if line.startswith("%llama "):
            name, _, rest = line.removeprefix("%llama ").partition(" ")
            if name in SUBCOMMANDS:
                SUBCOMMANDS[name].parse(rest)
                read += 1
    assert read >= 6


def close(panel: NotebookPage) -> None:
    """The panel is closed while a comparison runs: its worker goes, the session's model stays."""
    page = panel.page
    cell = "import os\nfrom llama_magic.api.workers import keep_spare\nkeep_spare(False)\nprint(os.getpid())"
    panel.set_source(3, cell)
    kernel = psutil.Process(int(panel.run(3)))
    kept = [process.pid for process in workers_of(kernel)]
    assert len(kept) == 1, "the session's own"
    body = tab(page, "Compare")
    body.get_by_label("Chunks of text").fill("20")
    body.get_by_role("button", name="Compare", exact=True).click()
    wait_until(lambda: len(workers_of(kernel)) == 2, 60)
    page.get_by_role("button", name="Close this panel").click()
    expect(page.locator(".llama-panel")).to_have_count(0)
    saved = page.locator(".llama-panel-page")
    expect(saved).to_be_visible()
    expect(saved).to_contain_text("Run the cell to open it again.")
    wait_until(lambda: [process.pid for process in workers_of(kernel)] == kept, 10)
    panel.set_source(3, "from llama_magic.api.session import current_session\nprint(current_session().loaded())")
    assert "SmolLM2" in panel.run(3)


@pytest.mark.timeout(300)
def test_two_panels_and_a_restart(panel: NotebookPage) -> None:
    page = panel.page
    # two panels stay in step
    panel.set_source(2, "%llama panel chat")
    panel.run(2)
    expect(page.locator(".llama-panel")).to_have_count(2)
    expect(page.locator(".llama-panel-page").first).to_be_hidden()
    ask_in = page.locator(".llama-panel").nth(1)
    ask_in.get_by_label("Question", exact=True).fill("Hello there")
    ask_in.get_by_label("Question", exact=True).press("Enter")
    ask_in.get_by_role("button", name="Stop").click()
    tab(page.locator(".llama-panel").nth(0), "Chat")  # type: ignore[arg-type]
    busy = page.locator(".llama-panel").nth(0)
    expect(busy.get_by_role("button", name="Stop", exact=True)).to_be_hidden(timeout=60_000)
    # a restart is said in words
    panel.restart()
    expect(page.get_by_text("The kernel was restarted").first).to_be_visible(timeout=20_000)


@pytest.mark.timeout(180)
def test_a_cell_and_the_panel_take_turns(panel: NotebookPage) -> None:
    """With subshells, that is: older kernels handle a panel's messages when the cell has ended."""
    if version("ipykernel").startswith("6."):
        pytest.skip("ipykernel 6 has no subshells")
    page = panel.page
    panel.set_source(2, "%llama config --ignore-eos")
    panel.run(2)
    # the panel's answer is being written: a cell waits, and says for what
    ask(page, "Count from one to one thousand in words.", -1)
    expect(page.locator(".lm-turn.live .lm-answer > div:not(.lm-thinking) > *").first).to_be_visible(timeout=60_000)
    panel.set_source(2, "%%llama -n 4 --seed 1\nHello")
    panel.start(2)
    panel.wait_for_text(2, "waiting: the panel is answering")
    page.locator(".lm-composer").get_by_role("button", name="Stop").click()
    panel.wait_idle()
    assert "tok/s" in panel.text(2)
    expect(page.locator(".lm-turn.last .lm-foot")).to_contain_text("interrupted")
    # a cell's answer is being written: what is asked in the panel waits, and it is said for what
    panel.set_source(2, "%%llama -n 4000 --ignore-eos\nCount from one to one thousand in words.")
    panel.start(2)
    panel.output(2).locator("p").first.wait_for(timeout=60_000)
    question = page.get_by_label("Question", exact=True)
    question.fill("And from the panel")
    question.press("Enter")
    expect(page.get_by_text("waiting: a cell is answering")).to_be_visible(timeout=20_000)
    # and it can be taken back: it is in the box again
    page.locator(".lm-composer").get_by_role("button", name="Stop").click()
    expect(question).to_have_value("And from the panel", timeout=10_000)
    panel.interrupt()
    panel.wait_idle()
    question.press("Enter")
    expect(page.locator(".lm-turn.live .lm-answer > div:not(.lm-thinking) > *").first).to_be_visible(timeout=60_000)
    page.locator(".lm-composer").get_by_role("button", name="Stop").click()
    expect(page.locator(".lm-turn.last .lm-bubble")).to_have_text("And from the panel", timeout=30_000)


@pytest.mark.timeout(120)
def test_the_stages_are_llama_cpps(page: Page) -> None:
    pytest.importorskip("llama_cpp")
    source = (ASSETS / "sampling.js").read_text(encoding="utf-8")
    page.goto("about:blank")
    script = """async ([source, cases]) => {
        const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
        const { stages } = await import(url);
        return cases.map(([logits, params]) => {
            const { left, after, steps } = stages(Float32Array.from(logits), params, logits.length);
            return [left, after, steps.map((step) => step.left)];
        });
    }"""
    rng = random.Random(5)
    cases: list[tuple[list[float], dict[str, Any]]] = []
    for _ in range(60):
        logits = sorted((rng.gauss(0, rng.choice([1, 3, 6])) for _ in range(rng.choice([5, 60, 400]))), reverse=True)
        params = {
            "temperature": rng.choice([0.0, 0.2, 0.8, 1.0, 1.7]),
            "top_k": rng.choice([0, 1, 5, 40, 1000]),
            "top_p": rng.choice([0.1, 0.5, 0.9, 0.95, 1.0]),
            "min_p": rng.choice([0.0, 0.02, 0.05, 0.3, 1.0]),
        }
        cases.append((logits, params))
    for (logits, params), (left, after, _) in zip(cases, page.evaluate(script, [source, cases]), strict=True):
        expected = by_llama_cpp(logits, params)
        assert left == len(expected), params
        for place, share in enumerate(expected):
            assert after[place] == pytest.approx(share, abs=2e-5), params


def by_llama_cpp(logits: list[float], params: dict[str, Any]) -> list[float]:
    """Probabilities of the candidates that llama.cpp's own samplers leave."""
    import ctypes

    from llama_magic.native import stages
    from llama_magic.native.library import lib

    data = (lib.llama_token_data * len(logits))(
        *[lib.llama_token_data(id=place, logit=value, p=0.0) for place, value in enumerate(logits)]
    )
    array = lib.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    chain = [stages.top_k(params["top_k"]), stages.top_p(params["top_p"], 0), stages.min_p(params["min_p"], 0)]
    if params["temperature"] > 0:
        chain.append(stages.temperature(params["temperature"], 0.0, 1.0))
    chain.append(stages.dist(1))
    for sampler in chain:
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        lib.llama_sampler_free(sampler)
    found = sorted((array.data[place].p for place in range(array.size)), reverse=True)
    return found if params["temperature"] > 0 else [1.0]


#: Clicks, types and drags at random, on what a person could reach; a model that can not be loaded now and then.
#: Returns how much it did. What would take minutes or take the panel away is left out.
_STORM = """async ([seed, count]) => {
    let state = seed;
    const random = (n) => { state = (state * 1103515245 + 12345) % 2147483648; return Math.floor(state / 65536) % n; };
    const panel = document.querySelector('.llama-panel');
    const words = ['smollm2', 'Hello', '', '0', '-1', '3.5', '<img src=x onerror=alert(1)>', 'no/such.gguf', '🦙'];
    const fire = (node, kind) => node.dispatchEvent(new Event(kind, { bubbles: true }));
    const enter = (node) => node.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true, cancelable: true }));
    const left = /Insert below|^Build|Close this panel|Serve the model/;
    window.testSaid = window.testSaid ?? new Set();
    const watch = new MutationObserver(() => {
        for (const node of panel.querySelectorAll('.lm-error')) window.testSaid.add(node.textContent);
    });
    watch.observe(panel, { childList: true, subtree: true });
    let done = 0;
    for (let step = 0; step < count; step += 1) {
        if (step % 60 === 20) {
            panel.querySelector('[role=tab][data-section=model]').click();
            const search = panel.querySelector('input[type=search]');
            search.value = step % 120 === 20 ? 'no/such.gguf' : './broken.gguf';
            fire(search, 'input');
            enter(search);
            [...panel.querySelectorAll('.lm-model .lm-button')].find((node) => /^Load/.test(node.textContent)).click();
        }
        const all = [...panel.querySelectorAll('button, input, select, textarea, summary, [role=option], [role=tab]')]
            .filter((node) => node.offsetParent !== null && !left.test(node.getAttribute('aria-label') ?? ''));
        const node = all[random(all.length)];
        if (!node) continue;
        if (node.matches('textarea, input[type=search], input:not([type]), input[type=number]')) {
            node.focus();
            node.value = words[random(words.length)];
            fire(node, 'input');
            fire(node, 'change');
            enter(node);
        } else if (node.type === 'range') {
            node.value = random(100) * (Number(node.max) || 100) / 100;
            fire(node, 'input');
            fire(node, 'change');
        } else if (node.tagName === 'SELECT') {
            node.selectedIndex = random(Math.max(node.options.length, 1));
            fire(node, 'change');
        } else node.click();
        done += 1;
        await new Promise((next) => setTimeout(next, 8 + random(40)));
    }
    watch.disconnect();
    return done;
}"""


def workers_of(kernel: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in kernel.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "llama_magic.worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_five_hundred_random_clicks(panel: NotebookPage) -> None:
    page = panel.page
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    panel.set_source(2, "import os; print(os.getpid())")
    kernel = psutil.Process(int(panel.run(2)))
    (panel.lab.root / "broken.gguf").write_bytes(b"GGUF" + bytes(200))
    done = page.evaluate(_STORM, [7, 300])
    # a worker killed under it
    for child in workers_of(kernel):
        child.kill()
    done += page.evaluate(_STORM, [11, 200])
    assert done >= 495
    assert page.locator(".lm-banner.warn").count() == 0, page.locator(".lm-banner.warn").all_inner_texts()
    said = page.evaluate("() => [...window.testSaid]")
    assert [text for text in said if "bug in llama_magic" in text] == []
    assert any("no/such.gguf" in text for text in said), "loads failed, and it was said why"
    assert any("broken.gguf" in text for text in said)
    assert dead_controls(page, ".llama-panel") == []
    # it still answers, and nothing but the session's worker is left, beside the spare one for the next job
    panel.set_source(2, "from llama_magic.api.workers import keep_spare\n"
                        "from llama_magic.notebook.panel.workbench import workbench\nb = workbench()\n"
                        "[b.runner.stop(lane) for lane in list(b.runner.jobs)]\n"
                        "while any(j.active for j in list(b.runner.jobs.values())): pass\n"
                        "keep_spare(False)\nprint('calm')")  # fmt: skip
    assert "calm" in panel.run(2)
    assert len(workers_of(kernel)) <= 1
    outputs = json.dumps([panel.outputs(number) for number in range(3)])
    assert "Traceback" not in outputs


def test_what_cells_loaded_is_in_the_head(open_notebook: OpenNotebook, smollm2_path: Path) -> None:
    """A cell loads the default model without making it the current one, before the panel is opened and after."""
    assert smollm2_path.exists()
    cell = "%%llama -n 2\nHi"
    notebook = open_notebook(["%load_ext llama_magic", cell, "%llama panel", "%llama unload", cell])
    for number in range(3):
        notebook.run(number)
    head = notebook.page.locator(".lm-head").get_by_role("status")
    expect(head).to_contain_text("SmolLM2-135M-Instruct")
    notebook.run(3)
    expect(head).to_contain_text("no model loaded")
    notebook.run(4)
    expect(head).to_contain_text("SmolLM2-135M-Instruct")
