"""Make the pictures of the README from the real thing: JupyterLab, Chromium and the embedded model.

``python docs/screenshots.py [NAME …]`` needs what the browser tests need.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser.jupyter import CHROMIUM_FLAGS, Lab, NotebookPage, new_notebook, start_lab  # noqa: E402

_COMPARE = (
    '%llama compare smollm2 Q8_0 Q4_1 Q4_0 Q2_K --prompt "What is photosynthesis?" -n 40 --chunks 4 -c 256 '
    "--n-prompt 64 --n-gen 32"
)

#: Pictures by name: width and height of the window, the cells, and which of them to look at.
PICTURES: dict[str, tuple[int, int, list[str], int]] = {
    "first_prompt": (
        1000,
        560,
        [
            "%load_ext llama_magic",
            "%%llama --seed 1 --temp 0.3\nWhat is photosynthesis? Answer in two sentences.",
            "%%llama --samples 3 --seed 7 -n 30\nInvent a name for a small robot and say what it does.",
        ],
        0,
    ),
    "compare": (
        1250,
        1010,
        [
            "%load_ext llama_magic",
            _COMPARE,
        ],
        1,
    ),
    "panel": (1180, 1010, ["%load_ext llama_magic", "%llama panel chat"], 1),
}

#: What the panel is asked for its picture.
QUESTION = "What do llamas eat? Answer in one sentence."


def main(names: list[str]) -> None:
    """Run the cells of these pictures (all when none is named) and write docs/images/NAME.png."""
    chromium = next(
        path
        for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
        if path
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as playwright:
        lab = start_lab(Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
            for name in names or PICTURES:
                _picture(browser, lab, name)
            browser.close()
        finally:
            lab.close()


def _picture(browser: Browser, lab: Lab, name: str) -> None:
    width, height, cells, at = PICTURES[name]
    target = ROOT / "docs" / "images" / f"{name}.png"
    target.parent.mkdir(exist_ok=True)
    context = browser.new_context(viewport={"width": width, "height": height}, device_scale_factor=1.5)
    (lab.root / f"{name}.ipynb").write_text(json.dumps(new_notebook(cells)), encoding="utf-8")
    notebook = NotebookPage(context.new_page(), lab, f"{name}.ipynb").open()
    notebook.run_all(timeout=560)
    if name == "panel":
        _use_panel(notebook)
    notebook.select(at)
    notebook.page.screenshot(path=target)
    notebook.close()
    context.close()
    print(f"wrote {target.relative_to(ROOT)}")


def _use_panel(notebook: NotebookPage) -> None:
    """Ask, open the tokens of the answer, and look at the choice of one of them."""
    page = notebook.page
    page.locator(".llama-panel").wait_for()
    page.get_by_text("System prompt, length").click()
    for label, value in (("Most tokens", "60"), ("Seed", "4")):
        page.get_by_label(label).fill(value)
        page.get_by_label(label).press("Tab")
    page.get_by_text("System prompt, length").click()
    question = page.get_by_label("Question", exact=True)
    question.fill(QUESTION)
    question.press("Enter")
    page.locator(".lm-turn.last").wait_for(timeout=120_000)
    page.get_by_role("button", name="Tokens and their probabilities").click()
    page.locator(".lm-tok").nth(0).click()
    page.locator(".lm-candidate").first.wait_for(timeout=60_000)
    page.mouse.move(5, 5)


if __name__ == "__main__":
    main(sys.argv[1:])
