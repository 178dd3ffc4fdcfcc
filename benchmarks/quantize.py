"""Quantizing against llama-quantize: the same job, from the call in the kernel to the finished file.

Ours is the whole call, the tool counts as a process. Three cases for ours: with a worker that waits; the first job of
a script, which starts its worker; and the first job of a notebook, whose worker the notebook has started by itself a
second after a cell. The target of a large job is for the first case. That of a tiny one includes the worker's start, so
it is for the other two: what a script waits for, and what a person does, in a kernel where nothing of ours ran before
but ``%load_ext``.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from typing_extensions import Self

from benchmarks.kernel import Kernel
from benchmarks.rows import Row, at_most, info
from benchmarks.runner import Setup, turns
from benchmarks.tools import tool
from llama_magic.api.quantize import plan, quantize
from llama_magic.engine.spare import keep_spare, prepare_spare

__all__ = ["measure"]

_LARGE, _TINY = "Q4_K_M", "Q8_0"

#: Seconds that a person takes at least from one cell to the next.
_TYPING_S = 2.0


def measure(setup: Setup) -> list[Row]:
    """Wall time of a large and a tiny job, and peak memory of the large one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = quantize(setup.spec().path, "F16", folder / "large-F16.gguf", allow_requantize=True).path
        tiny = _tiny(folder / "tiny-F32.gguf")
        big = f"SmolLM2 F16 ({large.stat().st_size / 1e6:.0f} MB) to {_LARGE}"
        small = f"a tiny model ({tiny.stat().st_size / 1e6:.1f} MB) to {_TINY}"
        return [
            *_times(setup, large, _LARGE, 1.05, None, big, 7),
            *_times(setup, tiny, _TINY, None, 1.5, small, 11),
            *_in_a_notebook(setup, tiny, _TINY, 1.5, small, 11),
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
    """Measure with a worker that waits, and with its start; each may have a limit."""
    ours = source.with_name("ours.gguf")
    theirs = _Tool(setup, source, ftype)

    def call() -> object:
        return quantize(source, ftype, ours, n_threads=setup.threads)

    def warm(_number: int) -> float:
        keep_spare(True)
        try:
            prepare_spare()
            _until_it_rests()
            return _timed(call, ours)
        finally:
            keep_spare(False)

    pairs = turns(warm, theirs, setup.rounds(rounds, 2))
    first = turns(lambda _number: _timed(call, ours), theirs, setup.rounds(rounds, 2))
    what, first_what = f"quantize {job}, wall time / llama-quantize", f"quantize {job}, first job of a script"
    return [
        _row(what, waiting, pairs, "a worker waits, as in a notebook"),
        _row(f"{first_what}, wall time / llama-quantize", starting, first, "with the start of its worker"),
    ]


def _timed(work: Callable[[], object], made: Path) -> float:
    """Return the seconds that `work` takes to make a file. Taking the place of a large one costs time of its own."""
    made.unlink(missing_ok=True)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class _Tool:
    """llama-quantize with the same job: returns the seconds it took."""

    def __init__(self, setup: Setup, source: Path, ftype: str) -> None:
        self.made = source.with_name("theirs.gguf")
        self.command = [
            str(tool("llama-quantize", setup.tools)), str(source), str(self.made), ftype, str(setup.threads),
        ]  # fmt: skip

    def __call__(self, _number: int) -> float:
        return _timed(lambda: subprocess.run(self.command, check=True, capture_output=True), self.made)


def _until_it_rests() -> None:
    """Wait until the processes that this one started do nothing, so that what follows has the processor for itself."""
    before = -1.0
    while (now := _worked()) != before:
        before = now
        time.sleep(0.2)


def _worked() -> float:
    """Return the processor time of this process's children, in seconds."""
    total = 0.0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            used = child.cpu_times()
            total += used.user + used.system
    return total


def _in_a_notebook(setup: Setup, source: Path, ftype: str, limit: float, job: str, rounds: int) -> list[Row]:
    """Measure the first job of a fresh kernel, in a cell that is run a moment after ``%load_ext``."""
    ours, told = source.with_name("ours.gguf"), source.with_name("seconds.txt")
    theirs = _Tool(setup, source, ftype)
    cells = []

    def call(_number: int) -> float:
        ours.unlink(missing_ok=True)
        with Kernel() as kernel:
            kernel.run("%load_ext llama_magic")
            kernel.run("import time, pathlib\nimport llama_magic as lm")
            time.sleep(_TYPING_S)
            cell = kernel.run(
                "start = time.perf_counter()\n"
                f"lm.quantize({str(source)!r}, {ftype!r}, {str(ours)!r}, n_threads={setup.threads})\n"
                f"_ = pathlib.Path({str(told)!r}).write_text(str(time.perf_counter() - start))"
            )
            cells.append(cell.messages[-1].at_s)
        return float(told.read_text())

    pairs = turns(call, theirs, setup.rounds(rounds, 2))
    note = (
        f"a fresh kernel, {_TYPING_S:g} s after `%load_ext`, which has let a worker start; "
        f"the whole cell as a front end sees it: {statistics.median(cells):.2f} s"
    )
    return [_row(f"quantize {job}, first job of a notebook, wall time / llama-quantize", limit, pairs, note)]


def _row(what: str, limit: float | None, pairs: list[tuple[float, float]], note: str) -> Row:
    ratios, note = [a / b for a, b in pairs], f"{note}; {_middle(pairs)}"
    return info(what, ratios, note=note) if limit is None else at_most(what, limit, ratios, note=note)


def _middle(pairs: list[tuple[float, float]]) -> str:
    ours, theirs = sorted(pairs)[len(pairs) // 2]
    return f"a round in the middle: {ours:.2f} s, llama-quantize {theirs:.2f} s"


def _memory(setup: Setup, source: Path) -> Row:
    """Return the peak of our worker's resident memory less that of the tool, in MB."""
    before = {child.pid for child in psutil.Process().children()}
    keep_spare(True)
    try:
        prepare_spare()
        _until_it_rests()
        (worker,) = {child.pid for child in psutil.Process().children()} - before
        with _Peak(worker) as ours:
            quantize(source, _LARGE, source.with_name("ours.gguf"), n_threads=setup.threads, force=True)
    finally:
        keep_spare(False)
    process = subprocess.Popen(
        _Tool(setup, source, _LARGE).command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
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
