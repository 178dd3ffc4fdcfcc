"""A comparison of levels: its speeds against llama-bench's on the same files, and how long the whole takes.

In each round a comparison times every level once, and llama-bench does the same file by file. The ratio of a round is
the geometric mean over levels and both kinds of run.
"""

from __future__ import annotations

import json
import math
import subprocess
import time

from benchmarks.rows import Row, at_most, between
from benchmarks.runner import Setup, turns
from benchmarks.tools import tool
from llama_magic.api.compare import compare
from llama_magic.evaluation.comparison import Comparison

__all__ = ["measure"]

_LEVELS = ("Q8_0", "Q4_1", "Q4_0", "Q2_K")
_PROMPT, _GEN = 512, 128


def measure(setup: Setup) -> list[Row]:
    """Speeds of the table / llama-bench, and the time of the comparison that the documentation shows."""
    started = time.perf_counter()
    whole = compare(
        "smollm2", _LEVELS, prompt="What is photosynthesis?", chunks=2 if setup.quick else 8, n_threads=setup.threads
    )
    seconds = time.perf_counter() - started
    paths = [level.path for level in whole]
    command = [str(tool("llama-bench", setup.tools)), "-p", str(_PROMPT), "-n", str(_GEN), "-r", "1", "-o", "json"]
    command += ["-t", str(setup.threads)]
    found: list[Comparison] = []

    def ours(_number: int) -> float:
        found.append(
            compare("smollm2", _LEVELS, text=False, runs=1, n_prompt=_PROMPT, n_gen=_GEN, n_threads=setup.threads)
        )
        rates = [rate.mean for level in found[-1] for rate in (level.prompt, level.generation) if rate is not None]
        return math.exp(sum(map(math.log, rates)) / len(rates))

    def theirs(_number: int) -> float:
        rates = []
        for path in paths:
            said = subprocess.run([*command, "-m", path], capture_output=True, text=True, check=True).stdout
            rates += [float(test["avg_ts"]) for test in json.loads(said)]
        return math.exp(sum(map(math.log, rates)) / len(rates))

    pairs = turns(ours, theirs, setup.rounds(9, 1))
    middle = sorted(pairs)[len(pairs) // 2]
    note = f"a round in the middle: {middle[0]:.1f} tok/s, llama-bench {middle[1]:.1f}"
    what = f"tok/s in the table of a comparison / llama-bench, F16 and {len(_LEVELS)} quantizations, pp512 and tg128"
    took = f"comparing F16 and {len(_LEVELS)} quantizations of SmolLM2: answers, 3 timed runs, 8 chunks"
    return [
        between(what, 0.97, 1.03, [a / b for a, b in pairs], note=note),
        at_most(took, 180, [seconds], "s", note="types that are missing are made in it"),
    ]
