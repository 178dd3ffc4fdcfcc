"""Files with importance matrices: the GGUF format of llama-imatrix, and its older .dat.

For each weight that is multiplied with activations, the file holds ``NAME.in_sum2``, the sums of the squared
activations of each column, and ``NAME.counts``, over how many rows they were taken. The format is that of
llama.cpp's ``tools/imatrix/imatrix.cpp`` and ``common/imatrix-loader.cpp``. A tensor of experts has a row of
sums and a count for each of them.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama_magic.errors import InvalidModelError, InvalidRequestError, ModelNotFoundError
from llama_magic.models.gguf import read_metadata

__all__ = ["Entry", "ImportanceMatrix", "merge", "read_imatrix", "write_imatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_ALIGNMENT = 32
_F32, _STRING, _ARRAY, _UINT32 = 0, 8, 9, 4
_MOST_ENTRIES = 1 << 20


@dataclass(slots=True)
class Entry:
    """What was collected for one weight.

    Attributes
    ----------
    sums
        Sums of squares, float64 of shape (matrices, columns).
    counts
        Rows that went into them, int64 of shape (matrices,) or (1,).
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        """Values in all."""
        return int(self.sums.size)

    def importance(self) -> npt.NDArray[np.float32]:
        """Return the mean square of each column, flat: what llama-quantize weighs errors with.

        A matrix without any count gives ones, as there.
        """
        rows = self.sums.reshape(len(self.counts), -1).astype(np.float32)
        counts = self.counts.astype(np.float32)[:, None]
        means = np.divide(rows, counts, out=np.ones_like(rows), where=counts > 0)
        flat: npt.NDArray[np.float32] = means.reshape(-1)
        return flat


@dataclass(slots=True)
class ImportanceMatrix:
    """All entries of a file.

    Attributes
    ----------
    entries
        By the name of the weight.
    datasets
        Names of the texts it was made from.
    chunk_count, chunk_size
        Chunks of text that were read, and tokens in each; the size is 0 in files of the old format.
    legacy
        It came from a file of the old format.
    extra
        Further text values of the file, by key.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0
    legacy: bool = False
    extra: dict[str, str] = field(default_factory=dict)

    def chunks_counted(self) -> int:
        """Return the chunks that the counts amount to, as llama-imatrix writes them."""
        most = max((int(entry.counts.max(initial=0)) for entry in self.entries.values()), default=0)
        return most // self.chunk_size if self.chunk_size else 0


def write_imatrix(
    path: str | os.PathLike[str], matrix: ImportanceMatrix, *, temporary: str | os.PathLike[str] | None = None
) -> None:
    """Write a file as llama-imatrix does; it is there as a whole or not at all.

    Parameters
    ----------
    temporary
        Its name while it is written, in the same folder; None: a name of its own.

    Raises
    ------
    InvalidRequestError
        The file can not be written.
    """
    target = Path(path)
    tensors: list[tuple[str, npt.NDArray[np.float32]]] = []
    for name in sorted(matrix.entries, key=str.encode):
        entry = matrix.entries[name]
        count = len(entry.counts)
        tensors.append((name + _SUMS, entry.sums.reshape(count, -1).astype("<f4")))
        tensors.append((name + _COUNTS, entry.counts.reshape(count, 1).astype("<f4")))
    part = Path(temporary) if temporary else target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            file.write(_header(matrix, tensors))
            for _, values in tensors:
                data = values.tobytes()
                file.write(data + b"\0" * (-len(data) % _ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise InvalidRequestError(f"{str(target)!r} can not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _header(matrix: ImportanceMatrix, tensors: list[tuple[str, npt.NDArray[np.float32]]]) -> bytes:
    pairs = {"general.type": struct.pack("<I", _STRING) + _text("imatrix")}
    names = b"".join(map(_text, matrix.datasets))
    pairs[_DATASETS] = struct.pack("<IIQ", _ARRAY, _STRING, len(matrix.datasets)) + names
    pairs[_CHUNK_COUNT] = struct.pack("<II", _UINT32, matrix.chunk_count)
    pairs[_CHUNK_SIZE] = struct.pack("<II", _UINT32, matrix.chunk_size)
    for key, value in matrix.extra.items():
        pairs[key] = struct.pack("<I", _STRING) + _text(value)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs))
    head += b"".join(_text(key) + value for key, value in pairs.items())
    offset = 0
    for name, values in tensors:
        # ggml writes no trailing dimensions of one
        shape = values.shape[::-1] if values.shape[0] > 1 else (values.shape[1],)
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, offset)
        offset += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
    return head + b"\0" * (-len(head) % _ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


# -- reading -------------------------------------------------------------------------------------------------------


def read_imatrix(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Read a file of either format.

    Raises
    ------
    ModelNotFoundError
        There is no such file.
    InvalidModelError
        It holds no importance matrix, or is cut off.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no importance matrix {name}; %llama imatrix makes one") from None
    except IsADirectoryError:
        raise ModelNotFoundError(f"{name} is a folder; name the file of the importance matrix in it") from None
    except OSError as error:
        raise InvalidModelError(f"{name} can not be read: {error.strerror or error}") from error
    return _read_gguf(name) if start == b"GGUF" else _read_legacy(name)


def _read_gguf(name: str) -> ImportanceMatrix:
    metadata = read_metadata(name)
    values, data = metadata.values, Path(name).read_bytes()
    found: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for tensor in metadata.tensors:
        for suffix in (_SUMS, _COUNTS):
            if tensor.name.endswith(suffix):
                if tensor.type != "F32":
                    raise _unusable(name, f"{tensor.name} is {tensor.type}, not F32")
                array = np.frombuffer(data, "<f4", tensor.size // 4, metadata.data_offset + tensor.offset)
                found.setdefault(tensor.name.removesuffix(suffix), {})[suffix] = array
    if not found:
        what = "a model" if "general.architecture" in values else "a GGUF file without sums of activations"
        raise InvalidModelError(f"{name} is {what}, not an importance matrix; %llama imatrix makes one")
    if not {_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE} <= set(values):
        raise _unusable(name, "it lacks the keys imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size")
    entries = {}
    for weight, parts in found.items():
        if len(parts) != 2:
            raise _unusable(name, f"sums and counts of {weight} are not both there")
        sums, counts = parts[_SUMS], parts[_COUNTS]
        if not counts.size or not sums.size or sums.size % counts.size:
            raise _unusable(name, f"{weight} has {sums.size} sums for {counts.size} counts")
        if not np.isfinite(sums).all() or not np.isfinite(counts).all() or (counts < 0).any():
            raise _unusable(name, f"{weight} holds numbers that are not finite")
        # llama.cpp rounds the counts, too
        entries[weight] = Entry(sums.reshape(counts.size, -1).astype(np.float64), np.rint(counts).astype(np.int64))
    extra = {key: value for key, value in values.items() if isinstance(value, str) and not key.startswith("general.")}
    datasets = tuple(str(text) for text in metadata.array(_DATASETS))
    chunk_count, chunk_size = int(values[_CHUNK_COUNT]), int(values[_CHUNK_SIZE])
    return ImportanceMatrix(entries, datasets, chunk_count, chunk_size, extra=extra)


def _read_legacy(name: str) -> ImportanceMatrix:
    """Read the .dat format: sums there are means, times the number of calls."""
    data = Path(name).read_bytes()
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        if at > len(data):
            raise _unusable(name, "it ends in the middle of an entry")
        value: int = struct.unpack_from("<i", data, at - 4)[0]
        return value

    def taken(size: int) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(data):
            raise _unusable(name, "it ends in the middle of an entry")
        at += size
        return data[at - size : at]

    count = number()
    if not 0 < count < _MOST_ENTRIES:
        raise InvalidModelError(f"{name} is not an importance matrix; %llama imatrix makes one")
    entries = {}
    for _ in range(count):
        weight = taken(number()).decode("utf-8", "replace")
        calls, size = number(), number()
        sums = np.frombuffer(taken(4 * max(size, 0)), "<f4").astype(np.float64)
        if size < 1 or not np.isfinite(sums).all():
            raise _unusable(name, f"{weight} holds no usable numbers")
        entries[weight] = Entry(sums.reshape(1, -1), np.array([calls], np.int64))
    # chunk count and dataset are left out in the oldest files
    chunks = number() if at + 4 <= len(data) else 0
    length = number() if at + 4 <= len(data) else 0
    datasets = (taken(length).decode("utf-8", "replace"),) if length > 0 else ()
    return ImportanceMatrix(entries, datasets, chunks, 0, legacy=True)


def _unusable(name: str, why: str) -> InvalidModelError:
    return InvalidModelError(f"{name} is not a usable importance matrix: {why}. Make it again.")


# -- merging -------------------------------------------------------------------------------------------------------


def merge(matrices: Iterable[tuple[str, ImportanceMatrix]], chunk_size: int) -> ImportanceMatrix:
    """Add importance matrices up, as llama-imatrix does with ``--in-file``.

    Parameters
    ----------
    matrices
        Name (for messages) and content of each.
    chunk_size
        Tokens in a chunk of the result. Files of the old format count in chunks: theirs are taken to be as long.

    Raises
    ------
    InvalidRequestError
        They are not of the same model.
    """
    total = ImportanceMatrix(chunk_size=chunk_size)
    for name, matrix in matrices:
        factor = chunk_size if matrix.legacy else 1
        for weight, entry in matrix.entries.items():
            _add(total.entries, weight, Entry(entry.sums * factor, entry.counts * factor), name)
        total.datasets += matrix.datasets
    total.chunk_count = total.chunks_counted()
    return total


def _add(entries: dict[str, Entry], weight: str, new: Entry, name: str) -> None:
    old = entries.get(weight)
    if old is None:
        entries[weight] = Entry(new.sums.copy(), new.counts.copy())
        return
    if old.size != new.size:
        raise InvalidRequestError(
            f"{name} is of another model than the matrices before it: {weight} has {new.size:,} values there, "
            f"{old.size:,} before"
        )
    count = max(len(old.counts), len(new.counts))
    if {len(old.counts), len(new.counts)} - {1, count}:
        raise InvalidRequestError(f"{name} counts {len(new.counts)} experts in {weight}, those before {count}")
    # A single count (old files, dense tensors) holds for every matrix.
    old.sums = old.sums.reshape(count, -1) + new.sums.reshape(count, -1)
    old.counts = np.broadcast_to(old.counts, count) + np.broadcast_to(new.counts, count)
