"""Four samples in one batch against one, with SmolLM2 as F16.

Q4_1 has no fast kernel for small batches in this llama.cpp, so the file is made into F16 first: the
weights are those of the quantized file, the computing is that of F16.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.rows import Row, at_least
from benchmarks.runner import BUILD, Setup, generate, prompt, turns, worker
from llama_magic.inference.params import SamplingParams

__all__ = ["measure"]

_TOKENS, _SAMPLES = 128, 4
_MAKE = """
import ctypes, sys
from llama_cpp import llama_cpp as lib
lib.llama_backend_init()
params = lib.llama_model_quantize_default_params()
params.ftype = lib.LLAMA_FTYPE_MOSTLY_F16
params.allow_requantize = True
sys.exit(lib.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""


def measure(setup: Setup) -> list[Row]:
    """Total tok/s of four samples of 128 tokens / of one."""
    spec = setup.spec(str(_f16(setup.spec().path)))

    with worker(spec) as client:

        def run(number: int, samples: int) -> float:
            params = SamplingParams(max_tokens=_TOKENS, ignore_eos=True, seed=1, samples=samples)
            return generate(client, spec, prompt(number), params).tps

        run(99, _SAMPLES)
        pairs = turns(lambda n: run(n, _SAMPLES), lambda n: run(n, 1), setup.rounds(7, 1))
    four, one = (statistics.median(values) for values in zip(*pairs, strict=True))
    what = "4 samples of 128 tokens in one batch / one sample, total tok/s, SmolLM2 as F16"
    return [at_least(what, 1.6, [a / b for a, b in pairs], note=f"medians: {four:.1f} and {one:.1f} tok/s")]


def _f16(source: str) -> Path:
    target = BUILD / "smollm2-f16.gguf"
    if not target.exists():
        BUILD.mkdir(exist_ok=True)
        part = target.with_suffix(".part")
        subprocess.run([sys.executable, "-c", _MAKE, source, str(part)], check=True, capture_output=True)
        part.replace(target)
    return target
