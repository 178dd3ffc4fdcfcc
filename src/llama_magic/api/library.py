"""The library of models: find, download, list, delete. The network is asked in short-lived workers."""

from __future__ import annotations

import os
from pathlib import Path

from llama_magic.engine.client import get_client
from llama_magic.engine.jobs import run_job
from llama_magic.engine.protocol import StatusRequest, UnloadRequest
from llama_magic.errors import InvalidRequestError, JobInterrupted
from llama_magic.models import aliases as short_names
from llama_magic.models import resolve as references
from llama_magic.models.catalogue import CATALOGUE, SearchRequest
from llama_magic.models.download import Download, DownloadRequest
from llama_magic.models.library import Catalogue, ModelList, SearchResults
from llama_magic.models.references import DEFAULT_MODEL, HubReference, parse_hub
from llama_magic.models.store import Deletion, list_models, plan_deletion
from llama_magic.models.store import delete as remove
from llama_magic.progress import Report

__all__ = [
    "aliases",
    "aliases_file",
    "catalog",
    "delete",
    "delete_planned",
    "download",
    "download_files",
    "fetch",
    "fetch_from_hub",
    "models",
    "plan_delete",
    "remove_alias",
    "search",
    "set_alias",
]

_KEPT = "stopped; what came is kept, and the next download goes on from there."


def download(ref: str | os.PathLike[str], *, progress: Report | None = None) -> Path:
    """Return the local file that a model reference means, fetching it from the Hub where needed.

    Unlike `load`, it asks the Hub for a newer version of what is in the cache. A stopped download goes on where it
    was. The content is checked against the Hub's own hash.

    Parameters
    ----------
    ref
        A file, ``owner/repo[:quant][@rev]``, ``hf:owner/repo/file.gguf[@rev]``, an alias, or ``smollm2``.
    progress
        Called with bytes, rate and time left.

    Raises
    ------
    ModelNotFoundError, DownloadError
    """
    found = fetch(ref, progress=progress)
    return found.path if isinstance(found, Download) else found


def fetch(ref: str | os.PathLike[str], *, progress: Report | None = None) -> Download | Path:
    """Do the same as `download`, and return what is to tell of it; a local file as its path."""
    found = references.locate(os.fspath(ref))
    return found if isinstance(found, Path) else fetch_from_hub(DownloadRequest(found), progress)


def download_files(
    repo: str, patterns: tuple[str, ...], *, revision: str | None = None, progress: Report | None = None
) -> Path:
    """Fetch the files of a repository that match one of the patterns, and return the folder they are in.

    Parameters
    ----------
    patterns
        As of a shell: ``("*.safetensors", "*.json")``. One that begins with ``!`` leaves out again; the last that
        matches a name holds.

    Raises
    ------
    ModelNotFoundError, DownloadError
    """
    return fetch_from_hub(DownloadRequest(HubReference(repo, revision=revision), patterns), progress).path


def fetch_from_hub(request: DownloadRequest, progress: Report | None = None) -> Download:
    """Answer a `DownloadRequest` in a worker; a stop says that what came is kept."""
    try:
        done: Download = run_job(request, progress)
    except JobInterrupted as stopped:
        raise JobInterrupted(stopped.result, _KEPT) from None
    return done


def models() -> ModelList:
    """Return the models on this machine: the Hub's cache, our folder, and what other tools keep."""
    return list_models()


def delete(ref: str | os.PathLike[str]) -> int:
    """Delete a model from the Hub's cache or our folder, without asking, and return the bytes that were freed.

    It is unloaded first. What other tools keep is refused.

    Raises
    ------
    ModelNotFoundError, InvalidRequestError
    """
    return delete_planned(plan_delete(ref))


def plan_delete(ref: str | os.PathLike[str]) -> Deletion:
    """Return what `delete` would remove."""
    return plan_deletion(os.fspath(ref))


def delete_planned(plan: Deletion) -> int:
    """Delete what `plan_delete` named; returns the bytes that were freed."""
    client = get_client()
    if plan.path and client.alive:
        for info in client.request(StatusRequest()):
            if Path(info.path).resolve() == Path(plan.path).resolve():
                client.request(UnloadRequest(info.path))
    return remove(plan)


def search(words: str, *, limit: int = 15, progress: Report | None = None) -> SearchResults:
    """Search the Hub for repositories with GGUF files.

    Raises
    ------
    DownloadError
    """
    if not words.strip():
        raise InvalidRequestError("search needs words: %llama models --search smollm2 instruct")
    if not 1 <= limit <= 100:
        raise InvalidRequestError(f"limit is a number from 1 to 100; got {limit}")
    found: SearchResults = run_job(SearchRequest(words.strip(), limit), progress)
    return found


def catalog() -> Catalogue:
    """Return a table of small instruct models that are good for teaching."""
    return CATALOGUE


def aliases() -> dict[str, str]:
    """Return the references of models by their short names."""
    return short_names.aliases()


def aliases_file() -> Path:
    """Return the file that keeps the short names."""
    return short_names.aliases_file()


def set_alias(name: str, ref: str) -> tuple[str, str | None]:
    """Let a short name stand for a reference; returns the reference as it is kept, and what it was before.

    The path of a file is made absolute, so that it means the same in every folder.

    Raises
    ------
    InvalidRequestError, ModelNotFoundError
    """
    path = Path(ref).expanduser()
    if not ref.startswith("hf:") and path.is_file():
        ref = str(path.absolute())
    elif ref.lower() != DEFAULT_MODEL and ref not in aliases() and parse_hub(ref) is None:
        references.locate(ref)  # says what is wrong with it
    return ref, short_names.set_alias(name, ref, reserved=(DEFAULT_MODEL,))


def remove_alias(name: str) -> str:
    """Forget a short name; returns what it stood for.

    Raises
    ------
    ModelNotFoundError
    """
    return short_names.remove_alias(name)
