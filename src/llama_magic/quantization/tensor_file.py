"""Tensors of a GGUF file as numbers, some rows at a time; split models are read from all their parts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from llama_magic.errors import InvalidModelError, InvalidRequestError
from llama_magic.models.gguf import read_header, read_metadata
from llama_magic.models.metadata import TENSOR_TYPES, TensorInfo
from llama_magic.native.ggml_types import Bytes, Floats, TypeTraits, dequantize, type_traits
from llama_magic.suggest import did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CHUNK_WEIGHTS", "TensorFile", "map_ahead", "row_pieces", "traits_of"]

#: Weights that are in memory as numbers at a time, for each thread.
CHUNK_WEIGHTS = 1 << 20

_NUMBERS = {name: kind for kind, (name, _, _) in TENSOR_TYPES.items()}
_HEADER_PIECE = 1 << 16

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def traits_of(name: str) -> TypeTraits:
    """Return ggml's traits of a tensor type."""
    if name not in _NUMBERS:
        raise InvalidRequestError(f"llama.cpp has no tensor type {name}.{did_you_mean(name, _NUMBERS)}")
    return type_traits(_NUMBERS[name], name)


class TensorFile:
    """A GGUF file opened for its tensors; several threads may read."""

    def __init__(self, path: str) -> None:
        self.metadata = read_metadata(path)
        if self.metadata.byte_order != "little":
            raise InvalidModelError(f"{path} is big-endian; its tensors can not be read on this machine")
        self.tensors = {tensor.name: tensor for tensor in self.metadata.tensors}
        self._lock = threading.Lock()
        self._parts: list[tuple[FileIO, int]] = []
        try:
            for name in self.metadata.parts or (self.metadata.path,):
                self._open(name)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str) -> None:
        file = FileIO(name)
        self._parts.append((file, 0))

        def read(offset: int, count: int) -> bytes:
            file.seek(offset)
            return file.read(max(count, _HEADER_PIECE)) or b""

        self._parts[-1] = (file, read_header(read, os.fstat(file.fileno()).st_size, name).data_offset)

    def close(self) -> None:
        """Close the files."""
        while self._parts:
            with contextlib.suppress(OSError):
                self._parts.pop()[0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, name: str) -> TensorInfo:
        """Return a tensor by its name; ``.weight`` may be left out.

        Raises
        ------
        InvalidRequestError
            There is none, with near names.
        """
        found = self.tensors.get(name) or self.tensors.get(f"{name}.weight")
        if found is None:
            few = ", ".join(list(self.tensors)[:4])
            hint = did_you_mean(name, self.tensors) or (f" There are {few} and so on." if few else " It has none.")
            raise InvalidRequestError(f"the model has no tensor {name!r}.{hint} %llama inspect --tensors lists them.")
        return found

    def raw(self, tensor: TensorInfo, start: int, stop: int) -> Bytes:
        """Return the bytes of rows `start` to `stop`."""
        width = traits_of(tensor.type).row_bytes(tensor.shape[0] if tensor.shape else 1)
        file, data_offset = self._parts[tensor.part]
        data = np.empty((stop - start) * width, np.uint8)
        view, got = data.data, 0
        with self._lock:
            file.seek(data_offset + tensor.offset + start * width)
            while got < data.size:
                piece = file.readinto(view[got:])
                if not piece:
                    raise InvalidModelError(
                        f"{file.name!r} ends inside of {tensor.name}. Download or convert it again."
                    )
                got += piece
        return data

    def rows(self, tensor: TensorInfo, start: int, stop: int) -> Floats:
        """Return rows `start` to `stop` as numbers, an array of rows by weights."""
        data = dequantize(traits_of(tensor.type), self.raw(tensor, start, stop))
        return data.reshape(stop - start, -1)


def row_pieces(tensor: TensorInfo, most: int = CHUNK_WEIGHTS) -> list[tuple[int, int]]:
    """Cut a tensor's rows into pieces of at most `most` weights, at least a row each."""
    length = tensor.shape[0] if tensor.shape else 1
    count = tensor.n_params // length if length else 0
    step = max(1, most // max(length, 1))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def map_ahead(work: Callable[[_In], _Out], items: Iterable[_In], n_threads: int) -> Iterator[_Out]:
    """Yield what `work` makes of each item, in order, made on several threads but never far ahead of the reader."""
    with ThreadPoolExecutor(n_threads) as pool:
        waiting: deque[Future[_Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > n_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
