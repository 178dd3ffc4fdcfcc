"""Small JSON files of our own, replaced in one step."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidRequestError

__all__ = ["write_json"]


def write_json(file: Path, value: Any) -> None:
    """Replace a file in one step, so that a reader never sees half of it.

    Raises
    ------
    InvalidRequestError
        It can not be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(value, out, indent=2, ensure_ascii=False)
                out.write("\n")
            Path(name).replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as exc:
        raise InvalidRequestError(f"{file} can not be written: {exc.strerror or exc}") from exc
