"""Subcommands that convert checkpoints, and look at what quantizing does to single tensors."""

from __future__ import annotations

from typing import Any

from llama_magic.api import tensors
from llama_magic.api.convert import convert_checkpoint
from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments

_OWN = "outtype mmproj vocab_only base imatrix n_threads force".split()


def convert(context: Context, arguments: Arguments) -> object:
    """``%llama convert FOLDER|REPO [TYPE …]``."""
    if not arguments.words:
        raise InvalidRequestError("convert needs a folder with a checkpoint, or owner/repo: %llama convert ./my-model")
    source, *rest = arguments.words
    types = [part for word in rest for part in word.split(",") if part]
    file = next((word for word in types if word.lower().endswith(".gguf")), None)
    if file is not None:
        raise InvalidRequestError(f"{file!r} is no quantization type; the file to write goes behind -o")
    given: dict[str, Any] = {name: arguments.get(name) for name in _OWN if name in arguments.values}
    return convert_checkpoint(source, types, out=arguments.get("place"), progress=context.on_progress, **given)


def microscope(context: Context, arguments: Arguments) -> object:
    """``%llama microscope MODEL TENSOR TYPE``."""
    if len(arguments.words) < 3:
        raise InvalidRequestError(
            "microscope needs a model, a tensor and a type: %llama microscope smollm2 blk.0.ffn_down.weight Q4_K"
        )
    ref, tensor, ftype = arguments.words
    return tensors.microscope(
        ref,
        tensor,
        ftype,
        block=arguments.get("block", 0),
        imatrix=arguments.get("imatrix"),
        n_threads=arguments.get("threads"),
        progress=context.on_progress,
    )


def tensor_errors(context: Context, arguments: Arguments) -> object:
    """``%llama errors QUANTIZED SOURCE``."""
    if len(arguments.words) < 2:
        raise InvalidRequestError("errors needs two models: %llama errors QUANTIZED.gguf SOURCE.gguf")
    quantized, source = arguments.words
    return tensors.tensor_errors(quantized, source, n_threads=arguments.get("threads"), progress=context.on_progress)
