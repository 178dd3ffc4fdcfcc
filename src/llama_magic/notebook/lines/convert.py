"""Subcommands that convert checkpoints, and look at what quantizing does to single tensors."""

from __future__ import annotations

from llama_magic.notebook.converters import identifier, integer
from llama_magic.notebook.flags import own_flag, own_switch
from llama_magic.notebook.parsers import Parser
from llama_magic.quantization.ftypes import OUTTYPES

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.convert"

_THREADS = integer(1, "a number of threads, 1 or more")
_BLOCK = integer(-(1 << 62), "the number of a block: 0 is the first, -1 the last")

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("convert", "convert FOLDER|REPO [TYPE …] [flags]",
           "make a GGUF file of a Hugging Face checkpoint or LoRA adapter; with types, quantized ones",
           words=99, complete="model,ftype",
           own=(
               own_flag("--outtype", "outtype", "TYPE", str,
                        "type of the weights: f32, f16, bf16, q8_0, or auto (the checkpoint's own 16 bits)",
                        complete=OUTTYPES),
               own_flag("-o --out --output --outfile", "place", "DIR|FILE", str,
                        "folder or file to write (without it: this folder)", complete="file"),
               own_switch("--mmproj", "mmproj", "convert the projector for images or sound instead"),
               own_switch("--vocab-only", "vocab_only", "convert only the vocabulary"),
               own_flag("--base", "base", "FOLDER|REPO", str,
                        "the model that an adapter was trained on, where the adapter does not say", complete="file"),
               own_flag("--imatrix", "imatrix", "FILE", str, "importance matrix to quantize with", complete="file"),
               own_flag("-t --threads", "n_threads", "N", _THREADS, "threads to quantize with"),
               own_switch("--force", "force", "overwrite files that are there"),
               own_flag("--result", "out", "NAME", identifier,
                        "put the result into the variable NAME", complete="variable"),
           ),
           examples=("%llama convert ./my-checkpoint",
                     "%llama convert HuggingFaceTB/SmolLM2-135M-Instruct Q4_K_M",
                     "%llama convert ./my-checkpoint Q8_0 Q4_K_M --out models/",
                     "%llama convert ./my-adapter --base ./my-checkpoint --outtype f16"),
           run=f"{_HERE}:convert"),
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
