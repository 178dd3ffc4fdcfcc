"""Read what a GGUF file says of itself, without loading it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files come from
strangers: every count is checked against the file's size before it is used, what is kept has a
limit, and what llama.cpp refuses (ggml/src/gguf.cpp) is refused here.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidModelError, InvalidRequestError, ModelNotFoundError
from llama_magic.models.metadata import FTYPES, TENSOR_TYPES, ArrayLength, ModelMetadata, TensorInfo

__all__ = [
    "FTYPES",
    "TENSOR_TYPES",
    "ArrayLength",
    "ModelMetadata",
    "TensorInfo",
    "join_parts",
    "part_names",
    "read_array",
    "read_header",
    "read_metadata",
]

#: Gives bytes of the file from an offset: at least so many, fewer only at its end.
Read = Callable[[int, int], bytes]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NAMES = {0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool", 8: "str", 10: "u64",
          11: "i64", 12: "f64"}  # fmt: skip
_KINDS = {name: kind for kind, name in _NAMES.items()}
_STRING, _ARRAY = 8, 9
#: Types that llama.cpp has removed (ggml.h, `ggml_type`).
_REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
            38: "IQ4_NL_8_8"}  # fmt: skip

# Limits far above every real model. They keep a hostile header from taking memory or time.
_MAX_TENSORS = 1 << 16
_MAX_KEYS = 1 << 14
_MAX_KEY = (1 << 16) - 1  # docs/gguf.md
_MAX_NAME = 63  # ggml.h, GGML_MAX_NAME
_MAX_TEXT = 1 << 20  # bytes of one text; a longer one is kept as its length
_MAX_TEXTS = 6 << 20  # bytes of all texts that are kept
_MAX_NUMBERS = 1024
_MAX_ALL_NUMBERS = 1 << 17
_MAX_SHORT_LIST = 64
_MAX_STRINGS = 1 << 21  # strings in all arrays together
_MAX_PARTS = 9999

_BLOCK = 1 << 10  # strings between two marks
_PIECE = 1 << 20  # bytes read at once from a local file
_ROLE = re.compile(r"tokenizer\.ggml\.(\w+)_token_id")
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.DOTALL)


class _Reader:
    """Reads values through a window on the file; every read is checked against the file's end."""

    def __init__(self, read: Read, size: int, name: str, order: str = "<", at: int = 0) -> None:
        self.name = name
        self.size = size
        self.order = order
        self.texts = _MAX_TEXTS
        self.numbers = _MAX_ALL_NUMBERS
        self.strings = _MAX_STRINGS
        self._read = read
        self._data = b""
        self._base = at
        self._at = 0

    @property
    def position(self) -> int:
        """Where in the file it reads next."""
        return self._base + self._at

    def fail(self, what: str) -> InvalidModelError:
        return InvalidModelError(f"{self.name} is not a usable GGUF file: {what}. Download or convert it again.")

    def cut(self) -> InvalidModelError:
        return self.fail("it ends in the middle of its header")

    def take(self, count: int) -> int:
        """Return where in the window the next bytes lie, and go past them."""
        at = self._at
        if at + count > len(self._data):
            self._fill(count)
            at = 0
        self._at = at + count
        return at

    def _fill(self, count: int) -> None:
        rest = self._data[self._at :]
        start = self.position
        if start + count > self.size:
            raise self.cut()
        self._data = rest + self._read(start + len(rest), count - len(rest))
        self._base, self._at = start, 0
        if len(self._data) < count:
            raise self.cut()

    def skip(self, count: int) -> None:
        if self.position + count > self.size:
            raise self.cut()
        self._at += count

    def number(self, code: str) -> Any:
        form = self.order + code
        at = self.take(struct.calcsize(form))
        return struct.unpack_from(form, self._data, at)[0]

    def raw(self, count: int) -> bytes:
        at = self.take(count)
        return self._data[at : at + count]

    def keep(self, length: int) -> bytes:
        """Return bytes that stay in memory; all of them together have a limit."""
        self.texts -= length
        if self.texts < 0:
            raise self.fail(f"its metadata hold more than {_MAX_TEXTS >> 20} MiB of text")
        return self.raw(length)

    def key(self) -> str:
        length = self.number("Q")
        if not 0 < length <= _MAX_KEY:
            raise self.fail(f"it holds a key of {length:,} bytes")
        try:
            return self.keep(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("it holds a key that is no text") from None

    def text(self) -> str | ArrayLength:
        length = self.number("Q")
        if length > self.size - self.position:
            raise self.cut()
        if length > _MAX_TEXT:
            found = ArrayLength(length, type="u8", offset=self.position)
            self.skip(length)
            return found
        return self.keep(length).decode("utf-8", "replace")

    def value(self, kind: int, marks: list[int] | None = None) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(marks)
        if kind not in _SCALARS:
            raise self.fail(f"it holds a value of unknown type {kind}")
        return self.number(_SCALARS[kind])

    def array(self, marks: list[int] | None = None) -> ArrayLength:
        kind, count = self.number("I"), self.number("Q")
        if kind == _ARRAY:
            raise self.fail("it holds an array of arrays, which llama.cpp does not read")
        if kind not in _NAMES:
            raise self.fail(f"it holds an array of unknown type {kind}")
        width = 8 if kind == _STRING else struct.calcsize("<" + _SCALARS[kind])
        if count * width > self.size - self.position:
            raise self.fail(f"it claims an array of {count:,} entries, more than the file has room for")
        name, start = _NAMES[kind], self.position
        if kind == _STRING:
            return ArrayLength(count, (), self._strings(count, marks), name, start)
        if count > _MAX_NUMBERS or count > self.numbers:
            self.skip(count * width)
            return ArrayLength(count, type=name, offset=start)
        self.numbers -= count
        at = self.take(count * width)
        numbers = struct.unpack_from(f"{self.order}{count}{_SCALARS[kind]}", self._data, at)
        return ArrayLength(count, numbers, (), name, start)

    def _strings(self, count: int, marks: list[int] | None) -> tuple[str, ...]:
        """Go past the strings of an array; return them where they are few and note every 1,024th of many."""
        self.strings -= count
        if self.strings < 0:
            raise self.fail(f"its arrays hold more than {_MAX_STRINGS:,} strings")
        if count <= _MAX_SHORT_LIST and marks is None:
            texts = [self.text() for _ in range(count)]
            return tuple(text if isinstance(text, str) else "…" for text in texts)
        for start in range(0, count, _BLOCK):
            if marks is not None:
                marks.append(self.position)
            self.skip_strings(min(_BLOCK, count - start))
        return ()

    def skip_strings(self, count: int) -> None:
        data, at, end = self._data, self._at, len(self._data)
        unpack = struct.Struct(self.order + "Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                self._at = at
                self._fill(8)
                data, at, end = self._data, 0, len(self._data)
            at += 8 + unpack(data, at)[0]
        self._at = at
        if self.position > self.size:
            raise self.cut()


#: What was read last, by the file's identity: a plan is often followed by the job, and reading goes past every word.
_read: dict[tuple[str, int, int, int, int], ModelMetadata] = {}
_REMEMBERED = 8


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Return the metadata and tensor table of a GGUF file; of a split model, with those of all its parts.

    Raises
    ------
    ModelNotFoundError
        There is no such file, or it is a folder.
    InvalidModelError
        It is empty, cut off, or no GGUF file, or a part is missing; the message says which.
    """
    name = os.fspath(path)
    metadata = _read_file(name)
    if metadata.values.get("split.count", 1) in (0, 1):
        return metadata
    names = part_names(name)
    if names and name != names[0]:
        metadata = _read_file(names[0])
    return join_parts(metadata, names, _read_file)


def _read_file(name: str) -> ModelMetadata:
    if Path(name).is_dir():
        raise ModelNotFoundError(f"{name} is a folder; name a .gguf file in it")
    try:
        with Path(name).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            identity = (name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if identity in _read:
                return _read[identity]

            def read(offset: int, count: int) -> bytes:
                file.seek(offset)
                return file.read(max(count, _PIECE)) or b""

            found = read_header(read, status.st_size, name)
            for old in list(_read)[: max(0, len(_read) + 1 - _REMEMBERED)]:
                _read.pop(old, None)
            _read[identity] = found
            return found
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {name}") from None
    except PermissionError:
        raise InvalidModelError(f"{name} can not be read: permission denied") from None
    except OSError as exc:
        raise InvalidModelError(f"{name} can not be read: {exc.strerror or exc}") from None


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a split model, from any one of them; empty for a single file.

    They end in ``-00001-of-00003.gguf`` (llama.cpp, `llama_split_path`).
    """
    match = _PART.fullmatch(name)
    if match is None or not 1 < int(match["count"]) <= _MAX_PARTS:
        return []
    count = int(match["count"])
    return [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def join_parts(first: ModelMetadata, names: list[str], read: Callable[[str], ModelMetadata]) -> ModelMetadata:
    """Return the metadata of the first part with the tensor tables of all.

    Raises
    ------
    InvalidModelError
        A part is missing, or belongs to another model.
    """
    count = first.values.get("split.count")
    if count != len(names):
        raise InvalidModelError(
            f"{first.path} is one of {count} parts, but its name does not end in -00001-of-{_number(count)}.gguf; "
            "give the parts their names back"
        )
    tensors, size, transferred = list(first.tensors), first.file_size, first.transferred
    for number, name in enumerate(names[1:], 1):
        try:
            part = read(name)
        except ModelNotFoundError:
            raise InvalidModelError(
                f"part {number + 1} of {count} is missing: {name}. Download all parts into one folder."
            ) from None
        if part.values.get("split.count") != count or part.values.get("split.no") != number:
            raise InvalidModelError(f"{name} is not part {number + 1} of {first.path}. Download it again.")
        tensors += [TensorInfo(t.name, t.shape, t.type, t.offset, t.size, number) for t in part.tensors]
        size += part.file_size
        transferred += part.transferred
    total = first.values.get("split.tensors.count", len(tensors))
    if total != len(tensors) or len({tensor.name for tensor in tensors}) != len(tensors):
        raise InvalidModelError(
            f"the parts of {first.path} hold {len(tensors)} tensors, not {total} different ones. Download them again."
        )
    return ModelMetadata(
        first.path, first.values, tuple(tensors), first.data_offset, size, first.version, first.byte_order,
        tuple(names), first.special_tokens, transferred,
    )  # fmt: skip


def _number(value: object) -> str:
    return f"{value:05}" if isinstance(value, int) else "…"


def read_header(read: Read, size: int, name: str) -> ModelMetadata:
    """Return what a file of `size` bytes says of itself, reading its header through `read`.

    Raises
    ------
    InvalidModelError
    """
    if size == 0:
        raise InvalidModelError(f"{name} is empty. Download or convert it again.")
    reader = _Reader(read, size, name)
    _check_magic(reader, reader.raw(min(size, 64)))
    reader = _Reader(read, size, name, at=4)
    version = reader.number("I")
    if version & 0xFFFF == 0 and version:  # as llama.cpp finds it: the other byte order
        reader.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise reader.fail(f"it is of GGUF version {version}, this llama.cpp reads 2 and 3")
    n_tensors, n_keys = reader.number("Q"), reader.number("Q")
    if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
        raise reader.fail(f"it claims {n_tensors:,} tensors and {n_keys:,} keys")
    values: dict[str, Any] = {}
    marks: list[int] = []
    for _ in range(n_keys):
        key = reader.key()
        if key in values:
            raise reader.fail(f"it holds the key {key!r} twice")
        kind = reader.number("I")
        values[key] = reader.value(kind, marks if key == "tokenizer.ggml.tokens" else None)
        if key == "general.alignment" and kind != 4:
            raise reader.fail("its alignment is no u32")
    alignment = values.get("general.alignment", 32)
    if alignment == 0 or alignment & (alignment - 1):
        raise reader.fail(f"it claims an alignment of {alignment}, which is no power of two")
    tensors = _tensors(reader, n_tensors, alignment)
    start = -(-reader.position // alignment) * alignment
    need = start + (tensors[-1].offset + tensors[-1].size if tensors else 0)
    if need > size and tensors:
        raise InvalidModelError(f"{name} is cut off: {need - size:,} of {need:,} bytes are missing. Download it again.")
    special = _special_tokens(reader, read, values, marks)
    order = "little" if reader.order == "<" else "big"
    return ModelMetadata(name, values, tensors, start, size, version, order, (), special)


def _check_magic(reader: _Reader, head: bytes) -> None:
    if head[:4] == b"GGUF":
        return
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InvalidModelError(
            f"{reader.name} is a web page, not a model: the download probably saved an error or login page. "
            "Download the file itself."
        )
    if head[:4] in (b"ggml", b"lmgg", b"fmgg", b"tjgg"):
        raise InvalidModelError(f"{reader.name} is in an old ggml format; convert the model to GGUF again")
    if start.startswith(b"version https://git-lfs"):
        raise InvalidModelError(f"{reader.name} is a Git LFS pointer; run git lfs pull to fetch the model itself")
    raise InvalidModelError(f"{reader.name} is not a GGUF file (it begins with {bytes(head[:4])!r})")


def _tensors(reader: _Reader, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    expected = 0
    for _ in range(count):
        tensor = _tensor(reader)
        if tensor.name in names:
            raise reader.fail(f"it holds the tensor {tensor.name!r} twice")
        if tensor.offset != expected:
            raise reader.fail(
                f"tensor {tensor.name!r} begins at byte {tensor.offset:,} of the data instead of {expected:,}: "
                "its tensors overlap or leave gaps"
            )
        expected += -(-tensor.size // alignment) * alignment
        names.add(tensor.name)
        tensors.append(tensor)
    return tuple(tensors)


def _tensor(reader: _Reader) -> TensorInfo:
    length = reader.number("Q")
    if length > _MAX_NAME:
        raise reader.fail(f"it holds a tensor name of {length:,} bytes")
    name = reader.keep(length).decode("utf-8", "replace")
    n_dims = reader.number("I")
    if n_dims > 4:
        raise reader.fail(f"tensor {name!r} claims {n_dims:,} dimensions")
    shape = tuple(reader.number("Q") for _ in range(n_dims))
    kind, offset = reader.number("I"), reader.number("Q")
    if kind in _REMOVED:
        raise InvalidModelError(
            f"{reader.name} holds tensors of type {_REMOVED[kind]}, which llama.cpp has dropped; "
            "quantize the model again, for example to Q4_0"
        )
    if kind not in TENSOR_TYPES:
        raise reader.fail(f"tensor {name!r} is of type {kind}, which this llama.cpp does not know")
    label, block, width = TENSOR_TYPES[kind]
    weights = 1
    for part in shape:
        weights *= part
        if weights > 1 << 62:
            raise reader.fail(f"tensor {name!r} claims more weights than any file can hold")
    if (shape[0] if shape else 1) % block:
        raise reader.fail(f"tensor {name!r} has rows of {shape[0] if shape else 1:,}, no multiple of {label}'s {block}")
    return TensorInfo(name, shape, label, offset, weights // block * width)


def _special_tokens(reader: _Reader, read: Read, values: dict[str, Any], marks: list[int]) -> dict[str, str]:
    """Return the names of the tokens that have a role, found from the nearest mark."""
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, ArrayLength) or tokens.type != "str":
        return {}
    found: dict[str, str] = {}
    for key, number in values.items():
        match = _ROLE.fullmatch(key)
        if match is None or not isinstance(number, int) or not 0 <= number < tokens.length or len(found) >= 64:
            continue
        at = _Reader(read, reader.size, reader.name, reader.order, marks[number // _BLOCK])
        at.skip_strings(number % _BLOCK)
        length = at.number("Q")
        text = at.raw(min(length, 256)).decode("utf-8", "replace")
        found[match[1]] = text if length <= 256 else text + "…"
    return found


def read_array(path: str, array: object, byte_order: str = "little") -> list[Any]:
    """Return all entries of an array that `read_metadata` left in the file.

    Raises
    ------
    InvalidRequestError
        `array` is no `ArrayLength`.
    """
    if not isinstance(array, ArrayLength):
        raise InvalidRequestError("the file has no array of this name")
    with Path(path).open("rb") as file:

        def read(offset: int, count: int) -> bytes:
            file.seek(offset)
            return file.read(max(count, _PIECE))

        size = os.fstat(file.fileno()).st_size
        reader = _Reader(read, size, path, "<" if byte_order == "little" else ">", array.offset)
        if array.type == "str":
            return [reader.raw(reader.number("Q")).decode("utf-8", "replace") for _ in range(array.length)]
        code = _SCALARS[_KINDS[array.type]]
        raw = reader.raw(array.length * struct.calcsize("<" + code))
        return list(struct.unpack(f"{reader.order}{array.length}{code}", raw))
