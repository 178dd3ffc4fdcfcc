"""Figures of the panel, measured in the page: the tests and the benchmarks judge them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, WebSocket, expect

from tests.browser.jupyter import NotebookPage

__all__ = [
    "CELLS", "answer_bytes", "clicks", "conversation_scripting", "open_panel", "stop_s", "updates", "visible_s",
]  # fmt: skip

#: An engine that answers what a test puts into `fake.replies`, and a panel.
CELLS = (
    (
        "from llama_magic.engine.client import set_client\nfrom tests.fakes import FakeClient, story\n"
        "fake = FakeClient()\nset_client(fake)"
    ),
    "%load_ext llama_magic",
    "%llama panel chat",
    "1",
)

_VISIBLE = """() => new Promise((done) => {
    const count = () => [...document.querySelectorAll('.llama-panel .lm-body')].filter((node) => node.checkVisibility()).length;
    const before = count();
    const start = performance.now();
    const look = () => (count() > before ? done((performance.now() - start) / 1000) : requestAnimationFrame(look));
    window.jupyterapp.commands.execute('notebook:run-cell');
    look();
})"""
#: Clicks, and waits for the frame in which the effect is in the page.
_CLICK = """([click, effect]) => new Promise((done) => {
    const seen = new Function(`return (${effect})`);
    const act = new Function(`return (${click})`);
    if (seen()) throw new Error(`it is so already: ${effect}`);
    const start = performance.now();
    const look = () => (seen() ? done((performance.now() - start) / 1000) : requestAnimationFrame(look));
    act();
    look();
})"""
_TAB = "document.querySelector('.llama-panel [role=tab][data-section={0}]').click()"
_SHOWN = "document.querySelector('.llama-panel .lm-{0}')?.checkVisibility()"
_BUTTON = "[...document.querySelectorAll('.llama-panel .lm-button')].find((node) => node.textContent === '{0}').click()"

#: What a person clicks where nothing native is involved, and what they then see.
_CLICKS = (
    ("a section is opened", _TAB.format("compare"), _SHOWN.format("compare")),
    ("a level is chosen", "[...document.querySelectorAll('.lm-compare .lm-type')][0].click()",
     "document.querySelector('.lm-compare .lm-line-code').textContent.includes('F16')"),
    ("back to the conversation", _TAB.format("chat"), _SHOWN.format("chat")),
    ("another conversation", _BUTTON.format("New"),
     "document.querySelector('.lm-chat select').value === 'chat-2'"),
    ("a sampler is set", ("(() => { const node = document.querySelector('.lm-chat input[type=range]'); node.value = 1.5; "
     "node.dispatchEvent(new Event('input', { bubbles: true })); })()"),
     "document.querySelector('.lm-chat .lm-side .lm-line-code').textContent.includes('--temp 1.5')"),
)  # fmt: skip

#: Counts the frames in which the answer grew, from the first text to the last.
_UPDATES = """() => {
    const node = document.querySelector('.llama-panel .lm-turn.live .lm-answer');
    const times = window.testUpdates = [];
    new MutationObserver(() => {
        const now = performance.now();
        if (!times.length || now - times.at(-1) > 20) times.push(now);
    }).observe(node, { childList: true, subtree: true, characterData: true });
}"""


def open_panel(notebook: NotebookPage) -> None:
    """Run `CELLS`, and wait for the panel."""
    for number in range(3):
        notebook.run(number)
    notebook.page.locator(".llama-panel .lm-ask").wait_for()


def visible_s(notebook: NotebookPage, cell: int) -> float:
    """Seconds from the start of a cell with `%llama panel` to a panel in the page; the kernel showed one before."""
    notebook.set_source(cell, "%llama panel chat")
    notebook.select(cell)
    return float(notebook.page.evaluate(_VISIBLE))


def clicks(page: Page) -> list[tuple[str, float]]:
    """What was clicked, and seconds to its visible effect."""
    return [(name, float(page.evaluate(_CLICK, [click, effect]))) for name, click, effect in _CLICKS]


def answer(notebook: NotebookPage, tokens: int, pause_s: float) -> None:
    """Ask, get so many tokens at this pace, and wait for the end."""
    page = notebook.page
    notebook.set_source(3, f"fake.replies.append(story({tokens}, {pause_s}))")
    notebook.run(3)
    turns = page.locator(".llama-panel .lm-turn:not(.live)")
    count = turns.count()
    question = page.get_by_label("Question", exact=True)
    question.fill(f"Tell {tokens} tokens of a story.")
    question.press("Enter")
    expect(turns).to_have_count(count + 1, timeout=120_000)
    expect(page.locator(".llama-panel .lm-turn.live")).to_be_hidden()


def updates(notebook: NotebookPage, tokens: int, pause_s: float) -> float:
    """Updates a second of the answer in the page while it is written."""
    notebook.page.evaluate(_UPDATES)
    answer(notebook, tokens, pause_s)
    times: list[float] = notebook.page.evaluate("() => window.testUpdates")
    return 1000 * (len(times) - 1) / (times[-1] - times[0])


class _Socket:
    """Counts the bytes that a page gets on its web sockets from its next load on."""

    def __init__(self, page: Page) -> None:
        self.size = 0
        page.on("websocket", self._open)

    def _open(self, socket: WebSocket) -> None:
        socket.on("framereceived", self._add)

    def _add(self, frame: Any) -> None:
        self.size += len(frame if isinstance(frame, (bytes, str)) else frame["payload"])


def answer_bytes(open_it: Callable[[], NotebookPage], page: Page, sizes: tuple[int, int], pause_s: float) -> list[int]:
    """Bytes that the page gets for answers of two lengths, each in a conversation of its own."""
    socket = _Socket(page)
    notebook = open_it()
    open_panel(notebook)
    found = []
    for tokens in sizes:
        page.get_by_role("button", name="New", exact=True).click()
        expect(page.locator(".llama-panel .lm-turn:not(.live)")).to_have_count(0)
        before = socket.size
        answer(notebook, tokens, pause_s)
        found.append(socket.size - before)
    return found


def conversation_scripting(notebook: NotebookPage, turns: int, tokens: int, pause_s: float) -> list[float]:
    """Milliseconds of scripting in the page for each token, turn by turn of one growing conversation."""
    session = notebook.page.context.new_cdp_session(notebook.page)
    session.send("Performance.enable")

    def scripting() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "ScriptDuration"))

    found = []
    for _ in range(turns):
        before = scripting()
        answer(notebook, tokens, pause_s)
        found.append(1000 * (scripting() - before) / tokens)
    session.detach()
    return found


def stop_s(page: Page) -> float:
    """Seconds from the click on Stop, while a real model writes, to the end of the answer in the page."""
    question = page.get_by_label("Question", exact=True)
    question.fill("Count from one to one thousand in words.")
    question.press("Enter")
    page.locator(".llama-panel .lm-turn.live .lm-answer > div:not(.lm-thinking) > *").first.wait_for(timeout=60_000)
    stop = "[...document.querySelectorAll('.lm-composer .lm-button')].find((node) => node.textContent === 'Stop')"
    return float(page.evaluate(_CLICK, [f"{stop}.click()", f"!{stop}.checkVisibility()"]))
