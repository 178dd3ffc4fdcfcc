"""The headers of safetensors files: names, shapes and places of tensors. Whether a file is whole. No weights are read.

Format: eight bytes with the header's length, the header as JSON, the data
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidModelError
from llama_magic.units import format_bytes

__all__ = ["StoredTensor", "is_lfs_pointer", "read_header"]

#: The longest header that the format allows.
_MOST_HEADER = 100_000_000
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a safetensors file: `dtype` as the format names it ("BF16"), `size` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def n_params(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def is_lfs_pointer(path: Path) -> bool:
    """Tell whether a file only says where Git LFS keeps the real one."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_header(path: Path) -> list[StoredTensor]:
    """Return the tensors of a file in the order of its header.

    Raises
    ------
    InvalidModelError
        It is cut off, or no safetensors file.
    """
    size = path.stat().st_size
    if is_lfs_pointer(path):
        raise InvalidModelError(f"{path.name} is only a pointer of Git LFS; `git lfs pull` fetches the file itself")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= _MOST_HEADER:
            raise InvalidModelError(f"{path.name} is no safetensors file")
        if 8 + length > size:
            raise _cut_off(path, size, 8 + length)
        header = file.read(length)
    try:
        entries: Any = json.loads(header)
        found = [_tensor(name, entry) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidModelError(f"{path.name} is no safetensors file: its header can not be read") from None
    end = 8 + length + max((stop for _, stop in found), default=0)
    if end > size:
        raise _cut_off(path, size, end)
    return [tensor for tensor, _ in found]


def _tensor(name: str, entry: Any) -> tuple[StoredTensor, int]:
    start, stop = (int(place) for place in entry["data_offsets"])
    shape = tuple(int(length) for length in entry["shape"])
    if not 0 <= start <= stop or any(length < 0 for length in shape):
        raise ValueError(name)
    return StoredTensor(name, str(entry["dtype"]), shape, stop - start), stop


def _cut_off(path: Path, size: int, need: int) -> InvalidModelError:
    return InvalidModelError(
        f"{path.name} is cut off: it has {format_bytes(size)} ({size:,} bytes) of {format_bytes(need)} "
        f"({need:,} bytes); download it again"
    )
