"""Files from the Hugging Face Hub, through huggingface_hub and its shared cache."""

from __future__ import annotations

from pathlib import PurePosixPath

from llama_magic.errors import DownloadError, ModelNotFoundError
from llama_magic.suggest import did_you_mean

__all__ = ["choose_file", "download"]

DEFAULT_QUANT = "Q4_K_M"


def choose_file(files: list[str], quant: str | None, repo: str) -> str:
    """Return the file that llama.cpp's ``-hf`` would take.

    The quantization is matched without regard to case; without one it is Q4_K_M, else the first file.

    Raises
    ------
    ModelNotFoundError
        There is no GGUF file, or none of this quantization; those there are get listed.
    """
    models = sorted(
        file for file in files if file.lower().endswith(".gguf") and "mmproj" not in PurePosixPath(file).name.lower()
    )
    if not models:
        raise ModelNotFoundError(f"the repository {repo} has no .gguf file; look for one whose name ends in -GGUF")
    wanted = (quant or DEFAULT_QUANT).lower()
    for file in models:
        stem = PurePosixPath(file).name.lower().removesuffix(".gguf").split("-00001-of-")[0]
        if stem.endswith(wanted) and (stem == wanted or stem[-len(wanted) - 1] in ".-_"):
            return file
    if quant is None:
        return models[0]
    names = [PurePosixPath(file).stem.replace("-", ".").rsplit(".", 1)[-1] for file in models]
    raise ModelNotFoundError(f"{repo} has no {quant}.{did_you_mean(quant, names)} It has: {', '.join(names)}")


def download(repo: str, *, file: str | None, quant: str | None) -> str:
    """Return the local path of a file of a repository, from the cache where it is there.

    Raises
    ------
    ModelNotFoundError, DownloadError
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        if file is None:
            cached = _cached_files(repo)
            try:
                names = HfApi().list_repo_files(repo)
            except (OfflineModeIsEnabled, OSError):
                if not cached:
                    raise
                names = cached
            file = choose_file(names, quant, repo)
        return hf_hub_download(repo, file)
    except GatedRepoError as exc:
        raise DownloadError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise ModelNotFoundError(
            f"there is no repository {repo} on the Hub, or it is private: check the name, or set HF_TOKEN"
        ) from exc
    except OfflineModeIsEnabled as exc:
        raise DownloadError(f"{repo} is not in the cache and HF_HUB_OFFLINE is set; unset it to download") from exc
    except LocalEntryNotFoundError as exc:
        raise DownloadError(f"{repo} is not in the cache and the Hub can not be reached; check the network") from exc
    except EntryNotFoundError as exc:
        raise ModelNotFoundError(f"{repo} has no file {file}") from exc
    except (HfHubHTTPError, OSError) as exc:
        raise DownloadError(f"the Hub did not give {repo}: {exc}") from exc


def _cached_files(repo: str) -> list[str]:
    """Return the GGUF files of a repository that are in the cache already."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return []
    return [
        file.file_name
        for entry in cache.repos
        if entry.repo_id == repo
        for revision in entry.revisions
        for file in revision.files
    ]
