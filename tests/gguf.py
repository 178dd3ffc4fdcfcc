"""Write small GGUF files, right and wrong ones. The format: docs/gguf.md of ggml."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Tensor", "read_gguf", "without_chat_template", "write_gguf", "write_split"]

Tensor = tuple[str, tuple[int, ...], int, bytes]


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, (np.uint16, np.int32)):
        return struct.pack("<IH", 2, value) if isinstance(value, np.uint16) else struct.pack("<Ii", 5, value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if value and isinstance(value[0], float):
        return struct.pack("<IIQ", 9, 6, len(value)) + struct.pack(f"<{len(value)}f", *value)
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def write_gguf(path: Path, values: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> Path:
    """Write a file of these values and tensors (name, shape, ggml type, data)."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    for key, value in values.items():
        head += _string(key) + _value(value)
    offset, data = 0, b""
    for name, shape, kind, content in tensors:
        head += _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", kind, offset)
        content += b"\0" * (-len(content) % 32)
        data += content
        offset += len(content)
    head += b"\0" * (-len(head) % 32)
    path.write_bytes(head + data)
    return path


def read_gguf(path: Path) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the values and tensors of a file, read by the gguf package."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = [
        (tensor.name, tuple(int(length) for length in tensor.shape), int(tensor.tensor_type), tensor.data.tobytes())
        for tensor in reader.tensors
    ]
    return values, tensors


def write_split(folder: Path, count: int) -> list[Path]:
    """Write a model in parts, one tensor in each."""
    paths = []
    for number in range(count):
        values: dict[str, Any] = {"split.no": number, "split.count": count, "split.tensors.count": count}
        if number == 0:
            values |= {"general.architecture": "llama", "general.name": "Parts"}
        path = folder / f"parts-{number + 1:05}-of-{count:05}.gguf"
        paths.append(write_gguf(path, values, [(f"blk.{number}.attn_q.weight", (64, 64), 2, bytes(2304))]))
    return paths


def without_chat_template(source: Path, target: Path) -> Path:
    """Copy a model and rename its chat template's key, which makes it look like a base model."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tokenizer.chat_template", 0, 8 << 20)
    data[at : at + 23] = b"tokenizer.chat_disabled"
    target.write_bytes(data)
    return target
