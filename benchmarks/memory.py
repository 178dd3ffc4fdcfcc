"""The kernel's memory over many cells."""

from __future__ import annotations

import psutil

from benchmarks.kernel import Kernel
from benchmarks.rows import Row, at_most
from benchmarks.runner import Setup

__all__ = ["measure"]

_FEW, _MANY = 20, 200


def measure(setup: Setup) -> list[Row]:
    """Resident memory of the kernel process after 200 cells / after 20."""
    sizes = {}
    with Kernel() as kernel:
        kernel.run("%load_ext llama_magic")
        process = psutil.Process(kernel.pid)
        for number in range(1, _MANY + 1):
            kernel.run(f"%%llama -n 4 --seed {number} -t {setup.threads}\nSay something about the number {number}.")
            if number in (_FEW, _MANY):
                sizes[number] = process.memory_info().rss
    mib = {number: size / 2**20 for number, size in sizes.items()}
    note = f"{mib[_FEW]:.1f} and {mib[_MANY]:.1f} MiB; the worker's memory is not in it"
    return [at_most("kernel memory after 200 cells / after 20", 1.05, [sizes[_MANY] / sizes[_FEW]], note=note)]
