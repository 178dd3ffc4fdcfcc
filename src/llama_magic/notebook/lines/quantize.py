"""Subcommands that plan and make quantized files."""

from __future__ import annotations

from llama_magic.notebook.converters import identifier, integer
from llama_magic.notebook.flags import Flag, own_flag, own_switch
from llama_magic.notebook.parsers import Parser
from llama_magic.quantization.ftypes import FTYPES, QUANTIZABLE

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.quantize"
_THREADS = integer(1, "a number of threads, 1 or more (-1: as many as this container may use)", {"-1": None, "0": None})
_TYPES = tuple(ftype.name for ftype in FTYPES)
_LAYER = integer(0, "numbers of layers separated by commas, for example 20,21")


def _layers(text: str) -> tuple[int, ...]:
    return tuple(_LAYER(part.strip()) for part in text.split(","))


# fmt: off
#: What changes the result, in plans too.
_SETTINGS: tuple[Flag, ...] = (
    own_flag("--imatrix", "imatrix", "FILE", str,
             "importance matrix (%llama imatrix makes one); types below 3 bits need it", complete="file"),
    own_flag("--tensor-type", "tensor_types", "REGEX=TYPE", str,
             "type of the tensors whose names match; may be repeated, the first that matches holds", repeat=True),
    own_flag("--output-tensor-type", "output_tensor_type", "TYPE", str,
             "type of the output tensor", complete=QUANTIZABLE),
    own_flag("--token-embedding-type", "token_embedding_type", "TYPE", str,
             "type of the token embeddings", complete=QUANTIZABLE),
    own_switch("--leave-output-tensor", "leave_output_tensor", "do not quantize output.weight"),
    own_switch("--pure", "pure", "all tensors in one type instead of a mixture"),
    own_flag("--prune-layers", "prune_layers", "L0,L1,…", _layers, "leave these layers out"),
    own_flag("--override-kv", "override_kv", "KEY=TYPE:VALUE", str,
             "set metadata; TYPE is int, float, bool or str; may be repeated", repeat=True),
    own_switch("--keep-split", "keep_split", "as many files as the source has"),
)

PARSERS: tuple[Parser, ...] = (
    Parser("plan", "plan MODEL TYPE … [flags]",
           "tell size, bits per weight and the type of every tensor before quantizing",
           only=("out",), words=99, complete="model,ftype", own=_SETTINGS,
           examples=("%llama plan model-f16.gguf Q4_K_M Q2_K", "%llama plan smollm2 Q8_0 --pure"),
           run=f"{_HERE}:plan"),
    Parser("quantize", "quantize MODEL TYPE … [flags]",
           "make a smaller model file: 1.5 to 8 bits per weight",
           words=99, complete="model,ftype",
           own=(
               own_switch("--list", "list", "list all types and when to take which"),
               own_flag("-o --out --output", "place", "DIR|FILE", str,
                        "folder or file to write (without it: beside the model, or this folder)", complete="file"),
               *_SETTINGS,
               own_switch("--allow-requantize", "allow_requantize", "quantize what is quantized already"),
               own_flag("-t --threads", "n_threads", "N", _THREADS, "threads"),
               own_switch("--force", "force", "overwrite files that are there"),
               own_flag("--result", "out", "NAME", identifier,
                        "put the result into the variable NAME", complete="variable"),
           ),
           examples=("%llama quantize model-f16.gguf Q4_K_M",
                     "%llama quantize model-f16.gguf Q8_0 Q4_K_M Q2_K --out quantized/",
                     "%llama quantize model-f16.gguf IQ2_XXS --imatrix model.imatrix.gguf",
                     "%llama quantize smollm2 F16 --allow-requantize"),
           run=f"{_HERE}:quantize"),
)
# fmt: on
