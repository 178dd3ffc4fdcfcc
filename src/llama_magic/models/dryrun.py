"""What a model would take, computed by llama.cpp itself without loading weights: for the worker only."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidModelError
from llama_magic.models.loading import SOLO_SEQUENCES, context_settings, model_settings
from llama_magic.models.metadata import TENSOR_TYPES, ArrayLength, ModelMetadata
from llama_magic.models.options import LoadOptions
from llama_magic.native import LogCapture, NativeContext, NativeModel
from llama_magic.native.breakdown import Buffers, breakdown, logged_buffers
from llama_magic.native.heap import process_memory, trim

__all__ = ["DryRun", "dry_run", "write_header"]


@dataclass(frozen=True, slots=True)
class DryRun:
    """What one load would take.

    Attributes
    ----------
    buffers
        Bytes by buffer type; main memory is device "CPU".
    output
        Bytes of the buffer for logits, in main memory.
    host
        Bytes that vocabulary, metadata and the computation's plan take, as measured.
    n_layer
        Layers that can be offloaded, the output layer included.
    """

    buffers: tuple[Buffers, ...]
    output: int
    host: int
    n_layer: int

    def of(self, device: str) -> tuple[int, int, int]:
        """Return the bytes of weights, KV cache and compute buffers on a device ("CPU": main memory)."""
        rows = [row for row in self.buffers if (row.device or "CPU") == device or (device == "CPU" and row.is_host)]
        if device != "CPU":
            rows = [row for row in rows if not row.is_host]
        return sum(row.weights for row in rows), sum(row.kv_cache for row in rows), sum(row.compute for row in rows)


def dry_run(
    path: str,
    options: LoadOptions,
    n_ctx: int,
    threads: int,
    log: LogCapture,
    *,
    n_gpu_layers: int | None = None,
    flash_attn: int | None = None,
    n_seq_max: int = SOLO_SEQUENCES,
) -> DryRun:
    """Let llama.cpp lay out a model and a context without memory for them, and read what they would take.

    Raises
    ------
    InvalidModelError
        llama.cpp can not load the file.
    """
    trim()
    before = process_memory()
    model = NativeModel(path, log, settings=model_settings(options, n_gpu_layers=n_gpu_layers), no_alloc=True)
    try:
        context = NativeContext(
            model, context_settings(options, n_ctx, threads, n_seq_max=n_seq_max, flash_attn=flash_attn)
        )
        try:
            lines = [text for _, text in log.lines]
            rows = breakdown(context)
            if rows is None:
                rows = _from_log(lines, model.size)
            logged = logged_buffers(lines)
            output = sum(kinds.get("output", 0) for kinds in logged.values())
            trim()
            held = max(0, process_memory() - before)
        finally:
            context.close()
        return DryRun(rows, output, held, model.n_layer + 1)
    finally:
        model.close()


def _from_log(lines: list[str], weights: int) -> tuple[Buffers, ...]:
    """Return what the log tells where the library can not be asked: everything in main memory.

    llama.cpp logs the cache's size as a whole (``llama_kv_cache: size = …``), and compute buffers one by one.
    """
    cache = 0
    for line in lines:
        _, found, rest = line.partition(": size =")
        if found and "cells" in rest:
            cache += round(float(rest.split("MiB")[0]) * 2**20)
    compute = sum(kinds.get("compute", 0) for kinds in logged_buffers(lines).values())
    return (Buffers("CPU", "CPU", True, weights, cache, compute),)


# a file that has the header of another one, and no weights

_KINDS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
          "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}  # fmt: skip
_ALIGNMENT = 32


def write_header(metadata: ModelMetadata, path: Path) -> None:
    """Write a file that llama.cpp can lay out like the model itself: its architecture and tensors, empty.

    The weights are a hole in the file and take no room on the disk. The vocabulary is left out.

    Raises
    ------
    InvalidModelError
        A value that the architecture needs was not kept, or a tensor is of an unknown type.
    """
    arch = metadata.architecture
    pairs = [_pair("general.architecture", arch), _pair("tokenizer.ggml.model", "no_vocab")]
    values = {**metadata.values, f"{arch}.vocab_size": metadata.n_vocab}
    for key, value in values.items():
        if key.startswith(f"{arch}.") or key == "general.file_type":
            text = _pair(key, value)
            if text is not None:
                pairs.append(text)
    numbers = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
    tensors, at = [], 0
    for tensor in metadata.tensors:
        if tensor.type not in numbers:
            raise InvalidModelError(f"{metadata.path} holds tensors of the unknown type {tensor.type}")
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        tensors.append(_text(tensor.name) + shape + struct.pack("<IQ", numbers[tensor.type], at))
        at += -(-tensor.size // _ALIGNMENT) * _ALIGNMENT
    found = [pair for pair in pairs if pair is not None]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(found)) + b"".join(found) + b"".join(tensors)
    head += b"\0" * (-len(head) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + at)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: Any) -> bytes | None:
    """Return a pair as GGUF has it, in the types that llama.cpp reads them in; None for what was not kept."""
    name = _text(key)
    if isinstance(value, ArrayLength):
        kind = _KINDS.get(value.type)
        if kind is None or len(value.numbers) != value.length:
            return None
        whole = kind[1] not in "fd"
        items = [int(number) if whole else number for number in value.numbers]
        return name + struct.pack("<IIQ", 9, kind[0], len(items)) + struct.pack(f"<{len(items)}{kind[1]}", *items)
    if isinstance(value, bool):
        return name + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        if -(2**31) <= value < 0:
            return name + struct.pack("<Ii", 5, value)
        return name + struct.pack("<II", 4, value) if 0 <= value < 2**32 else None
    if isinstance(value, float):
        return name + struct.pack("<If", 6, value)
    return name + struct.pack("<I", 8) + _text(value) if isinstance(value, str) else None
