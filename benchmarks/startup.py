"""Start-up: the extension's import, and the first cell of a fresh kernel."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.kernel import Kernel
from benchmarks.rows import Row, at_most
from benchmarks.runner import Setup

__all__ = ["first_cell", "load_ext"]

_HEAVY = ("llama_cpp", "numpy", "ipywidgets")
_LOAD = f"""
import json, sys, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
start = time.perf_counter()
shell.run_line_magic("load_ext", "llama_magic")
seconds = time.perf_counter() - start
print(json.dumps([seconds, [name for name in {_HEAVY!r} if name in sys.modules and name not in before]]))
"""


def load_ext(setup: Setup) -> list[Row]:
    """``%load_ext llama_magic`` in a fresh process in which IPython is imported already."""
    seconds, imported = [], set[str]()
    for _ in range(setup.rounds(9, 3)):
        output = subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, text=True, check=True).stdout
        took, names = json.loads(output.splitlines()[-1])
        seconds.append(took)
        imported |= set(names)
    note = f"imported: {', '.join(sorted(imported))}" if imported else ""
    return [
        at_most("`%load_ext llama_magic`", 0.3, seconds, "s"),
        at_most(f"of {', '.join(_HEAVY)}: imported by it", 0, [len(imported)], note=note),
    ]


def first_cell(setup: Setup) -> list[Row]:
    """From a cell's execution to the first text on a fresh kernel: worker, model, prompt, first token."""
    seconds = []
    for _ in range(setup.rounds(7, 2)):
        with Kernel() as kernel:
            kernel.run("%load_ext llama_magic")
            # Of all that is drawn, only the text of this format carries a direction.
            cell = kernel.run(f"%%llama -n 8 --seed 1 --format text -t {setup.threads}\nWhat is the capital of France?")
            texts = [message for message in cell.shown if 'dir="auto"' in message.html]
            seconds.append(texts[0].at_s)
    what = "first cell on a fresh kernel (start worker, load SmolLM2, first token)"
    return [at_most(what, 2.5, seconds, "s", "as a front end sees it, by messages of a real kernel")]
