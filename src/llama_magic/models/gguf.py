"""Read what a GGUF file says of itself, without loading it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files come from
strangers: every count is checked against the file's size before it is used.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidModelError, ModelNotFoundError

__all__ = ["FTYPES", "TENSOR_TYPES", "ArrayLength", "ModelMetadata", "TensorInfo", "read_metadata"]

#: ggml_type: name, weights in a block, bytes of a block (ggml.c, `type_traits`).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

#: general.file_type to the name of the quantization (llama.h, `llama_ftype`).
FTYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_TENSORS = 1 << 20
_MAX_KEYS = 1 << 16


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's name, shape (ggml's order: rows last), type, offset in the data part and bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a GGUF file says of itself.

    Attributes
    ----------
    path
        The file.
    values
        Its key-value pairs; an array is kept as its length (`ArrayLength`).
    tensors
        Its tensors.
    data_offset
        Byte at which tensor data begin; all before it is header.
    """

    path: str
    values: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int = field(default=0)

    def __repr__(self) -> str:
        return f"ModelMetadata({self.path!r}, {self.architecture}, {self.ftype}, {self.n_params:,} parameters)"

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture's own keys: ``get("block_count")`` reads ``llama.block_count``."""
        return self.values.get(f"{self.architecture}.{key}", default)

    @property
    def architecture(self) -> str:
        """Such as "llama"."""
        return str(self.values.get("general.architecture", "unknown"))

    @property
    def name(self) -> str:
        """The model's own name, or the file's."""
        return str(self.values.get("general.name") or Path(self.path).stem)

    @property
    def ftype(self) -> str:
        """The file's quantization, such as "Q4_1"."""
        return FTYPES.get(self.values.get("general.file_type", -1), "unknown")

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def n_params(self) -> int:
        """Weights in all tensors."""
        total = 0
        for tensor in self.tensors:
            count = 1
            for length in tensor.shape:
                count *= length
            total += count
        return total

    @property
    def n_ctx_train(self) -> int:
        """Context length the model was trained for, in tokens; 0 where the file does not tell."""
        return int(self.get("context_length", 0))

    @property
    def n_layer(self) -> int:
        """Transformer layers."""
        return int(self.get("block_count", 0))

    @property
    def n_embd(self) -> int:
        """Width of the embeddings."""
        return int(self.get("embedding_length", 0))

    @property
    def n_vocab(self) -> int:
        """Entries of the vocabulary."""
        tokens = self.values.get("tokenizer.ggml.tokens")
        return tokens.length if isinstance(tokens, ArrayLength) else int(self.get("vocab_size", 0))

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template, None for a base model."""
        template = self.values.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    def header_sha256(self) -> str:
        """Return the SHA-256 of everything before the tensor data."""
        with Path(self.path).open("rb") as file:
            return hashlib.sha256(file.read(self.data_offset)).hexdigest()


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """Stands for an array that was skipped: its length, and its first values when they are numbers."""

    length: int
    numbers: tuple[float, ...] = ()


class _Reader:
    """Reads values from the mapped file; every read is checked against its end."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data = data
        self.path = path
        self.at = 0
        self.end = len(data)

    def fail(self, what: str) -> InvalidModelError:
        return InvalidModelError(f"{self.path} is not a usable GGUF file: {what}. Download or convert it again.")

    def take(self, count: int) -> int:
        at = self.at
        if count < 0 or at + count > self.end:
            raise self.fail("it ends in the middle of its header")
        self.at = at + count
        return at

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        length = self.number("Q")
        at = self.take(length)
        return self.data[at : at + length].decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        data, at, end = self.data, self.at, self.end
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                raise self.fail("it ends in the middle of its header")
            at += 8 + unpack(data, at)[0]
        if at > end:
            raise self.fail("it ends in the middle of its header")
        self.at = at

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.fail(f"it holds a value of unknown type {kind}")
        return self.number(_SCALARS[kind])

    def array(self) -> ArrayLength:
        kind, count = self.number("I"), self.number("Q")
        if count > self.end:
            raise self.fail(f"it claims an array of {count:,} entries")
        if kind == _STRING:
            self.skip_strings(count)
            return ArrayLength(count)
        if kind not in _SCALARS:
            raise self.fail(f"it holds an array of unknown type {kind}")
        code = _SCALARS[kind]
        at = self.take(count * struct.calcsize(code))
        kept = min(count, 1024)
        return ArrayLength(count, struct.unpack_from(f"<{kept}{code}", self.data, at))


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Return the metadata and tensor table of a GGUF file.

    Raises
    ------
    ModelNotFoundError
        There is no such file, or it is a folder.
    InvalidModelError
        It is empty, cut off, or no GGUF file; the message says which.
    """
    name = os.fspath(path)
    if Path(name).is_dir():
        raise ModelNotFoundError(f"{name} is a folder; name a .gguf file in it")
    try:
        with Path(name).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InvalidModelError(f"{name} is empty. Download or convert it again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Reader(data, name))
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {name}") from None
    except PermissionError:
        raise InvalidModelError(f"{name} can not be read: permission denied") from None


def _read(reader: _Reader) -> ModelMetadata:
    _check_magic(reader)
    reader.at = 4
    version = reader.number("I")
    if version not in (2, 3):
        raise reader.fail(f"it is of GGUF version {version}, this llama.cpp reads 2 and 3")
    n_tensors, n_keys = reader.number("Q"), reader.number("Q")
    if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
        raise reader.fail(f"it claims {n_tensors:,} tensors and {n_keys:,} keys")
    values = {}
    for _ in range(n_keys):
        key = reader.string()
        values[key] = reader.value(reader.number("I"))
    tensors = tuple(_tensor(reader) for _ in range(n_tensors))
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
        raise reader.fail(f"it claims an alignment of {alignment}")
    start = -(-reader.at // alignment) * alignment
    need = max((start + tensor.offset + tensor.size for tensor in tensors), default=start)
    if need > reader.end:
        missing = need - reader.end
        raise InvalidModelError(
            f"{reader.path} is cut off: {missing:,} of {need:,} bytes are missing. Download it again."
        )
    return ModelMetadata(reader.path, values, tensors, start)


def _check_magic(reader: _Reader) -> None:
    head = reader.data[:64]
    if head[:4] == b"GGUF":
        return
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InvalidModelError(
            f"{reader.path} is a web page, not a model: the download probably saved an error or login page. "
            "Download the file itself."
        )
    if head[:4] in (b"ggml", b"lmgg", b"fmgg", b"tjgg"):
        raise InvalidModelError(f"{reader.path} is in an old ggml format; convert the model to GGUF again")
    if start.startswith(b"version https://git-lfs"):
        raise InvalidModelError(f"{reader.path} is a Git LFS pointer; run git lfs pull to fetch the model itself")
    raise InvalidModelError(f"{reader.path} is not a GGUF file (it begins with {bytes(head[:4])!r})")


def _tensor(reader: _Reader) -> TensorInfo:
    name = reader.string()
    n_dims = reader.number("I")
    if n_dims > 4:
        raise reader.fail(f"tensor {name!r} claims {n_dims} dimensions")
    shape = tuple(reader.number("Q") for _ in range(n_dims))
    kind, offset = reader.number("I"), reader.number("Q")
    label, block, width = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
    count = 1
    for length in shape:
        count *= length
        if count > 1 << 62:
            raise reader.fail(f"tensor {name!r} claims {count} weights")
    return TensorInfo(name, shape, label, offset, count // block * width)
