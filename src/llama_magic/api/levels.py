"""From what a user names to levels that can be compared: files that are there, and files that are made and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llama_magic.api.backends import library
from llama_magic.api.imatrix import collect_imatrix
from llama_magic.api.locate import locate
from llama_magic.api.quantize import plan, quantize
from llama_magic.errors import DiskFullError, InvalidRequestError, LlamaMagicError
from llama_magic.evaluation.levels import QuantizationLevel
from llama_magic.locks import file_lock
from llama_magic.models.content import content_hash
from llama_magic.models.gguf import read_metadata
from llama_magic.models.metadata import ModelMetadata
from llama_magic.models.places import models_folder
from llama_magic.models.resolve import is_model_ref
from llama_magic.progress import Progress, Report
from llama_magic.quantization.ftypes import COPY, find_ftype, is_float
from llama_magic.quantization.results import QuantizePlan
from llama_magic.quantization.sources import output_name
from llama_magic.units import format_bytes

__all__ = ["AUTO", "Lineup", "clear_levels", "levels_folder", "line_up", "plan_levels"]

#: As importance matrix: one is made of the calibration text.
AUTO = "auto"
#: Left free on the disk.
_ROOM = 64 << 20


@dataclass(frozen=True, slots=True)
class Lineup:
    """What is compared.

    Attributes
    ----------
    model
        Name of the model.
    base
        The reference.
    levels
        The others.
    notes
        What is worth knowing, in sentences.
    """

    model: str
    base: QuantizationLevel
    levels: tuple[QuantizationLevel, ...]
    notes: tuple[str, ...] = ()


def levels_folder() -> Path:
    """Return the folder of the files that comparisons made; nothing is made here."""
    return models_folder() / "levels"


def clear_levels() -> int:
    """Delete all files that comparisons made, and return the bytes that were freed."""
    folder = levels_folder()
    freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if folder.is_dir():
        shutil.rmtree(folder)
    return freed


def line_up(
    ref: str | os.PathLike[str],
    words: Sequence[str],
    *,
    base: str | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    progress: Report | None = None,
) -> Lineup:
    """Find or make the files of all levels.

    Parameters
    ----------
    ref
        The model that types are made of.
    words
        Types, files, and references on the Hub.
    base
        The reference: a type, a file, or a reference on the Hub. None: the model itself where its weights are not
        quantized, else F16 made of it.
    imatrix
        Importance matrix for all types; "auto" makes one. None: only types that need one get one, made here.

    Raises
    ------
    ModelNotFoundError, InvalidModelError, InvalidRequestError
        The model or the reference can not be used, or a word means nothing.
    DiskFullError
        There is no room for the reference.
    JobInterrupted
        The user stopped it; what was finished is kept.
    """
    maker = _Maker(os.fspath(ref), imatrix, progress)
    wanted = [_wanted(word) for word in words]
    reference = maker.reference(base)
    made = maker.make([name for kind, name in wanted if kind == "ftype"])
    levels: list[QuantizationLevel] = []
    for kind, name in wanted:
        level = made[name] if kind == "ftype" else _there(name, progress)
        if (level.path and level.path == reference.path) or level.name == reference.name:
            continue
        levels.append(_named(level, [reference, *levels]))
    unique = {level.path or level.name: level for level in reversed(levels)}
    kept = tuple(level for level in levels if unique[level.path or level.name] is level)
    return Lineup(maker.metadata.name, reference, kept, tuple(maker.notes))


def plan_levels(ref: str | os.PathLike[str], names: Sequence[str], progress: Report | None = None) -> dict[str, int]:
    """Return the exact size of each type, without making anything, by llama.cpp's dry run."""
    metadata = read_metadata(locate(ref, progress))
    known = [name for name in names if name != metadata.ftype]
    sizes = {found.ftype: found.size for found in (plan(metadata.path, known, progress=progress) if known else ())}
    return {name: sizes.get(name, metadata.file_size) for name in names}


def _wanted(word: str) -> tuple[str, str]:
    """Tell whether a word is a type or a model, and what it means."""
    try:
        found = find_ftype(word)
    except InvalidRequestError:
        if is_model_ref(word) or Path(word).expanduser().exists():
            return "model", word
        raise
    if found.name == COPY:
        raise InvalidRequestError("COPY is no level: name the model's file itself")
    return "ftype", found.name


def _there(ref: str, progress: Report | None) -> QuantizationLevel:
    """Return a level that is a file already; one that can not be used is a level with an error."""
    try:
        return _level(read_metadata(locate(ref, progress)), ref)
    except KeyboardInterrupt:
        raise  # a download that was stopped is no reason of a level
    except LlamaMagicError as error:
        return QuantizationLevel(Path(ref).stem or ref, error=str(error))


def _level(metadata: ModelMetadata, ref: str = "", name: str = "", *, made: bool = False) -> QuantizationLevel:
    stem = ref if ref and not Path(ref).suffix else Path(metadata.path).name.removesuffix(".gguf")
    matrix = metadata.values.get("quantize.imatrix.file")
    return QuantizationLevel(
        name=name or stem,
        path=metadata.path,
        ftype=metadata.ftype,
        size=metadata.file_size,
        bits_per_weight=metadata.bits_per_weight,
        imatrix=Path(str(matrix)).name if matrix else "",
        made=made,
    )


def _named(level: QuantizationLevel, others: Sequence[QuantizationLevel]) -> QuantizationLevel:
    """Return a level with a name that no other has."""
    taken, name, number = {other.name for other in others if other.path != level.path}, level.name, 1
    while name in taken:
        number += 1
        name = f"{level.name} ({number})"
    return replace(level, name=name)


# -- making -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Maker:
    """Makes types of one model, and keeps them by content: the same is never made twice."""

    ref: str
    imatrix: str | os.PathLike[str] | None
    progress: Report | None
    metadata: ModelMetadata = field(init=False)
    notes: list[str] = field(default_factory=list)
    _source: ModelMetadata | None = field(default=None, init=False)
    _hash: str = field(default="", init=False)
    _library: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.metadata = read_metadata(locate(self.ref, self.progress))
        if self.imatrix not in (None, AUTO) and not Path(self.imatrix).expanduser().is_file():
            raise InvalidRequestError(f"there is no importance matrix {self.imatrix}; imatrix='auto' makes one")

    @property
    def quantized(self) -> bool:
        """The model's own weights are quantized."""
        return any(not is_float(tensor.type) for tensor in self.metadata.tensors)

    def reference(self, base: str | None) -> QuantizationLevel:
        """Return the reference, made if need be."""
        if base is None:
            if not self.quantized:
                return _level(self.metadata, name=self.metadata.ftype)
            base = "F16"
        kind, name = _wanted(base)
        if kind == "model":
            found = read_metadata(locate(name, self.progress))
            return _level(found, name, name=found.ftype)
        if name == self.metadata.ftype:
            return _level(self.metadata, name=name)
        if self.quantized and is_float(name):
            self.notes.append(
                f"{name} was made from {self.metadata.ftype}, for there is nothing better here: what "
                f"{self.metadata.ftype} lost stays lost, and divergences are those from this {name}."
            )
            return _level(self._float(name), name=name, made=True)
        level = self.make([name])[name]
        if level.error:
            raise InvalidRequestError(f"the reference can not be made: {level.error}")
        return level

    def make(self, names: Sequence[str]) -> dict[str, QuantizationLevel]:
        """Return a level for each type, made where it is not there yet; what can not be made has an error."""
        done = {name: _level(self.metadata, name=name) for name in names if name == self.metadata.ftype}
        todo = list(dict.fromkeys(name for name in names if name not in done))
        if not todo:
            return done
        source = self.source()
        if source.ftype in todo:
            done[source.ftype] = _level(source, name=source.ftype, made=source is not self.metadata)
            todo.remove(source.ftype)
        plans = {found.ftype: found for found in self._plans(source, todo)} if todo else {}
        matrix = [name for name in todo if self._wants_matrix(plans[name])]
        plain = [name for name in todo if name not in matrix]
        for group, with_matrix in ((plain, False), (matrix, True)):
            if group:
                done |= self._make_group(source, group, plans, with_matrix=with_matrix)
        return done

    def _plans(self, source: ModelMetadata, names: Sequence[str]) -> Iterator[QuantizePlan]:
        yield from plan(source.path, names, progress=self.progress)

    def _wants_matrix(self, planned: QuantizePlan) -> bool:
        return planned.needs_imatrix or (self.imatrix is not None and not is_float(planned.ftype))

    def source(self) -> ModelMetadata:
        """Return what types are made of: the model itself, or F16 of it where its weights are quantized."""
        if self._source is None:
            self._source = self._float("F16") if self.quantized else self.metadata
        return self._source

    def _float(self, name: str) -> ModelMetadata:
        """Return the model in a type without quantization."""
        folder = self._folder("")
        path = folder / output_name(self.metadata.path, name)
        with self._locked(folder):
            if not path.exists():
                size = plan(self.metadata.path, [name], progress=self.progress)[0].size
                if short := _missing_room(folder, size):
                    raise DiskFullError(f"{name} takes {format_bytes(size)}: {short}")
                quantize(self.metadata.path, name, dst=folder, allow_requantize=True, progress=self.progress)
        return read_metadata(str(path))

    def _make_group(
        self, source: ModelMetadata, names: Sequence[str], plans: dict[str, QuantizePlan], *, with_matrix: bool
    ) -> dict[str, QuantizationLevel]:
        """Make types that share a folder; those that are there are taken."""
        matrix = None
        try:
            if with_matrix:
                matrix = self._matrix(source)
        except KeyboardInterrupt:
            raise
        except LlamaMagicError as error:
            return {name: QuantizationLevel(name, ftype=name, error=f"no importance matrix: {error}") for name in names}
        folder = self._folder("" if matrix is None else _file_hash(matrix))
        errors: dict[str, str] = {}
        with self._locked(folder):
            missing: list[str] = []
            for name in names:
                if (folder / output_name(source.path, name)).exists():
                    continue
                need = sum(plans[other].size for other in (*missing, name))
                if short := _missing_room(folder, need):
                    errors[name] = f"it takes {format_bytes(plans[name].size)} on the disk: {short}"
                else:
                    missing.append(name)
            errors |= self._quantize(source, missing, folder, matrix)
        done = {}
        for name in names:
            if name in errors:
                done[name] = QuantizationLevel(name, ftype=name, size=plans[name].size, error=errors[name])
            else:
                found = read_metadata(str(folder / output_name(source.path, name)))
                done[name] = _level(found, name=name, made=True)
        return done

    def _quantize(
        self, source: ModelMetadata, names: Sequence[str], folder: Path, matrix: Path | None
    ) -> dict[str, str]:
        """Make files in one worker; where that fails, one by one, so that a single type keeps no other away."""
        if not names:
            return {}
        errors: dict[str, str] = {}
        try:
            quantize(source.path, list(names), dst=folder, imatrix=matrix, progress=self.progress)
        except KeyboardInterrupt:
            raise
        except LlamaMagicError:
            pass
        else:
            return {}
        for name in names:
            if (folder / output_name(source.path, name)).exists():
                continue
            try:
                quantize(source.path, name, dst=folder, imatrix=matrix, progress=self.progress)
            except KeyboardInterrupt:
                raise
            except LlamaMagicError as error:
                errors[name] = str(error)
        return errors

    def _matrix(self, source: ModelMetadata) -> Path:
        """Return the importance matrix that was named, or the one made of the calibration text."""
        if self.imatrix not in (None, AUTO):
            return Path(self.imatrix).expanduser().absolute()
        folder = self._folder("")
        path = folder / "calibration.imatrix.gguf"
        with self._locked(folder):
            if not path.exists():
                collect_imatrix(source.path, out=path, progress=self.progress)
        return path

    def _folder(self, matrix: str) -> Path:
        """Return the folder of what is made of this model in one way: by content, matrix and llama.cpp's commit."""
        if not self._hash:
            self._say(f"reading {Path(self.metadata.path).name}")
            self._hash = content_hash(self.metadata)
            found = library()
            self._library = f"{found.commit} {found.ggml_version}"
        parts = f"{self._hash} {matrix} {self._library}"
        key = hashlib.sha256(parts.encode()).hexdigest()[:16]
        folder = levels_folder() / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskFullError(f"{folder} can not be made: {error.strerror or error}") from error
        return folder

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Let two comparisons make the same files one after the other."""

        def waiting() -> None:
            self._say("another comparison is making these files; waiting for it")

        with file_lock(levels_folder() / ".locks" / f"{folder.name}.lock", waiting):
            yield

    def _say(self, words: str) -> None:
        if self.progress is not None:
            self.progress(Progress("levels", None, words))


def _missing_room(folder: Path, need: int) -> str:
    """Say what is missing on the disk; empty where there is room."""
    free = shutil.disk_usage(folder).free - _ROOM
    if need <= free:
        return ""
    return (
        f"{format_bytes(need - free)} more are needed in {folder.parent}. What helps: %llama compare --clear deletes "
        "what earlier comparisons made; LLAMA_MAGIC_HOME names another disk"
    )


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
