"""Make the pictures of the README from the real thing: JupyterLab, Chromium and the embedded model.

``python docs/screenshots.py`` needs what the browser tests need.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser.jupyter import CHROMIUM_FLAGS, NotebookPage, new_notebook, start_lab  # noqa: E402

CELLS = [
    "%load_ext llama_magic",
    "%%llama --seed 1 --temp 0.3\nWhat is photosynthesis? Answer in two sentences.",
    "%%llama --samples 3 --seed 7 -n 30\nInvent a name for a small robot and say what it does.",
]


def main() -> None:
    """Run the cells and write docs/images/first_prompt.png."""
    target = ROOT / "docs" / "images" / "first_prompt.png"
    target.parent.mkdir(exist_ok=True)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chromium = next(path for path in map(shutil.which, names) if path)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as playwright:
        lab = start_lab(Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
            context = browser.new_context(viewport={"width": 1000, "height": 560}, device_scale_factor=1.5)
            (lab.root / "first_prompt.ipynb").write_text(json.dumps(new_notebook(CELLS)), encoding="utf-8")
            notebook = NotebookPage(context.new_page(), lab, "first_prompt.ipynb").open()
            notebook.run_all()
            notebook.select(0)
            notebook.page.screenshot(path=target)
            notebook.close()
            browser.close()
        finally:
            lab.close()
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
