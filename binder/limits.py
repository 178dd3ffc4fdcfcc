"""Run a notebook under Binder's limits and measure it.

One core by CPU affinity, at most 2 GB of address space for each process, and at most 2 GB of memory for all of them
together, sampled while the notebook runs.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time

import psutil

LIMIT = 2 * 1024**3


def confine() -> None:
    """Take one core and limit the address space; what is started from here inherits both."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


def memory(root: psutil.Process) -> int:
    """Bytes that a process and its children hold; what they share is counted once (PSS)."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def main(notebook: str) -> int:
    """Run the notebook; return the exit status."""
    started = time.monotonic()
    peak = 0
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", folder, notebook],
            preexec_fn=confine,
        )
        root = psutil.Process(process.pid)
        while True:
            try:
                status = process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, memory(root))
    seconds = time.monotonic() - started
    print(f"{notebook}: {seconds:.0f} s, at most {peak / 2**20:,.0f} MiB of {LIMIT / 2**20:,.0f}")
    if status:
        return status
    return 0 if peak <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
