"""The hash of a model file, computed beside the loading of it."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

from llama_magic.models.gguf import ModelMetadata

__all__ = ["FileHash"]

#: Larger files are known by the hash of their metadata and tensor table.
WHOLE_FILE_LIMIT = 1 << 30

_HEX = re.compile(r"[0-9a-f]{64}")


class FileHash:
    """Hashes a model file in a thread.

    The Hub's cache names a file by its SHA-256, which is taken as it is. Files above
    1 GiB would keep a disk busy for long: only their header is hashed.
    """

    def __init__(self, path: str, metadata: ModelMetadata) -> None:
        self._path = Path(path).resolve()
        self._metadata = metadata
        self._value = f"sha256:{self._path.name}" if _HEX.fullmatch(self._path.name) else ""
        self._thread: threading.Thread | None = None
        if not self._value:
            self._thread = threading.Thread(target=self._compute, name="llama-magic-hash", daemon=True)
            self._thread.start()

    def _compute(self) -> None:
        try:
            if self._path.stat().st_size > WHOLE_FILE_LIMIT:
                self._value = f"sha256-header:{self._metadata.header_sha256()}"
                return
            digest = hashlib.sha256()
            with self._path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            self._value = f"sha256:{digest.hexdigest()}"
        except OSError as exc:
            self._value = f"unknown: {exc.strerror}"

    def value(self) -> str:
        """Return ``sha256:…`` or ``sha256-header:…``, waiting for it where needed."""
        if self._thread is not None:
            self._thread.join()
        return self._value
