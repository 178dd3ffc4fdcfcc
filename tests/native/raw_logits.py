"""Raw logits of a prompt, computed by a process with one backend: ``python -m tests.native.raw_logits``.

Logits do not leave the worker, so a test that compares those of two backends computes them here.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["raw_logits"]


def raw_logits(model: str, prompt: str, folder: Path, module: str = "", device: str = "") -> npt.NDArray[np.float32]:
    """Return the logits of all tokens of a prompt, shape (tokens, n_vocab).

    `module` is the path of a backend module and `device` the device that holds the model; without them, the CPU.
    """
    target = folder / f"{device or 'CPU'}.npy"
    command = [sys.executable, "-m", "tests.native.raw_logits", model, prompt, str(target), module, device]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.asarray(np.load(target))


def _compute(model: str, prompt: str, target: str, module: str, device: str) -> None:
    from llama_magic.models.loading import context_settings, model_settings
    from llama_magic.models.options import LoadOptions
    from llama_magic.native import LogCapture, NativeContext, NativeModel
    from llama_magic.native.registry import load_module

    log = LogCapture()
    log.install()
    if module:
        load_module(module, log)
    options = LoadOptions(n_ctx=256, flash_attn="off", devices=(device,) if device else ())
    loaded = NativeModel(model, log, lambda _fraction: True, model_settings(options))
    tokens = loaded.tokenize(prompt, add_special=True, parse_special=False)
    count = len(tokens)
    # separate: every token of a batch may have logits
    context = NativeContext(loaded, replace(context_settings(options, 256, 2), separate=True))
    context.step(tokens, range(count), [0] * count)
    np.save(target, context.logits_of(0, count))
    context.close()
    loaded.close()


if __name__ == "__main__":
    _compute(*sys.argv[1:])
