"""Reading a file's metadata, and inspecting it in a notebook."""

from __future__ import annotations

import os
import shutil
import tempfile
import time

from gguf import GGUFReader

from benchmarks.kernel import Kernel
from benchmarks.rows import Row, at_least, at_most, info
from benchmarks.runner import Setup
from llama_magic.models.gguf import read_metadata
from llama_magic.models.resolve import resolve

__all__ = ["measure"]


def measure(setup: Setup) -> list[Row]:
    """Metadata and tensor table of SmolLM2 against `gguf.GGUFReader`, in turns; and ``%llama inspect``."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        path = shutil.copy(resolve("smollm2"), folder)
        for number in range(setup.rounds(7, 3)):
            os.utime(path, (number, number))  # a file that changed is read again
            start = time.perf_counter()
            ours = read_metadata(path)
            middle = time.perf_counter()
            theirs = GGUFReader(path)
            ratios.append((time.perf_counter() - middle) / (middle - start))
            if len(theirs.tensors) != len(ours.tensors):
                raise AssertionError("the two readers disagree")
    note = "gguf.GGUFReader parses every entry of the vocabulary; both read all keys and the whole tensor table"
    first, again = _inspected(setup)
    how = "from sending the cell to its picture, as a front end sees it"
    return [
        at_least("reading metadata: time of gguf.GGUFReader / time of llama_magic", 10, ratios, note=note),
        at_most("`%llama inspect smollm2`, the first of a kernel", 0.15, first, "s", how),
        info("the same once more", again, "s"),
    ]


def _inspected(setup: Setup) -> tuple[list[float], list[float]]:
    """Return how long the cell takes that inspects a local file: the first of a fresh kernel, and the next."""
    first, again = list[float](), list[float]()
    for _ in range(setup.rounds(7, 3)):
        with Kernel() as kernel:
            kernel.run("%load_ext llama_magic")
            for seconds in (first, again):
                seconds.append(kernel.run("%llama inspect smollm2").shown[-1].at_s)
    return first, again
