"""What a model is, without loading it. Apart from `api.model`: the first look at a file needs little of the rest."""

from __future__ import annotations

import os

from llama_magic.api.locate import locate
from llama_magic.models.gguf import read_metadata
from llama_magic.models.metadata import ModelMetadata
from llama_magic.models.resolve import hub_of
from llama_magic.progress import Report

__all__ = ["inspect"]


def inspect(ref: str | os.PathLike[str], *, progress: Report | None = None) -> ModelMetadata:
    """Return what a model's file says of itself, without loading it.

    Of a file on the Hub that is not in the cache, only the header is fetched: a few megabytes.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, DownloadError
    """
    reference = hub_of(os.fspath(ref))
    if reference is None:
        return read_metadata(locate(ref, progress))
    from llama_magic.models.remote import inspect_hub

    return inspect_hub(reference, progress)
