"""From a request to what llama.cpp's quantizer takes: types, matrix, metadata. Runs in the worker."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llama_magic.backends.host import default_threads
from llama_magic.errors import InvalidRequestError
from llama_magic.models.metadata import TENSOR_TYPES, ModelMetadata
from llama_magic.native.quantize import KvOverride, QuantizeSettings, TensorLog
from llama_magic.quantization.ftypes import COPY, find_ftype, tensor_type_number
from llama_magic.quantization.requests import QuantizeOptions
from llama_magic.quantization.results import TensorChoice

if TYPE_CHECKING:  # numpy takes as long to import as a small model to quantize
    import numpy as np
    import numpy.typing as npt

    from llama_magic.quantization.imatrix_file import ImportanceMatrix

__all__ = ["Prepared", "choices", "prepare", "size_notes"]

_SIZES = {name: (block, width) for name, block, width in TENSOR_TYPES.values()}
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What all types of one request share.

    Attributes
    ----------
    settings
        For llama.cpp; type and dry run are set for each.
    provenance
        Keys about the importance matrix that go into the new file.
    notes
        What is worth knowing about the matrix.
    """

    settings: QuantizeSettings
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def of(self, ftype: str, *, dry_run: bool = False) -> QuantizeSettings:
        """Return the settings for one type."""
        found = find_ftype(ftype)
        return replace(self.settings, ftype=found.number, only_copy=found.name == COPY, dry_run=dry_run)


def prepare(options: QuantizeOptions, metadata: ModelMetadata) -> Prepared:
    """Read the importance matrix and turn names of types into numbers.

    Raises
    ------
    InvalidRequestError
        The matrix is of another model, or a type can not hold the rows of its tensor.
    """
    _check_types(options, metadata)
    importance: dict[str, npt.NDArray[np.float32]] = {}
    overrides = [KvOverride(*override) for override in options.override_kv]
    provenance: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if options.imatrix is not None:
        from llama_magic.quantization.imatrix_file import read_imatrix

        matrix = read_imatrix(options.imatrix)
        notes = _check_matrix(matrix, metadata, options.imatrix_name)
        importance = {name: entry.importance() for name, entry in matrix.entries.items()}
        provenance = _provenance(matrix, options.imatrix_name)
        overrides += [
            KvOverride(key, "str" if isinstance(value, str) else "int", value) for key, value in provenance.items()
        ]
    settings = QuantizeSettings(
        ftype=0,
        n_threads=options.n_threads or default_threads(),
        output_tensor_type=_number(options.output_tensor_type),
        token_embedding_type=_number(options.token_embedding_type),
        allow_requantize=options.allow_requantize,
        quantize_output_tensor=not options.leave_output_tensor,
        pure=options.pure,
        keep_split=options.keep_split,
        imatrix=importance,
        kv_overrides=overrides,
        tensor_types=[(pattern, tensor_type_number(name)) for pattern, name in options.tensor_types],
        prune_layers=options.prune_layers,
    )
    return Prepared(settings, provenance, notes)


def _number(name: str | None) -> int | None:
    return None if name is None else tensor_type_number(name)


def _check_types(options: QuantizeOptions, metadata: ModelMetadata) -> None:
    """Refuse what makes llama.cpp abort: these two types are taken without a look at the tensor's shape."""
    named = {"token_embd.weight": options.token_embedding_type, "output.weight": options.output_tensor_type}
    for tensor in metadata.tensors:
        wanted = named.get(tensor.name)
        if wanted is not None and tensor.shape[0] % _SIZES[wanted][0]:
            fitting = [name for name in ("Q8_0", "Q5_1", "Q4_0") if tensor.shape[0] % _SIZES[name][0] == 0]
            raise InvalidRequestError(
                f"{tensor.name} can not be {wanted}: its rows of {tensor.shape[0]} weights do not divide by "
                f"{_SIZES[wanted][0]}. What fits: {', '.join([*fitting, 'F16'])}."
            )
    layers = metadata.n_layer
    beyond = [layer for layer in options.prune_layers if not 0 <= layer < layers]
    if beyond:
        raise InvalidRequestError(f"there is no layer {beyond[0]} to prune: the model has 0 to {layers - 1}")
    if len(set(options.prune_layers)) >= layers > 0:
        raise InvalidRequestError(f"all {layers} layers would be pruned; leave some")
    if metadata.values.get("general.alignment", 32) != 32 and not any(
        key == "general.alignment" for key, _, _ in options.override_kv
    ):
        # llama.cpp copies the key but aligns the new file's tensors to 32 bytes all the same
        raise InvalidRequestError(
            f"{metadata.path} aligns its tensors to {metadata.values['general.alignment']} bytes, the quantizer to 32; "
            "with --override-kv general.alignment=int:32 the new file says so"
        )


# -- the importance matrix --------------------------------------------------------------------------------------------


def _check_matrix(matrix: ImportanceMatrix, metadata: ModelMetadata, name: str) -> tuple[str, ...]:
    tensors = {tensor.name: tensor for tensor in metadata.tensors}
    what = f"{name} is the importance matrix of another model"
    if not any(weight in tensors for weight in matrix.entries):
        some = next(iter(matrix.entries), "none")
        raise InvalidRequestError(f"{what}: none of its {len(matrix.entries)} tensors ({some} …) is in this one")
    for weight, entry in matrix.entries.items():
        tensor = tensors.get(weight)
        if tensor is not None:
            columns = tensor.shape[0] * math.prod(tensor.shape[2:3])
            if entry.size != columns and weight not in ("token_embd.weight", "per_layer_token_embd.weight"):
                raise InvalidRequestError(
                    f"{what}: it has {entry.size:,} columns for {weight}, the model has {columns:,}"
                )
        elif _LAYER.match(weight):
            raise InvalidRequestError(f"{what}: it has {weight}, which this model of {metadata.n_layer} layers has not")
    missing = [
        tensor.name
        for tensor in metadata.tensors
        if len(tensor.shape) > 1 and _LAYER.match(tensor.name) and tensor.name.endswith(".weight")
        and tensor.name not in matrix.entries and "norm" not in tensor.name and "_inp." not in tensor.name
    ]  # fmt: skip
    if missing:
        return (f"The importance matrix says nothing about {len(missing)} tensors ({missing[0]} …).",)
    return ()


def _provenance(matrix: ImportanceMatrix, name: str) -> dict[str, Any]:
    """Return the keys that llama-quantize sets (`tools/quantize/quantize.cpp`), in its order."""
    keys: dict[str, Any] = {"quantize.imatrix.file": name}
    if matrix.datasets:
        keys["quantize.imatrix.dataset"] = matrix.datasets[0]
    keys["quantize.imatrix.entries_count"] = len(matrix.entries)
    if matrix.chunk_count > 0:
        keys["quantize.imatrix.chunks_count"] = matrix.chunk_count
    return keys


# -- what llama.cpp said ----------------------------------------------------------------------------------------------


def choices(told: TensorLog) -> tuple[TensorChoice, ...]:
    """Return what the log tells of each tensor."""
    found = []
    for line in told.tensors:
        shape = line.shape
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        before, after = line.source_type.upper(), line.type.upper()
        fallen = told.fallbacks.get(line.name)
        wanted, reason = "", ""
        if fallen is not None:
            columns, block, name, _ = fallen
            wanted, reason = name.upper(), f"rows of {columns:,} weights do not divide by {block}"
        found.append(
            TensorChoice(line.name, shape, before, after, _bytes(shape, before), _bytes(shape, after), wanted, reason)
        )
    return tuple(found)


def _bytes(shape: tuple[int, ...], type_name: str) -> int:
    block, width = _SIZES[type_name]
    return math.prod(shape) // block * width


def size_notes(ftype: str, tensors: tuple[TensorChoice, ...], options: QuantizeOptions) -> tuple[str, ...]:
    """Explain the token embeddings that llama.cpp keeps at 8 bits without calling it a fallback."""
    names = {tensor.name: tensor for tensor in tensors}
    tensor = names.get("output.weight") or names.get("token_embd.weight")
    block = _SIZES[find_ftype(ftype).tensor_type][0]
    named = options.output_tensor_type or options.token_embedding_type
    if tensor is None or named or tensor.type != "Q8_0" or not tensor.shape[0] % block or ftype == COPY:
        return ()
    share = 100 * tensor.size / max(1, sum(entry.size for entry in tensors))
    words = (
        f"{tensor.name} stays Q8_0, {share:.0f} % of the file: its rows of {tensor.shape[0]:,} weights do not "
        f"divide by {block}."
    )
    return (words,)
