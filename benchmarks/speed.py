"""Generation speed: against llama-bench at 128 tokens, against llama-cpp-python's `Llama` at 1,500.

The kernel counts: tokens after the first, over the time from the first chunk to the end. llama-bench
(``-p 0 -n 128``) decodes as many tokens from an empty cache and samples none, so the share that
sampling takes counts against llama_magic. A token costs more the more there are before it, so ours
starts behind a prompt of one token.
"""

from __future__ import annotations

import json
import subprocess

from benchmarks.peer import Peer
from benchmarks.rows import Row, at_least, between
from benchmarks.runner import Setup, generate, prompt, turns, worker
from benchmarks.tools import tool
from llama_magic.api.speed import Lane, SpeedWorkers
from llama_magic.evaluation.speed_test import SpeedTest
from llama_magic.inference.params import SamplingParams

__all__ = ["against_llama", "against_llama_bench", "bench"]

_PROMPT, _TOKENS = 512, 128
_LONG = 1500
_N_CTX = 4096


def against_llama_bench(setup: Setup) -> list[Row]:
    """128 tokens, greedy, through the worker / llama-bench tg128."""
    spec = setup.spec()
    command = [str(tool("llama-bench", setup.tools)), "-m", spec.path, "-p", "0", "-n", str(_TOKENS)]
    command += ["-t", str(setup.threads), "-r", "1", "-o", "json"]
    params = SamplingParams(max_tokens=_TOKENS, temperature=0.0, ignore_eos=True)

    def bench(_round: int) -> float:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(json.loads(output)[0]["avg_ts"])

    with worker(spec) as client:

        def ours(number: int) -> float:
            letter = chr(ord("A") + number % 26)  # another one each time: the worker keeps what it has seen
            return generate(client, spec, letter, params).tps

        ours(25)
        pairs = turns(ours, bench, setup.rounds(41, 3))
    what = "generation tok/s, 128 tokens, greedy, seen by the kernel through the worker / llama-bench tg128"
    return [at_least(what, 0.97, [a / b for a, b in pairs], note=_rates(pairs, "llama-bench"))]


def bench(setup: Setup) -> list[Row]:
    """`lm.bench`'s repetitions of pp512 and tg128 / llama-bench's, on the same file, in turns."""
    spec = setup.spec()
    rows = []
    with SpeedWorkers() as workers:
        for test in (SpeedTest(n_prompt=_PROMPT), SpeedTest(n_gen=_TOKENS)):
            command = [str(tool("llama-bench", setup.tools)), "-m", spec.path, "-t", str(setup.threads), "-r", "1"]
            command += ["-p", str(test.n_prompt), "-n", str(test.n_gen), "-o", "json"]
            lane = workers.open(spec, test)

            def theirs(_round: int, command: list[str] = command) -> float:
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                return float(json.loads(output)[0]["avg_ts"])

            def ours(_round: int, lane: Lane = lane) -> float:
                return 1e9 * lane.test.n_tokens / workers.time(lane)

            pairs = turns(ours, theirs, setup.rounds(21, 5))
            what = f"`bench`: tok/s of {test.name} / llama-bench's"
            rows.append(between(what, 0.97, 1.03, [a / b for a, b in pairs], note=_rates(pairs, "llama-bench")))
            workers.close()
    return rows


def against_llama(setup: Setup) -> list[Row]:
    """1,500 tokens, greedy, through the worker / llama-cpp-python's `Llama`, streaming."""
    spec = setup.spec(n_ctx=_N_CTX)
    params = SamplingParams(max_tokens=_LONG, temperature=0.0, ignore_eos=True)
    with worker(spec) as client, Peer(spec, n_ctx=_N_CTX) as peer:

        def ours(number: int) -> float:
            return generate(client, spec, prompt(number), params).tps

        def theirs(number: int) -> float:
            answer = peer.generate(prompt(number), _LONG)
            return answer["rest_tokens"] / answer["rest_s"]

        pairs = turns(ours, theirs, setup.rounds(5, 1))
    what = "generation tok/s, 1,500 tokens, through the worker / llama-cpp-python's `Llama`, streaming"
    return [at_least(what, 1.05, [a / b for a, b in pairs], note=_rates(pairs, "`Llama`"))]


def _rates(pairs: list[tuple[float, float]], other: str) -> str:
    middle = sorted(pairs)[len(pairs) // 2]
    return f"a round in the middle: {middle[0]:.1f} tok/s, {other} {middle[1]:.1f}"
