"""What a token costs beyond `llama_decode` and sampling.

Subtracting the speed of one run from that of another would drown some microseconds in the noise of
milliseconds. So one and the same run is taken apart: clocks around llama.cpp's two C calls in the
worker (`benchmarks.probe`) give the time inside, and the overhead is

    time from the first token in the worker to the end in the kernel - time inside
    + processor time of the kernel process meanwhile,

over the tokens after the first. The first line holds what the worker does between two calls and the
last message's way; the second adds what the kernel does while the worker computes already, which
takes no time where a core is free but does where none is. Both are divided by the number of tokens
after the first. The cost of a whole generation (receipt, last message) is in it, spread over its tokens.

`Llama` of llama-cpp-python runs in a process of its own with the same clocks, in turns. The notebook's
view draws some times a second, not once a token; its processor time is told in lines of its own.
"""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

from benchmarks.peer import Peer
from benchmarks.probe import probed_workers, reading
from benchmarks.rows import Row, at_most, info
from benchmarks.runner import Setup, Timed, generate, prompt, turns, worker
from llama_magic.inference.params import SamplingParams
from llama_magic.notebook.stream_view import JupyterView

__all__ = ["measure"]

_SHORT, _LONG = 128, 2000
_N_CTX = 4096
_LIMIT_US = 40.0
_SAME = 1.25


def measure(setup: Setup) -> list[Row]:
    """Overhead per token at 128 and 2,000 tokens, with `Llama`'s beside it."""
    spec = setup.spec(n_ctx=_N_CTX)
    rounds = {_SHORT: setup.rounds(9, 2), _LONG: setup.rounds(3, 1)}
    found: dict[int, list[tuple[float, float]]] = {}
    parts: dict[int, list[float]] = {_SHORT: [], _LONG: []}
    views: dict[int, list[float]] = {}
    undo = probed_workers()
    try:
        with worker(spec) as client, Peer(spec, n_ctx=_N_CTX, clocks=True) as peer:

            def ours(number: int, tokens: int, view: bool = False) -> Timed:
                params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
                each = JupyterView(_NoShell()).add if view else None
                # The worker answers a prompt that it has just seen without sampling its first token.
                return generate(client, spec, prompt(2 * number + view), params, each=each)

            def theirs(number: int, tokens: int) -> float:
                answer = peer.generate(prompt(number), tokens)
                return 1e6 * answer["outside_s"] / answer["rest_tokens"]

            for tokens in (_SHORT, _LONG):

                def one(number: int, tokens: int = tokens) -> float:
                    run = ours(number, tokens)
                    parts[tokens].append(1e6 * run.kernel_s / run.rest_tokens)
                    return _overhead(run)

                def other(number: int, tokens: int = tokens) -> float:
                    return theirs(number, tokens)

                found[tokens] = turns(one, other, rounds[tokens])
                views[tokens] = [_kernel_us(ours(number, tokens, view=True)) for number in range(setup.rounds(3, 1))]
    finally:
        undo()
    return _rows(found, parts, views)


def _rows(
    found: dict[int, list[tuple[float, float]]], parts: dict[int, list[float]], views: dict[int, list[float]]
) -> list[Row]:
    own = {tokens: [pair[0] for pair in pairs] for tokens, pairs in found.items()}
    rows = []
    for tokens in (_SHORT, _LONG):
        peer = statistics.median(pair[1] for pair in found[tokens])
        note = f"of it the kernel's processor time: {statistics.median(parts[tokens]):.1f} µs; `Llama`: {peer:,.0f} µs"
        what = f"overhead per token beyond llama_decode and sampling, worker and kernel together, {tokens:,} tokens"
        rows.append(at_most(what, _LIMIT_US, own[tokens], "µs", note))
    short = statistics.median(own[_SHORT])
    grown = [value / short for value in own[_LONG]]
    rows.append(at_most("the same overhead, 2,000 tokens / 128 tokens", _SAME, grown))
    for tokens in (_SHORT, _LONG):
        what = f"llama-cpp-python's `Llama`, streaming: overhead per token, {tokens:,} tokens"
        rows.append(info(what, [pair[1] for pair in found[tokens]], "µs"))
    for tokens in (_SHORT, _LONG):
        what = f"processor time of the kernel per token with the notebook's view, {tokens:,} tokens"
        rows.append(info(what, views[tokens], "µs", "drawing Markdown some times a second included"))
    return rows


def _overhead(run: Timed) -> float:
    """Return the microseconds per token."""
    clocks = reading(run.completion)
    outside = run.end - clocks["first"] - clocks["inside_s"]
    return 1e6 * (outside + run.kernel_s) / run.rest_tokens


def _kernel_us(run: Timed) -> float:
    return 1e6 * run.kernel_s / run.rest_tokens


class _NoShell(SimpleNamespace):
    """A shell that shows nothing."""

    def __init__(self) -> None:
        super().__init__(display_pub=self)

    def publish(self, **_message: Any) -> None:
        """Do nothing."""

    def clear_output(self, **_options: Any) -> None:
        """Do nothing."""
