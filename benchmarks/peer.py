"""llama-cpp-python's `Llama`, streaming, in a process of its own.

``python -m benchmarks.peer`` reads one JSON line a generation (text, tokens) and answers with one.
Both sides compute with the same file, context, threads and batch, and both take the likeliest token.
Flash attention is what each of them does by itself. `Llama` would leave its fast path to ignore the end
token, so its question whether a token is one is answered with no: that costs it nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from benchmarks.runner import ROOT
from llama_magic.models.options import ModelSpec

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Peer"]


class Peer:
    """The other process. `clocks` measures the time inside llama.cpp, too."""

    def __init__(self, spec: ModelSpec, *, n_ctx: int, clocks: bool = False) -> None:
        command = [sys.executable, "-m", "benchmarks.peer", "--model", spec.path]
        command += ["--threads", str(spec.options.n_threads), "--ctx", str(n_ctx), *(["--clocks"] if clocks else [])]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def generate(self, text: str, tokens: int) -> dict[str, float]:
        """Return rest_s, rest_tokens and, with clocks, outside_s."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"text": text, "tokens": tokens}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("the process with llama-cpp-python's Llama ended")
        answer: dict[str, float] = json.loads(line)
        return answer


def _answer(llama: Any, clocks: Any, request: dict[str, Any]) -> dict[str, float]:
    llama.reset()
    if clocks is not None:
        clocks.restart()
    first = 0.0
    for _ in llama.create_completion(request["text"], max_tokens=request["tokens"], temperature=0.0, stream=True):
        if not first:
            first = time.perf_counter()
    end = time.perf_counter()
    answer = {"rest_s": end - first, "rest_tokens": request["tokens"] - 1}
    if clocks is not None:
        read = clocks.read()
        answer["outside_s"] = end - read["first"] - read["inside_s"]
    return answer


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ctx", type=int, required=True)
    parser.add_argument("--clocks", action="store_true")
    arguments = parser.parse_args()
    from llama_cpp import Llama, llama_cpp

    from benchmarks.probe import Clocks

    lib: Any = llama_cpp
    lib.llama_vocab_is_eog = lambda _vocab, _token: False
    clocks = Clocks() if arguments.clocks else None
    if clocks is not None:
        clocks.install(lib, lib, "llama_sampler_sample")
    llama = Llama(
        arguments.model,
        n_ctx=arguments.ctx,
        n_batch=2048,
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
        verbose=False,
    )
    for line in sys.stdin:
        print(json.dumps(_answer(llama, clocks, json.loads(line))), flush=True)


if __name__ == "__main__":
    _main()
