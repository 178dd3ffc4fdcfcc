"""Model references: what a person types. One grammar for flags, Python, panel and server.

``path/to/model.gguf`` · ``hf:owner/repo[:quant][@rev]`` and bare ``owner/repo[:quant][@rev]`` ·
``hf:owner/repo/file.gguf[@rev]`` · split files by their first part · an alias · ``smollm2``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llama_magic.errors import InvalidRequestError, ModelNotFoundError
from llama_magic.models.aliases import aliases
from llama_magic.suggest import did_you_mean

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_QUANT",
    "HubReference",
    "choose_file",
    "expand_alias",
    "explain_hub",
    "from_address",
    "is_model_ref",
    "models_among",
    "no_such_file",
    "parse_hub",
    "quant_of",
    "safe_name",
    "split_parts",
]

#: The model that is there without a download, when the extra `demo` is installed.
DEFAULT_MODEL = "smollm2"
#: What llama.cpp's ``-hf`` takes where no quantization is named.
DEFAULT_QUANT = "Q4_K_M"

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<file>[^:@\\]+\.gguf)|:(?P<quant>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?",
    re.IGNORECASE | re.ASCII,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
#: Files beside a model that are no model of their own: image projectors, draft heads, importance matrices.
_BESIDE = re.compile(r"(?:^|[-_.])(?:mmproj|imatrix|mtp)(?:[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the Hub, and which of its files: by name or by quantization.

    `revision` is a branch, a tag or a commit; None means the main branch.
    """

    repo: str
    file: str | None = None
    quant: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        what = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return f"hf:{self.repo}{what}" + (f"@{self.revision}" if self.revision else "")


def parse_hub(ref: str) -> HubReference | None:
    """Return the Hub repository that a reference names, or None when it is of another form."""
    match = _HUB.fullmatch(ref.removeprefix("hf:"))
    if match is None or ".." in match["repo"]:
        return None
    if not all(safe_name(match[part]) for part in ("file", "revision") if match[part]):
        return None
    return HubReference(match["repo"], match["file"], match["quant"], match["revision"])


def safe_name(name: str) -> bool:
    """Tell whether a file name from the network stays inside the folder it is put into."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part or ":" in part for part in parts)


def explain_hub(ref: str) -> str:
    """Return why a reference with ``hf:`` can not be read, and what would be right."""
    text = ref.removeprefix("hf:")
    if ".." in text.split("/"):
        return f"{ref!r} leaves its repository (..): name a file inside it, hf:owner/repo/file.gguf"
    if text.count("/") >= 2 and not re.search(r"\.gguf(?:@|$)", text, re.IGNORECASE):
        return f"{ref!r}: only .gguf files can be named: hf:owner/repo/file.gguf or hf:owner/repo:quant"
    return f"{ref!r} is not of the form hf:owner/repo[:quant][@revision] or hf:owner/repo/file.gguf[@revision]"


def from_address(ref: str) -> str | None:
    """Return the reference that a web address of the Hub stands for, for an error that says what to type."""
    match = re.match(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(.+)", ref, re.IGNORECASE)
    if match is None:
        return None
    path = match[1].split("?")[0].split("#")[0].strip("/")
    parts = path.split("/")
    if len(parts) > 4 and parts[2] in ("blob", "resolve") and path.lower().endswith(".gguf"):
        pinned = "" if parts[3] == "main" else f"@{parts[3]}"
        return f"hf:{parts[0]}/{parts[1]}/{'/'.join(parts[4:])}{pinned}"
    return f"hf:{'/'.join(parts[:2])}"


def expand_alias(ref: str) -> str:
    """Return what an alias stands for, any other reference as it is.

    Raises
    ------
    InvalidRequestError
        Aliases lead in a circle.
    """
    known, seen = aliases(), [ref]
    while ref in known:
        ref = known[ref]
        if ref in seen:
            raise InvalidRequestError(f"the alias {seen[0]} leads in a circle: {' → '.join([*seen, ref])}")
        seen.append(ref)
    return ref


def is_model_ref(word: str) -> bool:
    """Tell whether a word looks like a model reference (not whether it exists)."""
    return (
        word.lower() == DEFAULT_MODEL
        or word.lower().endswith(".gguf")
        or word.startswith("hf:")
        or (parse_hub(word) is not None and not Path(word).is_dir())
        or word in aliases()
    )


def split_parts(name: str) -> list[str]:
    """Return the names of all parts of a split model, or just `name` where it is whole.

    llama.cpp's pattern: ``model-00001-of-00003.gguf`` (`llama_split_path`).

    Raises
    ------
    ModelNotFoundError
        It is a part, but not the first.
    """
    match = _PART.search(name)
    if match is None:
        return [name]
    number, count, stem = int(match[1]), int(match[2]), name[: match.start()]
    if number != 1:
        raise ModelNotFoundError(
            f"{name} is part {number} of {count}: name the first, {stem}-00001-of-{match[2]}{name[-5:]}"
        )
    return [f"{stem}-{part:05}-of-{match[2]}{name[-5:]}" for part in range(1, max(count, 1) + 1)]


def quant_of(name: str) -> str:
    """Return the quantization that a file's name ends in, such as "Q4_K_M"; the whole stem where none is told."""
    stem = _PART.sub("", PurePosixPath(name).name)
    stem = re.sub(r"\.gguf$", "", stem, flags=re.IGNORECASE)
    found = re.search(r"(?:^|[-._])((?:I?Q|TQ|BF|F|MXFP|NVFP)\d\w*)$", stem, re.IGNORECASE)
    return found[1] if found else stem


def models_among(files: Iterable[str]) -> list[str]:
    """Return the files that are models, a split one by its first part, in order."""
    found = []
    for name in sorted(files):
        path = PurePosixPath(name)
        part = _PART.search(name)
        beside = _BESIDE.search(path.name.removesuffix(".gguf"))
        if path.suffix.lower() == ".gguf" and not beside and (part is None or int(part[1]) == 1):
            found.append(name)
    return found


def choose_file(files: Sequence[str], quant: str | None, repo: str) -> str:
    """Return the file that llama.cpp's ``-hf`` would take.

    The quantization is matched without regard to case; without one it is Q4_K_M, else the first file.

    Raises
    ------
    ModelNotFoundError
        There is no GGUF file, or none of this quantization; those there are get listed.
    """
    models = models_among(files)
    if not models:
        more = " It holds safetensors: %llama convert makes a GGUF file of them." if _safetensors(files) else ""
        raise ModelNotFoundError(
            f"the repository {repo} has no .gguf file; look for one whose name ends in -GGUF.{more}"
        )
    wanted = (quant or DEFAULT_QUANT).lower()
    for name in models:
        stem = _PART.sub("", PurePosixPath(name).name.lower()).removesuffix(".gguf")
        if stem.endswith(wanted) and (stem == wanted or stem[-len(wanted) - 1] in ".-_"):
            return name
    if quant is None:
        return models[0]
    names = list(dict.fromkeys(map(quant_of, models)))
    listed = ", ".join(names[:30]) + (" …" if len(names) > 30 else "")
    raise ModelNotFoundError(f"{repo} has no {quant}.{did_you_mean(quant, names)} It has: {listed}")


def _safetensors(files: Iterable[str]) -> bool:
    return any(name.endswith(".safetensors") for name in files)


def no_such_file(repo: str, name: str, files: Iterable[str]) -> ModelNotFoundError:
    """Return the error for a file that a repository does not hold."""
    models = models_among(files)
    listed = f" It has: {', '.join(models[:12])}{' …' if len(models) > 12 else ''}" if models else ""
    return ModelNotFoundError(f"{repo} has no file {name}.{did_you_mean(name, models)}{listed}")
