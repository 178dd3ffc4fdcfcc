"""What tuning tries: tests of a fitting size for a model's speed, and candidates for each setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_magic.evaluation.speed_test import LaneFacts, SpeedTest

__all__ = ["Knob", "TuneTest", "TuneTests", "knobs", "size_tests"]

#: Tokens of the use that all tests together are weighted to: a prompt, an answer, a follow-up.
_PROMPT, _ANSWER = 512, 128


@dataclass(frozen=True, slots=True)
class TuneTest:
    """A test, the context it runs in ("solo" or "chat", as `load` makes them), and what its time counts for."""

    what: str
    test: SpeedTest
    context: str
    weight: float


@dataclass(frozen=True, slots=True)
class TuneTests:
    """The tests that judge settings; `follow_up` is None where filling its depth would take too long."""

    prompt: TuneTest
    answer: TuneTest
    follow_up: TuneTest | None
    large: TuneTest

    @property
    def all(self) -> tuple[TuneTest, ...]:
        """Those of the last check."""
        return tuple(test for test in (self.prompt, self.answer, self.follow_up) if test is not None)


def size_tests(prompt_tps: float, answer_tps: float, n_ctx: int, *, gpu: bool, quick: bool) -> TuneTests:
    """Choose the sizes of the tests, so that a repetition takes about a second.

    Parameters
    ----------
    prompt_tps, answer_tps
        Tokens per second with the defaults, roughly.
    n_ctx
        The longest context to use.
    gpu
        An accelerator computes: larger prompts are needed to see a difference.
    """
    second = 0.5 if quick else 1.0
    prompt = _power(prompt_tps * 1.5 * second, 32, min(512, n_ctx // 2))
    answer = max(4, min(64, round(answer_tps * second / 2)))
    most = 2048 if gpu else 1024
    large = max(prompt, _power(prompt_tps * 3 * second, 32, min(most, n_ctx // 2)))
    depth = min(512 if quick else 1024, n_ctx - 48)
    follow_up = None
    if depth >= 256 and depth / prompt_tps <= 15:
        test = SpeedTest(32, min(16, answer), depth)
        follow_up = TuneTest("follow-up", test, "chat", _ANSWER / test.n_gen)
    return TuneTests(
        TuneTest("prompt", SpeedTest(n_prompt=prompt), "solo", _PROMPT / prompt),
        TuneTest("answer", SpeedTest(n_gen=answer), "solo", _ANSWER / answer),
        follow_up,
        TuneTest("prompt", SpeedTest(n_prompt=large), "solo", _PROMPT / large),
    )


def _power(value: float, least: int, most: int) -> int:
    """Return the largest power of two that is at most `value`, within bounds."""
    found = least
    while found * 2 <= min(value, most):
        found *= 2
    return found


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing to choose: changes of the load options to try, and the tests that judge them."""

    name: str
    candidates: tuple[Mapping[str, Any], ...]
    tests: tuple[TuneTest, ...]


def knobs(
    tests: TuneTests, facts: LaneFacts, base: Mapping[str, Any], cpus: int, *, quick: bool, kv_quant: bool
) -> list[Knob]:
    """Return what to try, in order: what matters most comes first.

    Parameters
    ----------
    facts
        Of the model with its defaults.
    base
        The defaults: threads, batch sizes and so on, by the names of load options.
    cpus
        Processors that may be used, hardware threads counted each.
    kv_quant
        Types of the KV cache that lose accuracy may be tried.
    """
    found = []
    if facts.gpu_info:
        layers = sorted({0, facts.n_layer // 2, facts.n_layer}, reverse=True)
        found.append(Knob("offload", tuple({"n_gpu_layers": count} for count in layers), tests.all[:2]))
    threads, batch_threads = int(base["n_threads"]), int(base["n_threads_batch"])
    # threads of prompts follow those of answers where nothing is said: here they stay what they were
    counts = _thread_counts(threads, cpus, quick=quick)
    found.append(
        Knob("threads", tuple({"n_threads": n, "n_threads_batch": batch_threads} for n in counts), (tests.answer,))
    )
    counts = _thread_counts(batch_threads, cpus, quick=quick)
    found.append(Knob("threads for prompts", tuple({"n_threads_batch": n} for n in counts), (tests.prompt,)))
    found.append(Knob("flash attention", tuple({"flash_attn": value} for value in ("on", "off")), tests.all))
    size = tests.large.test.n_prompt
    sizes = [count for count in (128, 256, 1024, 2048) if count < size or (facts.gpu_info and count == size)]
    found.append(Knob("ubatch", tuple({"n_ubatch": count} for count in sizes if count <= 2048), (tests.large,)))
    if size > 512 and not quick:
        found.append(Knob("batch", ({"n_batch": 512},), (tests.large,)))
    kinds = ["f32"] if not quick and not facts.gpu_info else []
    kinds += ["q8_0"] if kv_quant else []
    kinds += ["q4_0"] if kv_quant and not quick else []
    if kinds:
        candidates = tuple({"cache_type_k": kind, "cache_type_v": kind} for kind in kinds)
        found.append(Knob("KV type", candidates, tests.all))
    return [knob for knob in found if knob.candidates]


def _thread_counts(default: int, cpus: int, *, quick: bool) -> list[int]:
    """Return numbers of threads to try beside the default: around it, half of it, and all processors."""
    wanted = {default - 1, default // 2, cpus} if quick else {1, default // 2, default * 3 // 4, default - 1, cpus}
    if default > 4:
        wanted.discard(1)  # one thread is no choice where there are many
    return sorted(count for count in wanted if 1 <= count <= cpus and count != default)
