"""Run the notebooks and save their outputs, without what belongs to this machine.

``python docs/notebooks.py [NOTEBOOK...]`` runs all of ``notebooks/`` when none is named.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"

#: Any absolute path: only its last part is kept.
_PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.@+-]+/)+(?=[\w.@+-]+)")


def clean(value: Any) -> Any:
    """Return the value with every absolute path cut down to the file's name."""
    if isinstance(value, str):
        return _PATH.sub("", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    return value


def run(path: Path) -> None:
    """Run one notebook from top to bottom and write it back."""
    notebook = nbformat.read(path, as_version=4)
    # Without the state of widgets: it would hold all their scripts, and a saved page is there in its place.
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, resources=place, store_widget_state=False).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            output.update(clean(dict(output)))
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    print(f"wrote {path.name}")


if __name__ == "__main__":
    for notebook_file in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        run(notebook_file)
