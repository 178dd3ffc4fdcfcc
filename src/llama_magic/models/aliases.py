"""Short names for models, kept in a small JSON file in llama_magic's folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llama_magic.errors import InvalidRequestError, ModelNotFoundError
from llama_magic.models.json_file import write_json
from llama_magic.models.places import data_folder
from llama_magic.suggest import did_you_mean

__all__ = ["aliases", "aliases_file", "remove_alias", "set_alias"]

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}", re.ASCII)


def aliases_file() -> Path:
    """Return the file they are kept in."""
    return data_folder() / "aliases.json"


def aliases() -> dict[str, str]:
    """Return the references by their short names. A file that can not be read counts as empty."""
    try:
        found = json.loads(aliases_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: ref for name, ref in found.items() if isinstance(name, str) and isinstance(ref, str)}


def set_alias(name: str, ref: str, *, reserved: tuple[str, ...] = ()) -> str | None:
    """Let `name` stand for `ref`; returns what it stood for before.

    Raises
    ------
    InvalidRequestError
        The name can not be one, or the file can not be written.
    """
    if not _NAME.fullmatch(name) or name.lower().endswith(".gguf"):
        raise InvalidRequestError(f"{name!r} can not be an alias: letters, digits, - _ and . only, and no file name")
    if name.lower() in reserved:
        raise InvalidRequestError(f"{name} has a meaning already; choose another name")
    if name == ref:
        raise InvalidRequestError(f"{name} can not stand for itself")
    known = _readable()
    before = known.get(name)
    write_json(aliases_file(), dict(sorted({**known, name: ref}.items())))
    return before


def remove_alias(name: str) -> str:
    """Forget a short name; returns what it stood for."""
    known = _readable()
    if name not in known:
        raise ModelNotFoundError(f"there is no alias {name!r}.{did_you_mean(name, known)}")
    ref = known.pop(name)
    write_json(aliases_file(), known)
    return ref


def _readable() -> dict[str, str]:
    """Return the aliases to change them; a file that is not ours is not overwritten."""
    file = aliases_file()
    try:
        good = not file.is_file() or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        good = False
    if not good:
        raise InvalidRequestError(f"{file} can not be read as JSON; mend it or move it away")
    return aliases()
