"""The llama.cpp source that the installed llama-cpp-python was built from, fetched once and checked.

Its source distribution holds all of llama.cpp: converters, backends and tools. pip fetches it, from
the index that pip is set up with; the file must have the hash recorded here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from llama_magic.errors import DownloadError, InvalidRequestError, JobInterrupted, MissingDependencyError
from llama_magic.models.places import data_folder
from llama_magic.progress import Progress, Report

__all__ = ["CONVERTER", "HASHES", "SOURCE_VARIABLE", "llama_cpp_source"]

#: SHA-256 of the source distribution of each version that the tests ran with.
HASHES = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}

#: The parts of llama.cpp that converting needs.
CONVERTER = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")

#: Environment variable that names the source distribution, for machines without a network.
SOURCE_VARIABLE = "LLAMA_MAGIC_SOURCE"

_PREFIX = "vendor/llama.cpp/"
#: More than any version's source by far: a bound for what is unpacked.
_MOST_BYTES = 2 << 30
_LOOK_S = 0.05


def llama_cpp_source(
    parts: Iterable[str] | None = None,
    progress: Report | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """Return a folder with llama.cpp's source as the installed llama-cpp-python has it.

    Parameters
    ----------
    parts
        Files, and folders ending in ``/``, that are needed; None: everything.
    progress
        Called with every `Progress`.
    cancelled
        Asked meanwhile; True ends pip.

    Raises
    ------
    JobInterrupted
        `cancelled` said so.
    DownloadError
        pip could not fetch it, or it is not the file it should be.
    """
    version = importlib.metadata.version("llama-cpp-python")
    wanted = tuple(parts) if parts is not None else ("",)
    name = "all" if parts is None else hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    folder = data_folder() / "llama.cpp" / version / name
    if folder.is_dir():
        return folder
    expected = HASHES.get(version)
    if expected is None:
        raise DownloadError(
            f"the source of llama-cpp-python {version} has no recorded hash; install {', '.join(HASHES)}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llama-magic-") as temporary:
        archive = _archive(version, expected, Path(temporary), progress, cancelled)
        part = folder.parent / f".{name}.{secrets.token_hex(4)}.part"
        try:
            _unpack(archive, part, wanted)
            if not folder.is_dir():
                part.rename(folder)
        except tarfile.TarError as exc:
            raise DownloadError(f"{archive.name} can not be unpacked: {exc}") from exc
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _archive(
    version: str, expected: str, temporary: Path, progress: Report | None, cancelled: Callable[[], bool]
) -> Path:
    named = os.environ.get(SOURCE_VARIABLE, "").strip()
    if named:
        archive = Path(named).expanduser()
        if not archive.is_file():
            raise InvalidRequestError(f"{SOURCE_VARIABLE} names {named}, which is no file")
    else:
        if progress is not None:
            progress(Progress("download", None, f"fetching the source of llama.cpp (llama-cpp-python {version}, once)"))
        archive = _download(version, expected, temporary, cancelled)
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise DownloadError(
            f"{archive.name} is not the source of llama-cpp-python {version}: its SHA-256 is {digest.hexdigest()}, "
            f"not {expected}. Nothing of it was used."
        )
    return archive


def _download(version: str, expected: str, folder: Path, cancelled: Callable[[], bool]) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError(
            f"fetching llama.cpp's source needs pip: python -m ensurepip, or let {SOURCE_VARIABLE} name the source "
            f"distribution llama_cpp_python-{version}.tar.gz"
        )
    needs = folder / "requirements.txt"
    needs.write_text(f"llama-cpp-python=={version} --hash=sha256:{expected}\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "-q", "--no-deps",
        "--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(needs), "-d", str(folder),
    ]  # fmt: skip
    code, said = _run(command, cancelled)
    found = sorted(folder.glob("llama_cpp_python-*.tar.gz"))
    if code or not found:
        lines = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()
        why = lines[-1].removeprefix("ERROR: ") if lines else "it gave no reason"
        raise DownloadError(f"pip could not fetch the source of llama-cpp-python {version}: {why}")
    return found[0]


def _run(command: list[str], cancelled: Callable[[], bool]) -> tuple[int, str]:
    """Run pip, which can be cancelled; return its exit code and what it wrote to standard error."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                if cancelled():
                    raise JobInterrupted
                time.sleep(_LOOK_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        errors.seek(0)
        return process.returncode, errors.read().decode("utf-8", "replace")


def _unpack(archive: Path, folder: Path, wanted: tuple[str, ...]) -> None:
    """Unpack regular files below vendor/llama.cpp only: no links, no devices, nothing outside of the folder."""
    total = 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            inner = member.name.partition("/")[2]
            if not member.isreg() or not inner.startswith(_PREFIX):
                continue
            name = inner.removeprefix(_PREFIX)
            if not any(part in (name, "") or (part.endswith("/") and name.startswith(part)) for part in wanted):
                continue
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                raise DownloadError(f"{archive.name} holds a file outside of its folder: {member.name}")
            total += member.size
            if total > _MOST_BYTES:
                raise DownloadError(f"{archive.name} unpacks to more than {_MOST_BYTES:,} bytes")
            target = folder.joinpath(*path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            if member.mode & 0o100:
                target.chmod(0o755)
    if not folder.is_dir():
        raise DownloadError(f"{archive.name} holds no llama.cpp")
