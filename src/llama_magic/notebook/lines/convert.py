"""Subcommands that convert checkpoints, and look at what quantizing does to single tensors."""

from __future__ import annotations

from llama_magic.notebook.converters import integer
from llama_magic.notebook.flags import own_flag
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.convert"

_THREADS = integer(1, "a number of threads, 1 or more")
_BLOCK = integer(-(1 << 62), "the number of a block: 0 is the first, -1 the last")

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("microscope", "microscope MODEL TENSOR TYPE [--block N]",
           "show what a quantization type does to a block of weights, and to the tensor around it",
           only=("out",), words=3, complete="model",
           own=(
               own_flag("--block", "block", "N", _BLOCK, "which block of the tensor, from 0; -1 is the last"),
               own_flag("--imatrix", "imatrix", "FILE", str, "importance matrix to quantize with", complete="file"),
               own_flag("-t --threads", "threads", "N", _THREADS, "threads to quantize with"),
           ),
           examples=("%llama microscope smollm2 blk.0.ffn_down.weight Q4_K --block 7",),
           run=f"{_HERE}:microscope"),
    Parser("errors", "errors QUANTIZED.gguf SOURCE.gguf",
           "show how far each tensor of a quantized model is from its source",
           only=("out",), words=2, complete="model",
           own=(own_flag("-t --threads", "threads", "N", _THREADS, "threads to compare with"),),
           examples=("%llama errors model-Q4_K_M.gguf model-F16.gguf --out errors",),
           run=f"{_HERE}:tensor_errors"),
)
# fmt: on
