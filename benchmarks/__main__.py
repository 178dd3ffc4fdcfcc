"""``python -m benchmarks``: measure everything, or what ``--only`` names, and write the table."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    comparing,
    conversation,
    display,
    evaluation,
    imatrix,
    memory,
    metadata,
    overhead,
    panel,
    quantize,
    samples,
    speed,
    startup,
)
from benchmarks.report import joined, machine, read, write
from benchmarks.rows import Row, failed
from benchmarks.runner import ROOT, Setup
from llama_magic.backends.host import default_threads

#: In the order of the table.
GROUPS: dict[str, Callable[[Setup], list[Row]]] = {
    "llama-bench": speed.against_llama_bench,
    "bench": speed.bench,
    "overhead": overhead.measure,
    "llama": speed.against_llama,
    "follow-up": conversation.measure,
    "samples": samples.measure,
    "load-ext": startup.load_ext,
    "first-cell": startup.first_cell,
    "bytes": display.measure,
    "memory": memory.measure,
    "metadata": metadata.measure,
    "quantize": quantize.measure,
    "imatrix": imatrix.measure,
    "evaluation": evaluation.measure,
    "compare": comparing.measure,
    "panel": panel.measure,
}


def main() -> int:
    """Run the measurements; returns 1 where one could not be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what llama_magic costs.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; writes nothing unless --output is given")
    parser.add_argument("--only", action="append", choices=list(GROUPS), help="one measurement; may be repeated")
    parser.add_argument("--tools", type=Path, help="folder with llama-bench; without it, it is built once")
    parser.add_argument("--threads", type=int, default=default_threads(), help="threads for all sides")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for RESULTS.md and results.json; with --only, "
        "rounds are added to those of the same day and machine, and other rows stay",
    )
    arguments = parser.parse_args()
    setup = Setup(arguments.threads, arguments.quick, arguments.tools and arguments.tools.resolve())
    rows, broken = list[Row](), False
    whole = not arguments.quick and not arguments.only
    folder = arguments.output or (ROOT / "benchmarks" if whole else None)
    where = machine(setup)  # a run that goes on past midnight is one of the day on which it began
    before = read(folder) if arguments.only and folder is not None else []
    for name in arguments.only or GROUPS:
        start = time.perf_counter()
        print(f"{name} …", flush=True)
        try:
            found = GROUPS[name](setup)
        except Exception as error:  # noqa: BLE001 - one that fails must not cost the others
            traceback.print_exc()
            found, broken = [failed(name, f"{type(error).__name__}: {error}".partition("\n")[0])], True
        for row in found:
            verdict = {True: "reached", False: "NOT reached", None: ""}[row.reached]
            print(f"  {row.what}: {row.value} ({row.spread}) {row.target} {verdict}\n    {row.note}".rstrip())
        print(f"  [{time.perf_counter() - start:.0f} s]", flush=True)
        rows += found
        if folder is not None:  # after each, so that what was measured is there when the rest is stopped
            write(joined(before, rows, where), folder)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
