"""Every shipped notebook runs from top to bottom, offline, and shows what its saved outputs show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

notebooks = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def read(notebook: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    return content


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS][:1] == ["01_first_prompt.ipynb"]


@notebooks
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_and_matches(notebook: Path, smollm2_path: Path, tmp_path: Path) -> None:
    assert smollm2_path.exists()
    # Another rootdir: the settings of this project's own tests are not meant for cells.
    command = [
        sys.executable, "-m", "pytest", "--nbval", "--nbval-cell-timeout=300", "-p", "no:cacheprovider",
        "-p", "no:timeout", "-q", f"--rootdir={tmp_path}", "-c", os.devnull, str(notebook),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@notebooks
def test_saved_outputs_are_those_of_one_clean_run(notebook: Path) -> None:
    code = [cell for cell in read(notebook)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    for cell in code:
        if "".join(cell["source"]).startswith("%%llama"):
            bundle = cell["outputs"][-1]
            assert bundle["output_type"] == "display_data", "an answer is one display that any viewer can show"
            assert {"text/html", "text/plain"} <= set(bundle["data"])
            assert "llama_magic" in bundle["metadata"], "an answer carries its receipt"
            assert len(cell["outputs"]) == 1


@notebooks
def test_under_five_minutes_of_reading(notebook: Path) -> None:
    words = sum(len(re.findall(r"\w+", "".join(cell["source"]))) for cell in read(notebook)["cells"])
    assert words / 200 < 5, f"{words} words at 200 a minute"


@notebooks
def test_renders_without_a_kernel(notebook: Path) -> None:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(template_name="basic").from_filename(str(notebook))
    assert "tok/s" in page
