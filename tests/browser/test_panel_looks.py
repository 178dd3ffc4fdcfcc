"""The panel for everybody: contrast, names, keys, narrow windows, and controls that say why they can not be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenNotebook
from tests.browser.jupyter import NotebookPage
from tests.browser.looks import dead_controls, low_contrast, nameless, open_folds, tab_order, too_wide
from tests.tiny import tiny_llama

SECTIONS = ("Model", "Chat", "Quantize", "Hardware", "Compare", "Serve")
PANEL = ".llama-panel"


@pytest.fixture
def panel(open_notebook: OpenNotebook, smollm2_path: Path) -> Iterator[NotebookPage]:
    assert smollm2_path.exists()
    notebook = open_notebook(["%load_ext llama_magic\n%llama config --ignore-eos", "%llama panel"])
    tiny_llama(notebook.lab.root / "tiny-F32.gguf", still_query=False)
    notebook.run(0)
    notebook.run(1)
    notebook.page.locator(PANEL).wait_for()
    yield notebook
    assert notebook.errors == []


def tab(page: Page, name: str) -> Locator:
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel", name=name)


def alive(page: Page) -> None:
    """No control is dead in any section, as things are now."""
    for name in SECTIONS:
        tab(page, name)
        assert dead_controls(page, PANEL) == [], name


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_section_in_light_dark_and_narrow(panel: NotebookPage) -> None:
    page = panel.page
    fill_all(page)
    for theme in ("light", "dark"):
        panel.set_theme(theme)
        for name in SECTIONS:
            tab(page, name)
            page.mouse.move(2, 2)
            open_folds(page, PANEL)
            assert low_contrast(page, PANEL) == [], f"{name}, {theme}"
            if theme == "light":
                assert nameless(page, PANEL) == [], name
                assert tab_order(page, PANEL) == [], name
            panel.screenshot(f"panel-{name}-{theme}", cell=1)
    page.set_viewport_size({"width": 480, "height": 1000})
    for name in SECTIONS:
        tab(page, name)
        assert too_wide(page, PANEL) == [], name
        panel.screenshot(f"panel-{name}-narrow", cell=1)
    alive(page)


def fill_all(page: Page) -> None:
    """Let there be something in every section, and look for dead controls while things happen."""
    body = page.get_by_role("tabpanel", name="Model")
    expect(body.get_by_text("smollm2 fits")).to_be_visible(timeout=60_000)
    alive(page)
    body = tab(page, "Model")
    fold = body.locator("details", has_text="more about it")
    fold.locator("summary").click()
    body.get_by_role("button", name="Load", exact=True).click()
    alive(page)
    expect(page.locator(".lm-chip")).to_contain_text("SmolLM2", timeout=60_000)
    # what was opened stays open when work begins and ends
    tab(page, "Model")
    expect(fold).to_have_attribute("open", "")
    body = tab(page, "Chat")
    body.get_by_text("System prompt, length").click()
    body.get_by_label("Most tokens").fill("-1")
    body.get_by_label("Most tokens").press("Tab")
    question = body.get_by_label("Question", exact=True)
    question.fill("Write a long story in Python code, with the numbers 1 to 1000 and a comment in each line.")
    question.press("Enter")
    expect(page.locator(".lm-turn.live .lm-answer > div:not(.lm-thinking) > *").first).to_be_visible(timeout=60_000)
    alive(page)
    tab(page, "Chat")
    body.locator(".lm-composer").get_by_role("button", name="Stop").click()
    last = page.locator(".lm-turn.last")
    expect(last.locator(".lm-foot")).to_contain_text("interrupted", timeout=30_000)
    last.get_by_role("button", name="Tokens and their probabilities").click()
    last.locator(".lm-tok").nth(3).click()
    expect(page.locator(".lm-candidate").first).to_be_visible(timeout=60_000)
    scrub(page)
    body = tab(page, "Serve")
    body.get_by_label("Port").fill("0")
    body.get_by_role("button", name="Serve the model").click()
    alive(page)
    tab(page, "Serve")
    expect(body.locator(".lm-server")).to_be_visible(timeout=60_000)


def scrub(page: Page) -> None:
    """A comparison of tiny models, and a look at its tokens: the slider goes from disagreement to disagreement."""
    body = tab(page, "Compare")
    for label, value in (("Model", "tiny-F32.gguf"), ("Chunks of text", "1"), ("Tokens", "24")):
        body.get_by_label(label, exact=True).fill(value)
    body.get_by_role("button", name="Compare", exact=True).click()
    alive(page)
    tab(page, "Compare")
    expect(body.locator(".lm-result table").first).to_be_visible(timeout=60_000)
    body.get_by_role("button", name="Look token by token").click()
    slider = body.get_by_label("Token", exact=True)
    expect(slider).to_be_visible(timeout=60_000)
    body.get_by_label("Level to look at").select_option("Q4_0")
    apart = body.locator(".lm-said .apart")
    places = body.locator(".lm-said span").evaluate_all(
        "(all) => all.map((node, at) => node.className.includes('apart') ? at + 1 : 0)"
    )
    places = [place for place in places if place]
    assert len(places) > 1
    expect(slider).to_have_value(str(places[0]))
    following = body.get_by_role("button", name="Next disagreement")
    for number, place in enumerate(places[1:], 1):
        following.click()
        expect(slider).to_have_value(str(place))
        expect(apart.nth(number)).to_have_class("apart at")
    expect(following).to_have_attribute("aria-disabled", "true")
    tops = body.locator(".lm-duel .lm-candidates")
    expect(tops).to_have_count(2)
    assert tops.nth(0).locator("li").first.inner_text() != tops.nth(1).locator("li").first.inner_text()
    slider.focus()
    slider.press("Home")
    expect(body.locator(".lm-said span").first).to_have_class("apart at" if places[0] == 1 else "at")
    expect(body.get_by_role("button", name="Disagreement before")).to_have_attribute("aria-disabled", "true")


@pytest.mark.timeout(120)
def test_the_keyboard_alone(panel: NotebookPage) -> None:
    """Load, change the section, ask, stop, without a mouse."""
    page = panel.page
    expect(page.get_by_text("smollm2 fits")).to_be_visible(timeout=60_000)
    keys = page.keyboard
    # from the notebook into the panel, as JupyterLab lets one: the tabs come after the head
    page.get_by_role("tab", name="Model").focus()

    def go_to(name: str, key: str = "Tab") -> None:
        for _ in range(60):
            keys.press(key)
            at = page.evaluate(
                "() => document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
            )
            if at.strip() == name:
                return
        pytest.fail(f"no way to {name}")

    go_to("Load")
    keys.press("Enter")
    expect(page.locator(".lm-chip")).to_contain_text("SmolLM2", timeout=60_000)
    go_to("Model", "Shift+Tab")
    keys.press("ArrowRight")
    expect(page.get_by_role("tab", name="Chat")).to_be_focused()
    go_to("Question")
    keys.type("Count from one to one thousand, in words.")
    keys.press("Enter")
    expect(page.locator(".lm-turn.live .lm-answer > div:not(.lm-thinking) > *").first).to_be_visible(timeout=60_000)
    go_to("Stop")
    keys.press("Space")
    expect(page.locator(".lm-turn.last .lm-foot")).to_contain_text("interrupted", timeout=10_000)
    # where Stop was, the focus is still in the panel
    assert page.evaluate("() => document.querySelector('.llama-panel').contains(document.activeElement)")
    go_to("Chat", "Shift+Tab")
    keys.press("End")
    expect(page.get_by_role("tabpanel", name=SECTIONS[-1])).to_be_visible()
