"""Subcommands that plan and make quantized files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_magic.api.quantize import ftypes
from llama_magic.api.quantize import plan as make_plan
from llama_magic.api.quantize import quantize as make_files
from llama_magic.api.workers import prepare_soon
from llama_magic.errors import InvalidRequestError
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments
from llama_magic.quantization.ftypes import find_ftype

_SETTINGS = (
    "imatrix tensor_types output_tensor_type token_embedding_type leave_output_tensor pure prune_layers override_kv "
    "keep_split".split()
)
_OWN = "allow_requantize n_threads force".split()


def plan(context: Context, arguments: Arguments) -> object:
    """``%llama plan MODEL TYPE …``."""
    source, types = _words(arguments, "plan")
    plans = make_plan(source, types, progress=context.on_progress, **_given(arguments, _SETTINGS))
    return plans if len(plans) > 1 else plans[0]


def quantize(context: Context, arguments: Arguments) -> object:
    """``%llama quantize MODEL TYPE …``."""
    if arguments.get("list"):
        prepare_soon()  # one of them is chosen next
        return ftypes()
    source, types = _words(arguments, "quantize")
    place = arguments.get("place")
    chosen: Any = types[0] if len(types) == 1 else types
    if len(types) > 1 and place is not None and Path(place).suffix.lower() == ".gguf":
        raise InvalidRequestError(f"{len(types)} types need a folder, not one file: --out {Path(place).parent}")
    return make_files(
        source,
        chosen,
        dst=place,
        progress=context.on_progress,
        **_given(arguments, [*_SETTINGS, *_OWN]),
    )


def _given(arguments: Arguments, names: list[str]) -> dict[str, Any]:
    return {name: arguments.get(name) for name in names if name in arguments.values}


def _words(arguments: Arguments, name: str) -> tuple[str, list[str]]:
    """Return the source and the types; the types may also be separated by commas."""
    if not arguments.words:
        raise InvalidRequestError(f"{name} needs a model and a type: %llama {name} model-f16.gguf Q4_K_M")
    source, *rest = arguments.words
    types = [part for word in rest for part in word.split(",") if part]
    if not types:
        raise InvalidRequestError(
            f"name a quantization type: %llama {name} {source} Q4_K_M (%llama quantize --list shows all)"
        )
    file = next((word for word in types if word.lower().endswith(".gguf")), None)
    if file is not None:
        raise InvalidRequestError(f"{file!r} is no quantization type; the file to write goes behind -o")
    return source, [find_ftype(word).name for word in types]
