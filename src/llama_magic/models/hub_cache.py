"""The Hub's cache on disk, read and written by its documented layout, without importing huggingface_hub.

``models--owner--repo/{refs/<revision>, blobs/<etag>, snapshots/<commit>/<file>}``:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from llama_magic.errors import ModelNotFoundError
from llama_magic.models.places import hub_cache
from llama_magic.models.references import DEFAULT_QUANT, HubReference, choose_file, models_among, quant_of, split_parts

__all__ = ["PARTIAL", "add_to_cache", "cached_files", "find_cached", "repo_folder", "snapshot_of"]

#: What a download that is not finished is called, beside the blob it will be.
PARTIAL = ".incomplete"

_COMMIT = re.compile(r"[0-9a-f]{40}")


def repo_folder(repo: str) -> Path:
    """Return the folder of a repository in the cache."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def snapshot_of(repo: str, revision: str | None) -> Path | None:
    """Return the folder of a revision's files as the cache knows it, None where it has none."""
    folder, revision = repo_folder(repo), revision or "main"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        if not _COMMIT.fullmatch(commit):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def cached_files(snapshot: Path) -> list[str]:
    """Return the names of the whole files in a snapshot."""
    return [path.relative_to(snapshot).as_posix() for path in sorted(snapshot.rglob("*")) if path.is_file()]


def find_cached(reference: HubReference, *, settle: bool = False) -> Path | None:
    """Return the cached file that a reference means, None where it is not certain or not there.

    Parameters
    ----------
    settle
        Where no quantization was named and the default one is not in the cache, the Hub might still have
        it. True takes what there is: for when the Hub can not be asked.
    """
    snapshot = snapshot_of(reference.repo, reference.revision)
    if snapshot is None:
        return None
    files = cached_files(snapshot)
    if reference.file is not None:
        name = reference.file
    else:
        try:
            name = choose_file(models_among(files), reference.quant, reference.repo)
        except ModelNotFoundError:
            return None
        if not settle and reference.quant is None and quant_of(name).upper() != DEFAULT_QUANT:
            return None
    try:
        parts = split_parts(name)
    except ModelNotFoundError:
        return None
    return snapshot / name if all(part in files for part in parts) else None


def add_to_cache(repo: str, revision: str | None, commit: str, name: str, blob: Path) -> Path:
    """Make a blob appear under its name in the snapshot of a commit, and note the revision; returns the file."""
    folder = repo_folder(repo)
    file = folder / "snapshots" / commit / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        with contextlib.suppress(FileNotFoundError):
            file.unlink()  # a link to a blob that is gone
        try:
            file.symlink_to(os.path.relpath(blob, file.parent))
        except OSError:
            # No links here (Windows without developer mode): the file itself goes there, as huggingface_hub does it.
            shutil.move(str(blob), str(file))
    note = folder / "refs" / (revision or "main")
    if not _COMMIT.fullmatch(revision or "main"):
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f"{note.name}.{secrets.token_hex(4)}.tmp")
        fresh.write_text(commit, encoding="utf-8")
        fresh.replace(note)
    return file
