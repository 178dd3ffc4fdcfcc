"""llama.cpp's quantizer, with what its log tells of every tensor.

`llama_model_quantize` has no callback. Its log has a line for each tensor (``[  12/ 272] blk.0…``),
whose first part comes before the work: that is the progress, and where types and fallbacks are read.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_magic.native.library import initialize, lib
from llama_magic.native.log import LEVELS, LogCapture

__all__ = ["KvOverride", "QuantizeSettings", "TensorLine", "TensorLog", "quantize"]

#: ``llama_model_kv_override_type`` of llama.h, and the fields of its union.
_TAGS = {"int": 0, "float": 1, "bool": 2, "str": 3}
_FIELDS = {"int": "val_i64", "float": "val_f64", "bool": "val_bool", "str": "val_str"}
_TEXT_LIMIT = 127

#: Seconds between two readings of the log, and the levels that are read and sent on at once.
_READ_S = 0.05
_TOLD = ("warning", "error")
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] (.+?) +- \[([\d, ]+)\], type = +(\S+), ")
_CONVERTED = re.compile(r"converting to (\S+) \.\. ")
_DRY = re.compile(r"size = +[\d.]+ MiB -> +[\d.]+ MiB \((\S+)\)$")
_FALLBACK = re.compile(
    r"warning: (.+?) +- ncols +(\d+) not divisible by +(\d+) \(required for type +(\S+)\) .*-> falling back to +(\S+)$"
)


@dataclass(frozen=True, slots=True)
class KvOverride:
    """A value to set in the new file's metadata. `kind` is "int", "float", "bool" or "str"."""

    key: str
    kind: str
    value: Any

    @property
    def c_text(self) -> bytes:
        """A text as the C structure holds it: what is longer is cut, as llama-quantize does."""
        return str(self.value).encode("utf-8", "surrogateescape")[:_TEXT_LIMIT]


@dataclass(frozen=True, slots=True)
class QuantizeSettings:
    """``llama_model_quantize_params``, with numbers of types as in ggml.h and llama.h.

    Attributes
    ----------
    imatrix
        Importance of each column, by the name of the tensor: contiguous float32 buffers.
    """

    ftype: int
    n_threads: int
    output_tensor_type: int | None = None
    token_embedding_type: int | None = None
    allow_requantize: bool = False
    quantize_output_tensor: bool = True
    only_copy: bool = False
    pure: bool = False
    keep_split: bool = False
    dry_run: bool = False
    imatrix: Mapping[str, Any] = field(default_factory=dict)
    kv_overrides: Sequence[KvOverride] = ()
    tensor_types: Sequence[tuple[str, int]] = ()
    prune_layers: Sequence[int] = ()


@dataclass(slots=True)
class TensorLine:
    """What the log says of one tensor. `type` is ggml's name in small letters."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str


class TensorLog:
    """Reads the quantizer's log piece by piece.

    Parameters
    ----------
    on_tensor
        Called before each tensor's work with its place, how many there are, and its name.
    """

    def __init__(self, on_tensor: Callable[[int, int, str], None] = lambda _at, _of, _name: None) -> None:
        self.tensors: list[TensorLine] = []
        #: Tensor's name → columns, size of a block, wanted type, given type.
        self.fallbacks: dict[str, tuple[int, int, str, str]] = {}
        self.requires_imatrix = False
        self._on_tensor = on_tensor
        self._line = ""

    def feed(self, text: str) -> None:
        """Take a piece of the log as it comes, line ends included."""
        for piece in text.splitlines(keepends=True):
            self._line += piece
            begun = _TENSOR.match(self._line) if self._line.startswith("[") else None
            if begun is not None and len(self.tensors) < int(begun[1]):
                shape = tuple(int(length) for length in begun[4].split(","))
                self.tensors.append(TensorLine(begun[3], shape, begun[5], begun[5]))
                self._on_tensor(int(begun[1]), int(begun[2]), begun[3])
            # Between the two halves of a line, a missing entry of the matrix is told in a line of its own.
            self._converted()
            if self._line.endswith("\n"):
                self._end_of_line(self._line.rstrip("\n"))
                self._line = ""

    def _converted(self) -> None:
        found = _CONVERTED.search(self._line) or _DRY.search(self._line.rstrip("\n"))
        if found is not None and self.tensors and not self._line.startswith("warning"):
            self.tensors[-1].type = found[1]

    def _end_of_line(self, line: str) -> None:
        fallen = _FALLBACK.match(line)
        if fallen is not None:
            self.fallbacks[fallen[1]] = (int(fallen[2]), int(fallen[3]), fallen[4], fallen[5])
        elif "completing this quantization will require an imatrix" in line:
            self.requires_imatrix = True


def quantize(source: str, target: str, settings: QuantizeSettings, log: LogCapture, tensors: TensorLog) -> bool:
    """Quantize a file; False where llama.cpp failed, and then its log says why.

    Parameters
    ----------
    target
        What to write; with `keep_split` the start of the parts' names. Not used by a dry run.
    log
        Gets the log as always.
    tensors
        Reads the log, too.
    """
    initialize()
    params, kept = _parameters(settings)

    gathered: list[tuple[int, bytes]] = []
    last = 0.0

    def read() -> None:
        for level, text in gathered:
            tensors.feed(text.decode("utf-8", "replace"))
            log._receive(level, text, None)
        gathered.clear()

    def receive(level: int, text: bytes, _user_data: object) -> None:
        # Nothing is computed meanwhile. Reading several pieces at once takes a third of reading each as it comes.
        nonlocal last
        gathered.append((level, text))
        now = time.monotonic()
        if now - last >= _READ_S or LEVELS.get(level) in _TOLD:
            last = now
            read()

    callback = lib.llama_log_callback(receive)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    # Two lines a tensor, which progress tells, too: sending them on would take processors that quantize.
    told = log.told
    log.told = _TOLD
    try:
        code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    finally:
        read()
        log.told = told
        log.install()
    del kept  # what the parameters point to has to live until here
    return bool(code == 0)


def _parameters(settings: QuantizeSettings) -> tuple[Any, list[Any]]:
    """Return the C structure and what its pointers point to."""
    params = lib.llama_model_quantize_default_params()
    params.nthread = settings.n_threads
    params.ftype = settings.ftype
    if settings.output_tensor_type is not None:
        params.output_tensor_type = settings.output_tensor_type
    if settings.token_embedding_type is not None:
        params.token_embedding_type = settings.token_embedding_type
    for name in ("allow_requantize", "quantize_output_tensor", "only_copy", "pure", "keep_split", "dry_run"):
        setattr(params, name, getattr(settings, name))
    kept: list[Any] = []
    if settings.imatrix:
        params.imatrix = _imatrix(settings.imatrix, kept)
    if settings.kv_overrides:
        params.kv_overrides = _overrides(settings.kv_overrides, kept)
    if settings.tensor_types:
        entries = [lib.llama_model_tensor_override(pattern.encode(), kind) for pattern, kind in settings.tensor_types]
        entries.append(lib.llama_model_tensor_override(None, 0))
        params.tt_overrides = _array(lib.llama_model_tensor_override, entries, kept)
    if settings.prune_layers:
        layers = sorted(set(settings.prune_layers))
        params.prune_layers = _array(ctypes.c_int32, [*layers, -1], kept)
    return params, kept


def _array(kind: Any, entries: Sequence[Any], kept: list[Any]) -> Any:
    array = (kind * len(entries))(*entries)
    kept += [array, entries]
    return ctypes.cast(array, ctypes.POINTER(kind))


def _imatrix(values: Mapping[str, Any], kept: list[Any]) -> Any:
    entries = []
    for name, column in values.items():
        pointer = column.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries.append(lib.llama_model_imatrix_data(name.encode("utf-8", "surrogateescape"), pointer, column.size))
        kept.append(column)
    entries.append(lib.llama_model_imatrix_data(None, None, 0))
    return _array(lib.llama_model_imatrix_data, entries, kept)


def _overrides(overrides: Sequence[KvOverride], kept: list[Any]) -> Any:
    entries = []
    for override in overrides:
        entry = lib.llama_model_kv_override()
        entry.key = override.key.encode()
        entry.tag = _TAGS[override.kind]
        value = override.c_text if override.kind == "str" else override.value
        setattr(entry.value, _FIELDS[override.kind], value)
        entries.append(entry)
    last = lib.llama_model_kv_override()
    last.key = b""
    entries.append(last)
    return _array(lib.llama_model_kv_override, entries, kept)
