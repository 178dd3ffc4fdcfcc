"""Conversations kept with the state of their cache: in the user's data folder, or in a file of one's own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llama_magic.api.files import check_writable
from llama_magic.engine.protocol import RestoreStateRequest, SaveStateRequest
from llama_magic.errors import GenerationInterrupted, InvalidRequestError, JobInterrupted, SavedStateError
from llama_magic.inference.conversation import Conversation
from llama_magic.inference.saved import SavedHeader, is_saved, read_header, read_text
from llama_magic.markup import heading, note, page, table, text_table
from llama_magic.models.options import LoadOptions, ModelSpec
from llama_magic.models.places import data_folder
from llama_magic.suggest import did_you_mean
from llama_magic.units import format_bytes

if TYPE_CHECKING:
    from llama_magic.engine.client import Client
    from llama_magic.progress import Report

__all__ = [
    "SavedConversation",
    "SavedConversations",
    "conversations_folder",
    "delete_saved",
    "load_saved",
    "loading_of",
    "place_of",
    "put_state",
    "save_state",
    "saved_conversations",
]

SUFFIX = ".chat"

_NAME = re.compile(r"\w(?:[\w -]{0,58}\w)?")
_STALE_S = 24 * 3600
_HEAD = ("name", "saved", "model", "turns", "tokens", "size")
_ALIGN = "lllrrr"


@dataclass(frozen=True, slots=True)
class SavedConversation:
    """One conversation on disk.

    Attributes
    ----------
    name
        What `restore` takes.
    path
        The file.
    conversation
        The conversation's own name.
    created
        When it was saved; None where the file can not be read.
    model
        The model, as it was asked for.
    turns, tokens, size
        Turns, tokens in the cache, bytes of the file.
    problem
        Why it can not be read; empty where it can.
    """

    name: str
    path: Path
    conversation: str = ""
    created: datetime | None = None
    model: str = ""
    turns: int = 0
    tokens: int = 0
    size: int = 0
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain, JSON-ready dict."""
        when = None if self.created is None else self.created.isoformat()
        return {**asdict(self), "path": str(self.path), "created": when}


@dataclass(frozen=True, slots=True)
class SavedConversations:
    """What is saved, the newest first; ``saved["name"]`` is one of them."""

    rows: tuple[SavedConversation, ...]
    folder: Path

    def __iter__(self) -> Iterator[SavedConversation]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> SavedConversation:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __repr__(self) -> str:
        if not self.rows:
            return f"Nothing is saved in {self.folder}. %llama save NAME keeps a conversation."
        return f"{text_table(_HEAD, map(_cells, self.rows), _ALIGN)}\nin {self.folder}"

    def _repr_html_(self) -> str:
        if not self.rows:
            return page(note(repr(self)))
        total = format_bytes(sum(row.size for row in self.rows))
        told = note(
            f"{total} in {self.folder}. %llama restore NAME goes on with one, %llama save --delete NAME removes it."
        )
        return page(heading("Saved conversations"), table(_HEAD, map(_cells, self.rows), _ALIGN), told)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain, JSON-ready dict."""
        return {"folder": str(self.folder), "rows": [row.to_dict() for row in self.rows]}


def _cells(row: SavedConversation) -> tuple[str, ...]:
    if row.problem or row.created is None:
        return (row.name, "can not be read", "", "", "", format_bytes(row.size))
    when = row.created.astimezone().strftime("%Y-%m-%d %H:%M")
    return (row.name, when, _plain(row.model), f"{row.turns:,}", f"{row.tokens:,}", format_bytes(row.size))


def _plain(text: str) -> str:
    """Return a text from a file without what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


# -- places --------------------------------------------------------------------------------


def conversations_folder() -> Path:
    """Return the folder of saved conversations; it need not exist."""
    return data_folder() / "conversations"


def place_of(name: str | Path) -> Path:
    """Return the file that a name means, or the one that a path ending in ``.chat`` names.

    Raises
    ------
    InvalidRequestError
        It is neither.
    """
    if isinstance(name, Path) or name.endswith(SUFFIX):
        path = Path(name).expanduser()
        if path.suffix != SUFFIX:
            raise InvalidRequestError(f"a conversation with its cache is kept in a {SUFFIX} file; got {path.name!r}")
        return path.absolute()
    plain = unicodedata.normalize("NFC", name)
    if not _NAME.fullmatch(plain) or len(plain.encode()) > 120:
        raise InvalidRequestError(
            f"{_plain(name)!r} is no name for a saved conversation: take letters, digits, - and _, at most 60. "
            "Files end in .json (the text, to restore), .md (the text, to read) or .chat (with the cache)"
        )
    return conversations_folder() / f"{plain}{SUFFIX}"


def saved_conversations() -> SavedConversations:
    """Return what `save` has kept in the data folder, the newest first."""
    folder = conversations_folder()
    rows = [_row(path) for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")]
    rows.sort(key=lambda row: (-row.created.timestamp() if row.created else 0.0, row.name))
    return SavedConversations(tuple(rows), folder)


def _row(path: Path) -> SavedConversation:
    size = 0
    with contextlib.suppress(OSError):
        size = path.stat().st_size
    try:
        header = read_header(path)
        created = datetime.fromisoformat(header.created)
        created.timestamp()
    except (SavedStateError, OSError, ValueError, OverflowError) as error:
        return SavedConversation(path.stem, path, size=size, problem=_plain(str(error)))
    return SavedConversation(
        path.stem, path, header.conversation, created, header.ref, header.turns, header.tokens, size
    )


def _existing(name: str | Path) -> Path:
    path = place_of(name)
    if path.is_file():
        return path
    known = [row.name for row in saved_conversations()]
    if isinstance(name, Path) or name.endswith(SUFFIX):
        raise InvalidRequestError(f"no such file: {str(path)!r}")
    there = f" There is: {', '.join(known[:8])}." if known else " Nothing is saved yet."
    raise InvalidRequestError(f"no saved conversation {_plain(name)!r}.{did_you_mean(name, known)}{there}")


def delete_saved(name: str | Path) -> SavedConversation:
    """Delete a saved conversation and return what it was."""
    path = _existing(name)
    row = _row(path)
    if row.problem and not is_saved(path):
        raise InvalidRequestError(f"{str(path)!r} is no saved conversation; it is left alone")
    try:
        path.unlink()
    except OSError as error:
        raise InvalidRequestError(f"{str(path)!r} can not be deleted: {error.strerror or error}") from error
    return row


# -- saving --------------------------------------------------------------------------------


def save_state(
    client: Client,
    spec: ModelSpec,
    conversation: Conversation,
    name: str | Path,
    *,
    force: bool = False,
    progress: Report | None = None,
) -> SavedConversation:
    """Write a conversation with the state of its cache; what was saved under the name before is replaced.

    The file is there as a whole or not at all. What the cache does not hold is processed first.

    Raises
    ------
    InvalidRequestError
        The name can not be used, the conversation is empty, the disk is full, or another file is in the way.
    JobInterrupted
        The user stopped it; nothing was written.
    """
    path = place_of(name)
    if not conversation.turns and not conversation.system:
        raise InvalidRequestError(f"conversation '{conversation.name}' is empty: there is nothing to save")
    if not force and path.exists() and not is_saved(path):
        raise InvalidRequestError(f"{str(path)!r} exists and is no saved conversation; --force overwrites it")
    text = json.dumps(conversation.to_dict(), ensure_ascii=False).encode("utf-8", "surrogatepass")
    part = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.part")
    request = SaveStateRequest(
        spec, conversation.key, conversation.messages(), conversation.name, len(conversation), text, str(part), force
    )
    try:
        _prepare(path, part)
        client.request(request, progress)
        _finish(part, path)
    except JobInterrupted:
        raise
    except (GenerationInterrupted, KeyboardInterrupt):
        raise JobInterrupted(words="stopped; nothing was saved.") from None
    except OSError as error:
        raise InvalidRequestError(f"{str(path)!r} can not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return _row(path)


def _prepare(path: Path, part: Path) -> None:
    """Make the folder and an empty file that nobody else can read; take away what a killed kernel left."""
    if path.parent == conversations_folder():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_writable(path)
    for old in path.parent.glob(f".{path.stem}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE_S:
                old.unlink()
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _finish(part: Path, path: Path) -> None:
    """Give the file its name once it is on the disk. Here, since the worker could not be interrupted meanwhile."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # not every file system can do this for folders
                os.fsync(folder)
        finally:
            os.close(folder)


# -- restoring -----------------------------------------------------------------------------


def load_saved(name: str | Path) -> tuple[Conversation, SavedHeader, Path]:
    """Read a saved conversation's text and where it came from; its state is not looked at.

    Raises
    ------
    InvalidRequestError
        There is none of this name.
    SavedStateError
        The file is damaged so far that not even its text can be trusted.
    """
    path = _existing(name)
    return read_text(path), read_header(path), path


def loading_of(header: SavedHeader) -> dict[str, Any]:
    """Return the load options that a conversation was saved with, as far as this version knows them."""
    known = {f.name for f in fields(LoadOptions)}
    found = {name: _tuples(value) for name, value in header.options.items() if name in known}
    try:
        LoadOptions.from_keywords(**found)
    except (InvalidRequestError, TypeError, ValueError, AttributeError):
        return {}
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def put_state(
    client: Client,
    spec: ModelSpec,
    conversation: Conversation,
    path: Path,
    *,
    force: bool = False,
    progress: Report | None = None,
) -> SavedHeader:
    """Put a saved state into the cache of a conversation, loading the model where needed.

    Raises
    ------
    SavedStateError
        The state is damaged, or was made with another model, llama.cpp or cache; the message says which.
    """
    request = RestoreStateRequest(spec, conversation.key, str(path), force)
    return cast(SavedHeader, client.request(request, progress))
