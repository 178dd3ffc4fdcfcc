"""Start-up: the extension's import, and the first cell of a fresh kernel, at once and after a moment."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks.kernel import Kernel
from benchmarks.rows import Row, at_most, info
from benchmarks.runner import Setup

__all__ = ["first_cell", "load_ext"]

#: Seconds that a person takes at least from one cell to the next.
_TYPING_S = 2.0
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
    what = "first cell on a fresh kernel (start worker, load SmolLM2, first token)"
    note = "as a front end sees it, by messages of a real kernel"
    at_once = [_first_text(setup, 0.0) for _ in range(setup.rounds(7))]
    later = [_first_text(setup, _TYPING_S) for _ in range(setup.rounds(7))]
    return [
        at_most(what, 2.5, at_once, "s", f"{note}; right behind `%load_ext`"),
        info(f"{what}, {_TYPING_S:g} s after `%load_ext`", later, "s", "a worker has been started meanwhile"),
    ]


def _first_text(setup: Setup, wait_s: float) -> float:
    with Kernel() as kernel:
        kernel.run("%load_ext llama_magic")
        time.sleep(wait_s)
        cell = kernel.run(f"%%llama -n 8 --seed 1 --format text -t {setup.threads}\nWhat is the capital of France?")
        # Of all that is drawn, only the text of this format carries a direction.
        return next(message.at_s for message in cell.shown if 'dir="auto"' in message.html)
