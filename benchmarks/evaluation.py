"""Perplexity and KL divergence against llama-perplexity: the same files and text, from start to the last figure.

One base and four quantizations. The tool reads with the base once and writes its logits to a file, then once with each
quantization; ours is one call. It counts from the call in the kernel, so the start of the worker is in it; the tool
counts as processes. What the disk and the memory see is measured in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, at_most
from benchmarks.runner import BUILD, Setup, turns
from benchmarks.tools import tool
from llama_magic.api.evaluate import kl_divergence
from llama_magic.api.quantize import quantize
from llama_magic.evaluation.requests import EVALUATION, EvaluateRequest, EvaluationProgress
from llama_magic.evaluation.results import KLDivergence
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.progress import Progress

__all__ = ["measure"]

_LEVELS = ("Q8_0", "Q4_1", "Q4_0", "Q2_K")
#: How far a log-probability can be off by the 16 bits that the tool stores.
_STEP = 1.5e-4
#: Statistics that the tool prints, by line; numbers of a line are a value and its error.
_LINE = re.compile(r"^ *([^\n:]*(?:PPL|KLD|Δp|Same top p)[^\n:]*?) *: +(-?[\d.]+[^\n]*)$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+\.(\d+)")


def measure(setup: Setup) -> list[Row]:
    """Agreement, wall time, disk and memory."""
    chunks = 4 if setup.quick else 8
    base, levels = _files(setup)
    with_tool = _Tool(setup, base, levels, chunks)
    results: list[Any] = []

    def ours(_number: int) -> float:
        start = time.perf_counter()
        results[:] = kl_divergence(
            [str(path) for path in levels], str(base), chunks=chunks, n_threads=setup.threads
        )  # fmt: skip
        return time.perf_counter() - start

    try:
        pairs = turns(ours, with_tool.run, setup.rounds(3, 1))
        written = with_tool.store.stat().st_size
        probed = _probed(setup, base, levels, chunks)
        middle = sorted(pairs)[len(pairs) // 2]
        what = f"F16 and {len(levels)} quantizations of SmolLM2, {chunks} chunks of 512 tokens"
        note = f"a round in the middle: {middle[0]:.1f} s, llama-perplexity {middle[1]:.1f} s"
        return [
            *_agreement(with_tool.said, results, probed),
            at_most(f"{what}: wall time / llama-perplexity", 0.9, [a / b for a, b in pairs], note=note),
            at_most(f"{what}: disk written", 0, [probed["written"] / 2**20], "MiB",
                    f"llama-perplexity writes {written / 2**20:.0f} MiB"),
            at_most(f"{what}: memory beyond the models", 400, [probed["memory"] / 1e6], "MB"),
        ]  # fmt: skip
    finally:
        with_tool.store.unlink(missing_ok=True)


def _files(setup: Setup) -> tuple[Path, list[Path]]:
    """Return the base and its quantizations, made once."""
    folder = BUILD / "levels"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(setup.spec().path)
    stem = source.name.rsplit(".", 2)[0]
    base = folder / f"{stem}.F16.gguf"
    if not base.exists():
        quantize(source, "F16", folder, allow_requantize=True)
    levels = [folder / f"{stem}.{name}.gguf" for name in _LEVELS]
    missing = [name for name, path in zip(_LEVELS, levels, strict=True) if not path.exists()]
    if missing:
        quantize(base, missing, folder)
    return base, levels


class _Tool:
    """llama-perplexity doing the same."""

    def __init__(self, setup: Setup, base: Path, levels: list[Path], chunks: int) -> None:
        self.command = [str(tool("llama-perplexity", setup.tools)), "-t", str(setup.threads)]
        self.base, self.levels, self.chunks = base, levels, chunks
        self.store = BUILD / "logits.kld"
        self.said: dict[str, str] = {}

    def run(self, _number: int) -> float:
        self.store.unlink(missing_ok=True)
        start = time.perf_counter()
        self._call("-m", str(self.base), "-f", str(EVALUATION), "--chunks", str(self.chunks))
        for path in self.levels:
            self.said[str(path)] = self._call("-m", str(path), "--kl-divergence")
        return time.perf_counter() - start

    def _call(self, *arguments: str) -> str:
        command = [*self.command, *arguments, "--kl-divergence-base", str(self.store)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# -- agreement ---------------------------------------------------------------------------------------------------------


def _agreement(said: dict[str, str], exact: list[KLDivergence], probed: dict[str, Any]) -> list[Row]:
    every = [pair for path, text in said.items() for pair in _pairs(text, probed["rounded"][path])]
    plain = [pair for found in exact for pair in _pairs(said[found.path], repr(found))]
    kld = [pair for pair in plain if pair[0] in ("Mean KLD", "Median KLD", "99.9% KLD", "Maximum KLD")]
    other = [pair for pair in plain if "KLD" not in pair[0]]
    rounded = "against llama-perplexity, base rounded to 16 bits as there"
    return [
        _worst(f"PPL, Δp and same top {rounded}", 0.01, [pair for pair in every if "KLD" not in pair[0]]),
        _worst(f"every statistic of KLD {rounded}", 0.02, [pair for pair in every if "KLD" in pair[0]]),
        _worst("PPL, Δp and same top against llama-perplexity, base as it is", 0.01, other),
        _worst("mean, median, 99.9 % and maximum KLD against llama-perplexity, base as it is", 0.02, kld),
    ]


def _pairs(theirs: str, ours: str) -> Iterator[tuple[str, float]]:
    """Yield name and relative difference of every number, less what printing rounds away."""
    found = {" ".join(name.split()): rest for name, rest in _LINE.findall(ours)}
    for line, rest in _LINE.findall(theirs):
        name = " ".join(line.split())
        for mine, other in zip(_NUMBER.finditer(found[name]), _NUMBER.finditer(rest), strict=True):
            digits = min(len(mine[1]), len(other[1]))
            apart = abs(float(mine[0]) - float(other[0])) - 10.0**-digits
            # below three digits that are printed, or a step of the 16 bits that the tool stores, it means nothing
            least = max(100 * 10.0**-digits, _STEP if "KLD" in name else 0.0)
            yield name, max(apart, 0.0) / max(abs(float(other[0])), least)


def _worst(what: str, limit: float, pairs: list[tuple[str, float]]) -> Row:
    name, apart = max(pairs, key=lambda pair: pair[1])
    note = f"{len(pairs)} numbers; the worst: {name}"
    return at_most(f"{what}: largest relative difference", limit, [apart], note=note)


# -- disk and memory -------------------------------------------------------------------------------------------------


def _probed(setup: Setup, base: Path, levels: list[Path], chunks: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.evaluation", str(setup.threads), str(chunks), str(base)]
    # what Python compiles is not written by the evaluation
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*command, *map(str, levels)], check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def _probe(threads: int, chunks: int, base: str, levels: list[str]) -> dict[str, Any]:
    """Evaluate in this process, and watch its memory and what it writes; the weights are mapped or loaded before."""
    from llama_magic.evaluation import evaluating
    from llama_magic.native import LogCapture, WorkerTools

    log = LogCapture()
    log.install()
    options = LoadOptions(n_threads=threads)
    request = EvaluateRequest(
        tuple(ModelSpec(path, path, options) for path in levels), ModelSpec(base, base, options), chunks=chunks,
        round_base=True,
    )  # fmt: skip
    sizes: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            sizes.append(_status("RssAnon"))

    watcher = threading.Thread(target=watch)

    def report(progress: Progress) -> None:
        if isinstance(progress, EvaluationProgress) and not sizes:
            sizes.append(_status("RssAnon"))
            watcher.start()

    before = _written()
    found = evaluating.run(request, WorkerTools(report, lambda: False, log))
    over.set()
    watcher.join()
    rounded = {results[0].path: repr(results[0]) for results in found.results}
    return {"memory": max(sizes) - sizes[0], "written": _written() - before, "rounded": rounded}


def _written() -> int:
    """Bytes that this process has caused to be sent to a disk."""
    return int(re.search(r"^write_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])  # type: ignore[index]


if __name__ == "__main__":
    print(json.dumps(_probe(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])))
