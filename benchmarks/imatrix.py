"""Collecting an importance matrix against llama-imatrix: the same model, text and settings, from start to file.

Ours counts from the call in the kernel, so the start of the worker is in it; the tool counts as a process.
Both compute the perplexity, as the tool does unless told otherwise.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row, at_most
from benchmarks.runner import Setup, turns
from benchmarks.tools import tool
from llama_magic.api.imatrix import collect_imatrix
from llama_magic.quantization.imatrix import CALIBRATION

__all__ = ["measure"]


def measure(setup: Setup) -> list[Row]:
    """Wall time of the whole call / of llama-imatrix."""
    model, chunks = setup.spec().path, 8 if setup.quick else 24
    threads = setup.threads
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [str(tool("llama-imatrix", setup.tools)), "-m", model, "-f", str(CALIBRATION), "-t", str(threads)]
        command += ["--chunks", str(chunks), "-o", str(folder / "theirs.gguf")]

        def ours(number: int) -> float:
            start = time.perf_counter()
            collect_imatrix(model, CALIBRATION, out=folder / f"{number}.gguf", chunks=chunks, n_threads=threads)
            return time.perf_counter() - start

        def theirs(_number: int) -> float:
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            return time.perf_counter() - start

        pairs = turns(ours, theirs, setup.rounds(5, 1))
    middle = sorted(pairs)[len(pairs) // 2]
    note = f"a round in the middle: {middle[0]:.1f} s, llama-imatrix {middle[1]:.1f} s"
    what = f"importance matrix of SmolLM2 Q4_1, {chunks} chunks of 512 tokens, wall time / llama-imatrix"
    return [at_most(what, 1.0, [a / b for a, b in pairs], note=note)]
