"""The panel in a real JupyterLab: the story a person would follow, and what a script may do to it."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenNotebook
from tests.browser.jupyter import NotebookPage
from tests.conftest import REPOSITORY

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
def test_the_story(panel: NotebookPage, tmp_path: Path) -> None:
    page = panel.page
    # load
    model = page.get_by_role("tabpanel", name="Model")
    expect(model.get_by_text("smollm2 fits")).to_be_visible(timeout=60_000)
    model.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator(".lm-chip")).to_contain_text("SmolLM2-135M", timeout=60_000)
    # chat, with everything a model may say inert
    ask(page, "Say hello.", 12)
    first = page.locator(".lm-turn").first
    expect(first.locator(".lm-foot")).to_contain_text("tok/s", timeout=60_000)
    # stop
    ask(page, "Write a very long story about a llama, in many chapters.", -1)
    stop = page.locator(".lm-composer").get_by_role("button", name="Stop")
    expect(page.locator(".lm-turn.live .lm-answer p").first).to_be_visible(timeout=60_000)
    stop.click()
    expect(stop).to_be_hidden(timeout=5_000)
    expect(page.locator(".lm-turn.last .lm-foot")).to_contain_text("interrupted")
    # the theatre: candidates fall away
    page.locator(".lm-turn.last").get_by_role("button", name="Tokens and their probabilities").click()
    page.locator(".lm-turn.last .lm-tok").nth(1).click()
    expect(page.locator(".lm-candidate").first).to_be_visible(timeout=90_000)
    slider = page.get_by_label("Top-k--top-k")
    slider.fill("2")
    expect(page.locator(".lm-candidate:not(.gone)")).to_have_count(2)
    expect(page.locator(".lm-funnel li").nth(1)).to_contain_text("2")
    # a cell sees what the panel set, and the panel sees what a cell asks
    panel.set_source(2, "%%llama -cnv -n 4\nFrom a cell.")
    panel.run(2)
    expect(page.locator(".lm-turn.last .lm-bubble")).to_have_text("From a cell.")
    # as a cell, into the notebook
    page.locator(".lm-turn.last").get_by_role("button", name="Insert below as a %%llama cell").click()
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.content.widgets.length === 4")
    inserted = "() => window.jupyterapp.shell.currentWidget.content.widgets[2].model.sharedModel.source"
    page.wait_for_function(f"() => ({inserted})().includes('From a cell.')")
    assert page.evaluate(inserted).startswith("%%llama -cnv")
    # quantize
    body = tab(page, "Quantize")
    body.get_by_role("radio", name="Q4_0").click()
    expect(body.locator(".lm-figures")).to_contain_text("bits per weight", timeout=30_000)
    body.get_by_label("quantize what is quantized already").check()
    body.get_by_label("Write to").fill(str(tmp_path))
    body.get_by_role("button", name="Quantize", exact=True).click()
    expect(body.locator(".lm-resident")).to_contain_text("Q4_0.gguf", timeout=120_000)
    planned = body.locator(".lm-figure b").first.inner_text()
    made = next(tmp_path.glob("*Q4_0.gguf"))
    assert planned == f"{made.stat().st_size / 2**20:.1f} MiB"
    # hardware, and the end
    body = tab(page, "Hardware")
    expect(body.locator(".lm-backend").first).to_contain_text("CPU", timeout=30_000)
    expect(body.locator(".lm-meter").first).to_contain_text("%")
    body = tab(page, "Model")
    body.get_by_role("button", name="Unload SmolLM2").click()
    expect(page.locator(".lm-chip")).to_contain_text("no model loaded", timeout=30_000)
    # the magic lines are ones that the magics take
    from llama_magic.notebook.subcommands import SUBCOMMANDS

    for line in page.locator(".lm-line-code").all_text_contents():
        if line.startswith("%llama "):
            name, _, rest = line.removeprefix("%llama ").partition(" ")
            if name in SUBCOMMANDS:
                SUBCOMMANDS[name].parse(rest)


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
    expect(busy.get_by_role("button", name="Stop")).to_be_hidden(timeout=60_000)
    # a restart is said in words
    panel.restart()
    expect(page.get_by_text("The kernel was restarted").first).to_be_visible(timeout=20_000)


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


#: Clicks, types and drags at random, on what a person could reach; returns how much it did.
_STORM = """async ([seed, count]) => {
    let state = seed;
    const random = (n) => { state = (state * 1103515245 + 12345) % 2147483648; return state % n; };
    const panel = document.querySelector('.llama-panel');
    const words = ['smollm2', 'Hello', '', '0', '-1', '3.5', '<img src=x onerror=alert(1)>', 'no/such.gguf', '🦙'];
    let done = 0;
    for (let step = 0; step < count; step += 1) {
        const all = [...panel.querySelectorAll('button, input, select, textarea, summary, [role=option], [role=tab]')]
            .filter((node) => node.offsetParent !== null);
        const node = all[random(all.length)];
        if (!node) continue;
        if (node.matches('textarea, input[type=search], input:not([type]), input[type=number]')) {
            node.focus();
            node.value = words[random(words.length)];
            node.dispatchEvent(new Event('input', { bubbles: true }));
            node.dispatchEvent(new Event('change', { bubbles: true }));
            node.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true, cancelable: true }));
        } else if (node.type === 'range') {
            node.value = random(100) * (Number(node.max) || 100) / 100;
            node.dispatchEvent(new Event('input', { bubbles: true }));
            node.dispatchEvent(new Event('change', { bubbles: true }));
        } else if (node.tagName === 'SELECT') {
            node.selectedIndex = random(Math.max(node.options.length, 1));
            node.dispatchEvent(new Event('change', { bubbles: true }));
        } else if (!node.textContent.includes('Insert below')) {
            node.click();
        }
        done += 1;
        await new Promise((next) => setTimeout(next, 25 + random(50)));
    }
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
def test_hundreds_of_random_clicks(panel: NotebookPage) -> None:
    page = panel.page
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    panel.set_source(2, "import os; print(os.getpid())")
    kernel = psutil.Process(int(panel.run(2)))
    assert page.evaluate(_STORM, [7, 200]) >= 150
    # a worker killed under it
    for child in workers_of(kernel):
        child.kill()
    assert page.evaluate(_STORM, [11, 150]) >= 100
    assert page.locator(".lm-banner.warn").count() == 0, page.locator(".lm-banner.warn").all_inner_texts()
    bugs = [text for text in page.locator(".lm-error").all_inner_texts() if "bug in llama_magic" in text]
    assert bugs == []
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
