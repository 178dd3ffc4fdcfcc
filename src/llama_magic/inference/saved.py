"""Saved conversations: the layout of their files.

One file holds a conversation's text and what the model's cache held of it. In this order:

1. eight bytes that name the format, its version (uint32) and the length of the header (uint64), little-endian
2. the header, a JSON object: where it came from, and length and SHA-256 of each of the parts 4 to 6
3. the SHA-256 of 1 and 2
4. the conversation as JSON, see `Conversation.to_dict`
5. the ids of the tokens in the cache, int32
6. the state of the cache, as llama.cpp's `llama_state_seq_get_data` gave it

Parts 1 to 4 are enough for the text, so it survives where the state was cut off. Nothing here imports numpy or
llama_cpp.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from llama_magic.errors import SavedStateError
from llama_magic.inference.conversation import Conversation

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Held",
    "Part",
    "SavedHeader",
    "differences",
    "is_saved",
    "pack_ids",
    "read_header",
    "read_held",
    "read_text",
    "write_saved",
]

VERSION: Final = 1

_MAGIC = b"\x89LMCHAT\n"
_START = struct.Struct("<8sIQ")
_DIGEST = hashlib.sha256().digest_size
_MOST_HEADER = 1 << 20
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """Length in bytes and SHA-256 of one part of the file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes | memoryview) -> Part:
        """Measure a part."""
        return cls(memoryview(data).nbytes, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class SavedHeader:
    """What a saved conversation says of itself.

    Attributes
    ----------
    created
        When, in UTC, as ISO 8601.
    conversation, turns, tokens
        The conversation's own name, how many turns it has, how many tokens the cache held.
    ref, path, description
        The model as it was asked for, its file, and llama.cpp's words for it.
    options
        Load options that differed from the built-in ones.
    made_with
        What the state depends on, see `differences`: it can be used only where all of it is the same.
    text, ids, state
        The parts of the file.
    llama_magic
        The version that wrote it.
    """

    created: str
    conversation: str
    turns: int
    tokens: int
    ref: str
    path: str
    description: str
    options: dict[str, Any]
    made_with: dict[str, Any]
    text: Part
    ids: Part
    state: Part
    llama_magic: str = ""

    def to_json(self) -> bytes:
        """Return the header as it stands in the file."""
        return json.dumps(asdict(self), ensure_ascii=False).encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, data: bytes) -> SavedHeader:
        """Read a header whose checksum was right; raises `ValueError`, `TypeError` or `KeyError` where it is odd."""
        found = json.loads(data.decode("utf-8", "surrogatepass"))
        values = {f.name: found[f.name] for f in fields(cls)}
        for name in ("text", "ids", "state"):
            part = Part(**values[name])
            if type(part.size) is not int or part.size < 0 or not isinstance(part.sha256, str):
                raise ValueError(name)
            values[name] = part
        wanted = {"turns": int, "tokens": int, "options": dict, "made_with": dict}
        for name, value in values.items():
            if not isinstance(value, wanted.get(name, (str, Part))):
                raise TypeError(name)
        return cls(**values)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return _START.size + len(self.to_json()) + _DIGEST + self.text.size + self.ids.size + self.state.size


@dataclass(slots=True)
class Held:
    """What the cache held: token ids and llama.cpp's state of them, a view of the file while it is open."""

    tokens: tuple[int, ...]
    state: memoryview
    _open: list[Any] = field(default_factory=list, repr=False)

    def close(self) -> None:
        """Let go of the file."""
        for thing in self._open:
            thing.release() if isinstance(thing, memoryview) else thing.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def write_saved(
    file: IO[bytes],
    header: SavedHeader,
    text: bytes,
    ids: bytes,
    state: memoryview,
    step: Callable[[float], None] = lambda _fraction: None,
) -> None:
    """Write all parts; `step` is called with the fraction written, and may raise to stop."""
    head = header.to_json()
    start = _START.pack(_MAGIC, VERSION, len(head)) + head
    file.write(start + hashlib.sha256(start).digest() + text + ids)
    state = state.cast("B")
    for at in range(0, len(state), _BLOCK):
        step(at / len(state))
        file.write(state[at : at + _BLOCK])
    file.flush()


def pack_ids(tokens: list[int]) -> bytes:
    """Return token ids as they stand in the file."""
    return struct.pack(f"<{len(tokens)}i", *tokens)


def _damaged(path: Path, what: str) -> SavedStateError:
    return SavedStateError(f"{path.name!r} is damaged: {what}. It can not be restored; save the conversation again.")


def is_saved(path: Path) -> bool:
    """Tell whether a file is of this format, of whatever version and in whatever state."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_header(path: Path) -> SavedHeader:
    """Read what a saved conversation says of itself; the state may still be damaged.

    Raises
    ------
    SavedStateError
        It is none, is of a later version, or is damaged so far that not even its text can be trusted.
    """
    return _open_header(path)[0]


def _open_header(path: Path) -> tuple[SavedHeader, int]:
    """Return the header and where the text begins."""
    try:
        with path.open("rb") as file:
            start = file.read(_START.size)
            if not start.startswith(_MAGIC) or len(start) < _START.size:
                raise SavedStateError(f"{path.name!r} is no saved conversation of llama_magic")
            _, version, length = _START.unpack(start)
            if version != VERSION:
                raise SavedStateError(
                    f"{path.name!r} has layout {version}, this llama_magic reads layout {VERSION}: "
                    "it was saved by another version, or is damaged"
                )
            if length > _MOST_HEADER:
                raise _damaged(path, "its header has no sensible length")
            head, digest = file.read(length), file.read(_DIGEST)
    except OSError as error:
        raise SavedStateError(f"{str(path)!r} can not be read: {error.strerror or error}") from error
    if len(head) != length or hashlib.sha256(start + head).digest() != digest:
        raise _damaged(path, "its header is cut off or changed")
    try:
        header = SavedHeader.from_json(head)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"its header makes no sense ({error!r})") from error
    return header, _START.size + length + _DIGEST


def read_text(path: Path) -> Conversation:
    """Read the conversation, which may be intact where the state is not.

    Raises
    ------
    SavedStateError
        The text is damaged too.
    """
    header, at = _open_header(path)
    try:
        if header.text.size > path.stat().st_size:
            raise _damaged(path, "its text is cut off")
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(header.text.size)
    except OSError as error:
        raise SavedStateError(f"{str(path)!r} can not be read: {error.strerror or error}") from error
    if Part.of(data) != header.text:
        raise _damaged(path, "its text is cut off or changed")
    try:
        return Conversation.from_dict(json.loads(data.decode("utf-8", "surrogatepass")))
    except (ValueError, RecursionError) as error:  # InvalidRequestError is a ValueError
        raise _damaged(path, f"its text makes no sense ({error})") from error


def read_held(path: Path, step: Callable[[float], None] = lambda _fraction: None) -> Held:
    """Open the tokens and the state, checked against their checksums; close what is returned.

    `step` is called with the fraction checked, and may raise to stop.

    Raises
    ------
    SavedStateError
        One of them is damaged.
    """
    header, at = _open_header(path)
    at += header.text.size
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != at + header.ids.size + header.state.size:
                raise _state_damaged(path, "its length is not what it should be")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise SavedStateError(f"{str(path)!r} can not be read: {error.strerror or error}") from error
    whole = memoryview(mapped)
    ids, state = whole[at : at + header.ids.size], whole[at + header.ids.size :]
    held = Held((), state, [ids, state, whole, mapped])
    try:
        held.tokens = _checked(path, header, held, ids, step)
    except BaseException:
        held.close()
        raise
    return held


def _checked(
    path: Path, header: SavedHeader, held: Held, ids: memoryview, step: Callable[[float], None]
) -> tuple[int, ...]:
    """Return the tokens where they and the state are what was written."""
    if Part.of(ids) != header.ids or header.ids.size != 4 * header.tokens:
        raise _state_damaged(path, "its tokens were changed")
    digest, state = hashlib.sha256(), held.state
    for at in range(0, len(state), _BLOCK):
        step(at / len(state))
        with state[at : at + _BLOCK] as block:
            digest.update(block)
    if digest.hexdigest() != header.state.sha256:
        raise _state_damaged(path, "the state of the cache was changed")
    return struct.unpack(f"<{header.tokens}i", ids)


def _state_damaged(path: Path, what: str) -> SavedStateError:
    return SavedStateError(f"{path.name!r} is damaged: {what}. Its text is intact: --text-only takes that")


#: What a state depends on, and the words for it.
_WORDS: dict[str, str] = {
    "model": "another model file",
    "llama_cpp": "another version of llama.cpp",
    "state": "another layout of llama.cpp's state",
    "byteorder": "a machine with another byte order",
    "cache_type_k": "another type of the K cache (-ctk)",
    "cache_type_v": "another type of the V cache (-ctv)",
    "flash_attn": "another flash attention (-fa)",
    "lora": "other LoRA adapters (--lora)",
}


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return in words what keeps a saved state from being used here; empty when nothing does.

    Parameters
    ----------
    saved, here
        What a state depends on: hash of the model file, llama.cpp's commit and layout, types of the cache, flash
        attention, and every load option that changes what the model computes. What only one side has counts too.
    """
    found = []
    for name in dict.fromkeys([*_WORDS, *saved, *here]):
        there, now = saved.get(name), here.get(name)
        if there != now:
            word = _WORDS.get(name, f"another {name}")
            found.append(f"{word} ({_short(there)}, here {_short(now)})")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text[:14] + "…" if text.startswith("sha256") else "none" if value in (None, (), [], "") else text[:60]
