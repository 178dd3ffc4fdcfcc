"""What a model file is known by: a hash of its content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from llama_magic.models.metadata import ModelMetadata

__all__ = ["content_hash"]

#: Larger files are known by their header and by samples of their tensors: all of it would keep a disk busy for long.
_WHOLE = 1 << 30
_SAMPLES, _SAMPLE = 256, 1 << 18
_BLOCK = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


def content_hash(metadata: ModelMetadata, check: Callable[[], None] = lambda: None) -> str:
    """Return 64 hexadecimal digits that tell a model's content apart from another's, of all its parts.

    The Hub's cache names a file by its SHA-256, which is taken as it is. Of files above 1 GiB, 256 evenly spaced
    samples of 256 KiB are hashed, the first and the last bytes among them.

    Parameters
    ----------
    check
        Called now and then; what it raises stops the hashing.

    Raises
    ------
    OSError
        A file can not be read.
    """
    digest = hashlib.sha256()
    paths = metadata.parts or (metadata.path,)
    for path in map(Path, paths):
        real = path.resolve()
        if _HEX.fullmatch(real.name):
            digest.update(real.name.encode())
        else:
            _add(digest, real, check)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: Path, check: Callable[[], None]) -> None:
    size = path.stat().st_size
    digest.update(f"{size} ".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            while block := file.read(_BLOCK):
                digest.update(block)
                check()
            return
        step = (size - _SAMPLE) // (_SAMPLES - 1)
        for number in range(_SAMPLES):
            file.seek(size - _SAMPLE if number == _SAMPLES - 1 else number * step)
            digest.update(file.read(_SAMPLE))
            check()
