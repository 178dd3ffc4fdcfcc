"""What streaming sends to the front end: bytes in all, and updates a second."""

from __future__ import annotations

import itertools
import statistics

from benchmarks.kernel import Cell, Kernel
from benchmarks.rows import Row, at_least, at_most, info
from benchmarks.runner import Setup

__all__ = ["measure"]

_SHORT, _LONG = 1000, 2000
_PROMPT = "Write a long story about a lighthouse keeper, with headings, lists and some Python code."


def measure(setup: Setup) -> list[Row]:
    """Bytes for 2,000 tokens / for 1,000, and updates a second, of a real kernel with SmolLM2."""
    ratios, rates, gaps, per_token = [], [], [], []
    for number in range(setup.rounds(3, 1)):
        cells = {}
        with Kernel() as kernel:
            kernel.run("%load_ext llama_magic")
            kernel.run(f"%%llama -n 4 --seed 1 -t {setup.threads}\nHello")
            for tokens in (_SHORT, _LONG):
                flags = f"-n {tokens} --ignore-eos --seed {number + 1} -t {setup.threads}"
                cells[tokens] = kernel.run(f"%%llama {flags}\n{_PROMPT}")
        ratios.append(cells[_LONG].size / cells[_SHORT].size)
        per_token.append(cells[_LONG].size / _LONG)
        rate, gap = _updates(cells[_LONG])
        rates.append(rate)
        gaps.append(gap)
    note = f"all messages of the cell as they are on the wire; {statistics.median(per_token):,.0f} bytes a token"
    return [
        at_most("bytes sent to the front end, 2,000 tokens / 1,000 tokens", 2.2, ratios, note=note),
        at_least("updates a second while those 2,000 tokens came", 8, rates, "/s"),
        info("longest time between two updates", gaps, "s"),
    ]


def _updates(cell: Cell) -> tuple[float, float]:
    """Return updates a second from the first text to the last before the end, and the longest gap.

    What freezes a piece and what shows the new end behind it come together: they are one update.
    """
    times: list[float] = []
    for message in cell.shown[:-1]:
        if not times or message.at_s - times[-1] > 0.02:
            times.append(message.at_s)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return len(gaps) / (times[-1] - times[0]), max(gaps)
