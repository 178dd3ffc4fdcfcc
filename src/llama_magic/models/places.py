"""Where files live: our own folder, the Hub's cache, and the folders of other tools.

The environment is read at each call, so that what a notebook sets holds at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = [
    "data_folder",
    "hub_cache",
    "llama_cpp_caches",
    "lm_studio_folders",
    "models_folder",
    "ollama_folders",
    "tuned_file",
]


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name, "").strip()
    return Path(os.path.expandvars(value)).expanduser() if value else None


def data_folder() -> Path:
    """Return the folder that llama_magic keeps its own files in; nothing is made here.

    ``LLAMA_MAGIC_HOME``, else the platform's folder for a user's data.
    """
    own = _from_environment("LLAMA_MAGIC_HOME")
    if own is not None:
        return own.absolute()
    if sys.platform == "win32":
        base = _from_environment("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = _from_environment("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return base / "llama_magic"


def tuned_file() -> Path:
    """Return the file that keeps tuned settings."""
    return data_folder() / "tuned.json"


def models_folder() -> Path:
    """Return the folder for models that were made here and not placed elsewhere."""
    return data_folder() / "models"


def hub_cache() -> Path:
    """Return the cache that all tools of the Hugging Face Hub share (huggingface_hub's own rules)."""
    named = _from_environment("HF_HUB_CACHE") or _from_environment("HUGGINGFACE_HUB_CACHE")
    if named is not None:
        return named
    home = _from_environment("HF_HOME")
    if home is None:
        home = (_from_environment("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return home / "hub"


def llama_cpp_caches() -> list[Path]:
    """Return the folders that llama.cpp's tools download to (`fs_get_cache_directory`), if they exist."""
    named = _from_environment("LLAMA_CACHE")
    if named is not None:
        return _existing(named)
    if sys.platform == "win32":
        base = _from_environment("LOCALAPPDATA")
        return _existing(base / "llama.cpp") if base else []
    if sys.platform == "darwin":
        return _existing(Path.home() / "Library" / "Caches" / "llama.cpp")
    return _existing((_from_environment("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama.cpp")


def ollama_folders() -> list[Path]:
    """Return Ollama's model folders that exist: the user's, or the service's on Linux."""
    named = _from_environment("OLLAMA_MODELS")
    if named is not None:
        return _existing(named)
    return _existing(Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models"))


def lm_studio_folders() -> list[Path]:
    """Return LM Studio's model folders that exist: the present one and the older one."""
    home = Path.home()
    pointer = home / ".lmstudio-home-pointer"
    try:
        root = Path(pointer.read_text(encoding="utf-8").strip()) if pointer.is_file() else home / ".lmstudio"
    except (OSError, UnicodeDecodeError):
        root = home / ".lmstudio"
    return _existing(root / "models", home / ".cache" / "lm-studio" / "models")


def _existing(*folders: Path) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        try:
            if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
                found.append(folder)
        except OSError:
            continue
    return found
