"""The file that a reference means. Apart from `api.library`: a file that is here needs nothing of what downloads."""

from __future__ import annotations

import os
from pathlib import Path

from llama_magic.models import resolve as references
from llama_magic.models.references import HubReference
from llama_magic.progress import Report

__all__ = ["locate"]


def locate(ref: str | os.PathLike[str], progress: Report | None = None) -> str:
    """Return the path of the file that a reference means, downloading it where it is not in the cache yet.

    Raises
    ------
    ModelNotFoundError, DownloadError
    """

    def fetch(found: HubReference) -> Path:
        from llama_magic.api.library import fetch_from_hub
        from llama_magic.models.download import DownloadRequest

        return fetch_from_hub(DownloadRequest(found), progress).path

    return references.resolve(os.fspath(ref), fetch)
