"""Quantizing against llama-quantize: the same job, from the call in the kernel to the finished file.

Ours is the whole call as a notebook makes it; the tool counts as a process. Two cases for ours: with the worker that
waits in a notebook from a second after a cell, and the first job of a script, which starts its worker. The target of a
large job is for the first case; that of a tiny one includes the worker's start, so it is for the second.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from typing_extensions import Self

from benchmarks.rows import Row, at_most, info
from benchmarks.runner import Setup, turns
from benchmarks.tools import tool
from llama_magic.api.quantize import plan, quantize
from llama_magic.engine.client import EngineClient
from llama_magic.engine.jobs import set_job_client
from llama_magic.engine.spare import WarmUpRequest

__all__ = ["measure"]

_LARGE, _TINY = "Q4_K_M", "Q8_0"


def measure(setup: Setup) -> list[Row]:
    """Wall time of a large and a tiny job, and peak memory of the large one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = quantize(setup.spec().path, "F16", folder / "large-F16.gguf", allow_requantize=True).path
        tiny = _tiny(folder / "tiny-F32.gguf")
        return [
            *_times(
                setup, large, _LARGE, 1.05, None, f"SmolLM2 F16 ({large.stat().st_size / 1e6:.0f} MB) to {_LARGE}", 7
            ),
            *_times(setup, tiny, _TINY, None, 1.5, f"a tiny model ({tiny.stat().st_size / 1e6:.1f} MB) to {_TINY}", 11),
            _memory(setup, large),
            _plan(setup, large),
        ]


def _tiny(path: Path) -> Path:
    """Write a Llama of two small layers with random weights."""
    from gguf import GGUFWriter

    width, words, random = 256, 256, np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{number}" for number in range(words)])
    writer.add_token_scores([0.0] * words)
    writer.add_token_types([1] * words)
    names = {"token_embd": (words, width), "output_norm": (width,)}
    for layer in range(2):
        names |= {f"blk.{layer}.{part}_norm": (width,) for part in ("attn", "ffn")}
        parts = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()
        names |= {f"blk.{layer}.{part}": (width, width) for part in parts}
    for name, shape in names.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _times(
    setup: Setup, source: Path, ftype: str, waiting: float | None, starting: float | None, job: str, rounds: int
) -> list[Row]:
    """Measure with a worker that waits and with its start; each may have a limit."""
    ours = source.with_name("ours.gguf")
    command = _command(setup, source, ftype)

    def timed(work: Callable[[], object]) -> float:
        for made in (ours, Path(command[2])):  # taking the place of a large file costs time of its own
            made.unlink(missing_ok=True)
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def call() -> object:
        return quantize(source, ftype, ours, n_threads=setup.threads)

    def theirs(_number: int) -> float:
        return timed(lambda: subprocess.run(command, check=True, capture_output=True))

    def warm(_number: int) -> float:
        client = EngineClient()
        client.restart()
        ping: Any = WarmUpRequest()
        client.request(ping)  # what follows does not share the processor with its start
        set_job_client(lambda: client)
        try:
            return timed(call)
        finally:
            set_job_client(None)

    pairs = turns(warm, theirs, setup.rounds(rounds, 2))
    first = turns(lambda _number: timed(call), theirs, setup.rounds(rounds, 2))
    return [
        _row(f"quantize {job}, wall time / llama-quantize", waiting, pairs, "a worker waits, as in a notebook"),
        _row(
            f"quantize {job}, the first job of a session, wall time / llama-quantize",
            starting,
            first,
            "with the start of its worker",
        ),
    ]


def _row(what: str, limit: float | None, pairs: list[tuple[float, float]], note: str) -> Row:
    ratios, note = [a / b for a, b in pairs], f"{note}; {_middle(pairs)}"
    return info(what, ratios, note=note) if limit is None else at_most(what, limit, ratios, note=note)


def _command(setup: Setup, source: Path, ftype: str) -> list[str]:
    theirs = source.with_name("theirs.gguf")
    return [str(tool("llama-quantize", setup.tools)), str(source), str(theirs), ftype, str(setup.threads)]


def _middle(pairs: list[tuple[float, float]]) -> str:
    ours, theirs = sorted(pairs)[len(pairs) // 2]
    return f"a round in the middle: {ours:.2f} s, llama-quantize {theirs:.2f} s"


def _memory(setup: Setup, source: Path) -> Row:
    """Return the peak of our worker's resident memory less that of the tool, in MB."""
    client = EngineClient()
    client.restart()
    assert client.pid is not None
    set_job_client(lambda: client)
    try:
        with _Peak(client.pid) as ours:
            quantize(source, _LARGE, source.with_name("ours.gguf"), n_threads=setup.threads, force=True)
    finally:
        set_job_client(None)
    process = subprocess.Popen(_command(setup, source, _LARGE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with _Peak(process.pid) as theirs:
        process.wait()
    more = (ours.bytes - theirs.bytes) / 1e6
    note = f"{ours.bytes / 1e6:.0f} MB, llama-quantize {theirs.bytes / 1e6:.0f} MB"
    return at_most(
        f"quantize to {_LARGE}, peak resident memory of the worker beyond llama-quantize's", 60, [more], "MB", note
    )


def _plan(setup: Setup, source: Path) -> Row:
    """Return how long a plan takes while the session's worker runs."""

    def timed() -> float:
        start = time.perf_counter()
        plan(source, _LARGE, n_threads=setup.threads)
        return time.perf_counter() - start

    timed()
    return at_most(f"plan of SmolLM2 F16 to {_LARGE}", 0.2, [timed() for _ in range(setup.rounds(9, 3))], "s")


class _Peak:
    """Watches a process's resident memory; shared pages of the mapped source count for both sides alike."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            try:
                self.bytes = max(self.bytes, self._process.memory_info().rss)
            except psutil.Error:
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
