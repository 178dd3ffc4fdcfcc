"""Conversations and answers as files."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from llama_magic.errors import InvalidRequestError
from llama_magic.inference.conversation import FORMAT, Conversation

__all__ = ["check_writable", "read_conversation", "write_conversation", "write_text"]

_MARK = f"<!-- {FORMAT} -->"


def write_conversation(conversation: Conversation, path: Path, *, force: bool = False) -> None:
    """Write a conversation as JSON (to restore it) or, where the name ends in ``.md``, as Markdown (to read it).

    A file that is there and is no saved conversation is left alone, unless `force` is given.
    """
    suffix = path.suffix.lower()
    if suffix in (".md", ".markdown"):
        text = f"{_MARK}\n{conversation.to_markdown()}"
    elif suffix == ".json":
        text = json.dumps(conversation.to_dict(), ensure_ascii=False, indent=1) + "\n"
    else:
        raise InvalidRequestError(f"save writes .json (to restore) or .md (to read); got {path.name!r}")
    if not force and path.exists() and not _is_ours(path):
        raise InvalidRequestError(f"{str(path)!r} exists and is no saved conversation; --force overwrites it")
    write_text(path, text)


def read_conversation(path: Path) -> Conversation:
    """Read what `write_conversation` wrote as JSON."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InvalidRequestError(f"no such file: {str(path)!r}") from None
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{str(path)!r} is no saved conversation (those are .json files): {error}") from error
    return Conversation.from_dict(data)


def check_writable(path: Path) -> None:
    """Raise `InvalidRequestError` where `write_text` could not work: better known before than after."""
    if path.is_dir():
        raise InvalidRequestError(f"{str(path)!r} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise InvalidRequestError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there as a whole or not at all."""
    check_writable(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_text(text, "utf-8", newline="")
        part.replace(path)
    except OSError as error:
        raise InvalidRequestError(f"{str(path)!r} can not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            start = file.read(200)
    except (OSError, ValueError):
        return False
    return not start or start.startswith(_MARK) or f'"format": "{FORMAT}"' in start
