"""Load options that are lists of pairs: read as llama-cli writes them, and written back the same way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidRequestError

__all__ = [
    "Adapter",
    "KeyValue",
    "TensorPlace",
    "adapters",
    "format_adapter",
    "format_key_value",
    "key_values",
    "parse_adapters",
    "parse_key_values",
    "parse_scaled_adapters",
    "parse_size",
    "parse_tensor_places",
    "parse_tensor_split",
    "tensor_places",
]

#: A LoRA adapter: absolute path, and the scale it is applied with.
Adapter = tuple[str, float]
#: A pattern (regular expression) of tensor names, and the buffer type that these tensors go to.
TensorPlace = tuple[str, str]
#: A metadata key and the value that takes the place of the file's.
KeyValue = tuple[str, int | float | bool | str]

#: Most bytes that llama.cpp keeps of a key or a text (`llama_model_kv_override`), without the closing zero.
_MOST_BYTES = 127


def _rows(text: str) -> list[str]:
    return [part for part in (part.strip() for part in text.split(",")) if part]


# LoRA adapters


def parse_adapters(text: str) -> tuple[Adapter, ...]:
    """Read ``FILE`` or ``FILE:SCALE``, several separated by commas; without a scale it is 1."""
    if Path(text).expanduser().is_file():
        return (_adapter(text, 1.0),)  # a name with a comma or a colon in it
    found = []
    for row in _rows(text):
        path, colon, scale = row.rpartition(":")
        number = _float(scale) if colon and not Path(row).expanduser().is_file() else None
        found.append(_adapter(row, 1.0) if number is None else _adapter(path, number))
    return tuple(found)


def parse_scaled_adapters(text: str) -> tuple[Adapter, ...]:
    """Read llama-cli's ``FILE:SCALE,…``, where each adapter has a scale."""
    for row in _rows(text) or [""]:
        _, colon, scale = row.rpartition(":")
        if not colon or _float(scale) is None:
            raise ValueError("FILE:SCALE")
    return parse_adapters(text)


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _adapter(path: str, scale: float) -> Adapter:
    full = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - Path.resolve would follow links
    return (full, float(scale))


def adapters(value: Any) -> tuple[Adapter, ...]:
    """Return adapters from what a person may give: a path, ``"file:0.5"``, or (path, scale) pairs."""
    if not value:
        return ()
    if isinstance(value, (str, os.PathLike)):
        return parse_adapters(os.fspath(value))
    found: list[Adapter] = []
    for item in value:
        if isinstance(item, (str, os.PathLike)):
            found += parse_adapters(os.fspath(item))
            continue
        path, scale = item
        found.append(_adapter(os.fspath(path), scale))
    return tuple(found)


def format_adapter(adapter: Adapter) -> str:
    """Write an adapter as ``FILE:SCALE``."""
    return f"{adapter[0]}:{adapter[1]:g}"


# tensors' places


def parse_tensor_places(text: str) -> tuple[TensorPlace, ...]:
    """Read ``PATTERN=BUFFER,…``: where tensors go whose names match a regular expression."""
    found = []
    for row in _rows(text) or [""]:
        pattern, equals, buffer = row.partition("=")
        if not (pattern and equals and buffer):
            raise ValueError("PATTERN=BUFFER, for example ffn_.*_exps=CPU")
        found.append((pattern, buffer))
    return tuple(found)


def tensor_places(value: Any) -> tuple[TensorPlace, ...]:
    """Return tensor places from a text, a mapping, or pairs."""
    return _pairs(value, parse_tensor_places, "override_tensor", "PATTERN=BUFFER")


# metadata


def parse_key_values(text: str) -> tuple[KeyValue, ...]:
    """Read ``KEY=TYPE:VALUE,…`` with the types int, float, bool and str."""
    found: list[KeyValue] = []
    for row in _rows(text) or [""]:
        key, equals, rest = row.partition("=")
        kind, colon, word = rest.partition(":")
        if not (key and equals and colon):
            raise ValueError("KEY=TYPE:VALUE, for example tokenizer.ggml.add_bos_token=bool:false")
        found.append((key, _typed(kind, word)))
    return tuple(found)


def _typed(kind: str, word: str) -> int | float | bool | str:
    try:
        if kind == "int":
            return int(word)
        if kind == "float":
            return float(word)
    except ValueError:
        raise ValueError(f"a number after {kind}:") from None
    if kind == "bool" and word in ("true", "false"):
        return word == "true"
    if kind == "str":
        return word
    raise ValueError("KEY=TYPE:VALUE where TYPE is int, float, bool (true or false) or str")


def key_values(value: Any) -> tuple[KeyValue, ...]:
    """Return overrides of metadata from a text, a mapping, or pairs; none is longer than llama.cpp keeps."""
    found: tuple[KeyValue, ...] = _pairs(value, parse_key_values, "override_kv", "KEY=TYPE:VALUE")
    for key, item in found:
        if not isinstance(item, (bool, int, float, str)):
            raise InvalidRequestError(f"override_kv: the value of {key} must be a number, a bool or a text")
        for text in (key, item):
            if isinstance(text, str) and len(text.encode()) > _MOST_BYTES:
                raise InvalidRequestError(f"override_kv: {text[:30]!r}… is longer than {_MOST_BYTES} bytes")
        if isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise InvalidRequestError(f"override_kv: {item} does not fit into 64 bits")
    return found


def format_key_value(pair: KeyValue) -> str:
    """Write an override as ``KEY=TYPE:VALUE``."""
    key, value = pair
    if isinstance(value, bool):
        return f"{key}=bool:{'true' if value else 'false'}"
    kind = "str" if isinstance(value, str) else "int" if isinstance(value, int) else "float"
    return f"{key}={kind}:{value}"


def _pairs(value: Any, parse: Any, name: str, form: str) -> tuple[Any, ...]:
    if not value:
        return ()
    try:
        if isinstance(value, str):
            return tuple(parse(value))
        items: Iterable[Any] = value.items() if hasattr(value, "items") else value
        found: list[Any] = []
        for item in items:
            if isinstance(item, str):
                found += parse(item)
            else:
                first, second = item
                found.append((str(first), second))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{name} takes {form} or pairs of them; got {value!r}") from error
    return tuple(found)


# shares of devices


def parse_tensor_split(text: str) -> tuple[float, ...]:
    """Read ``3,1``: how much of the model each device gets."""
    shares: Sequence[float | None] = [_float(part) for part in text.replace("/", ",").split(",")]
    numbers = tuple(share for share in shares if share is not None and share >= 0)
    if not numbers or len(numbers) != len(shares) or not sum(numbers):
        raise ValueError("numbers separated by commas, one for each device, for example 3,1")
    return numbers


# amounts of memory


def parse_size(text: str) -> int:
    """Read an amount of memory: bytes, or a number with K, M, G or T in binary units."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(?:i?[bB])?", text.strip())
    amount = round(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if amount < 1:
        raise ValueError("an amount of memory, for example 8G or 500M")
    return amount
