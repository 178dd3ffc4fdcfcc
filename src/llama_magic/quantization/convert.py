"""Converting checkpoints, as the kernel sees it: what to ask a worker for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.quantization import convert_view
from llama_magic.quantization.ftypes import OUTTYPES
from llama_magic.quantization.results import QuantizeResult
from llama_magic.suggest import did_you_mean

__all__ = ["CheckRequest", "ConvertRequest", "ConvertResult", "Converted", "check_outtype"]


def check_outtype(name: str) -> str:
    """Return the name as the converter knows it.

    Raises
    ------
    InvalidRequestError
    """
    found = name.lower()
    if found not in OUTTYPES:
        raise InvalidRequestError(
            f"--outtype is one of {', '.join(OUTTYPES)}; got {name!r}.{did_you_mean(name, OUTTYPES)} Other types are "
            "made from these: %llama convert MODEL Q4_K_M"
        )
    return found


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """Look whether a checkpoint can be converted, before its weights are here. There is no result but errors.

    Attributes
    ----------
    folder
        Absolute path of the checkpoint.
    name
        How to name it in errors.
    what
        "model", "mmproj" or "vocab"; an adapter is recognized.
    """

    folder: str
    name: str
    what: str = "model"


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """Convert a checkpoint; the result is `Converted`.

    Attributes
    ----------
    folder
        Absolute path of the checkpoint.
    name
        Name of the model; also of the file where the checkpoint does not tell it.
    workspace
        Hidden folder, which exists, on the disk that the file will be on; removed by who made it.
    outtype
        One of `OUTTYPES`.
    what
        "model", "mmproj" or "vocab".
    base
        Folder with the settings of the model that an adapter was trained on.
    room_bits
        Bits per weight of what is made of the file later; they have to fit on the disk, too.
    taken
        Names of files that must not be made, by type ("BF16"): they are there already.
    """

    folder: str
    name: str
    workspace: str
    outtype: str = "auto"
    what: str = "model"
    base: str | None = None
    room_bits: float = 0.0
    taken: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Converted:
    """What the worker made, still under a temporary name.

    Attributes
    ----------
    path
        The file.
    kind
        "model", "mmproj", "vocab" or "adapter".
    architecture
        As transformers names it.
    n_weights
        Numbers in all tensors.
    """

    path: str
    kind: str
    architecture: str
    ftype: str
    size: int
    source_size: int
    n_weights: int
    types: Mapping[str, int]
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class ConvertResult:
    """What converting gave. It can be used wherever a path is expected.

    Attributes
    ----------
    source
        What was converted: a folder, or a repository.
    kind
        "model", "mmproj" (the projector for images or sound), "vocab" or "adapter" (LoRA).
    architecture
        As transformers names it.
    path
        The file; with types given, the first that was made of it.
    ftype
        Type of the converted file, such as "BF16".
    size, source_size
        Bytes of the converted file, and of the checkpoint's weights.
    n_params
        Weights in all tensors.
    types
        How many tensors there are of each type.
    seconds
        How long converting took, without downloading and quantizing.
    notes, warnings
        What is worth knowing, in sentences.
    quantized
        The files that were made of it; then the converted file itself was temporary.
    """

    source: str
    kind: str
    architecture: str
    path: Path
    ftype: str
    size: int
    source_size: int
    n_params: int
    types: Mapping[str, int]
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    quantized: tuple[QuantizeResult, ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return convert_view.text_of(self)

    def _repr_html_(self) -> str:
        return convert_view.html_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        values = asdict(self)
        values.update(
            path=str(self.path), types=dict(self.types), quantized=[item.to_dict() for item in self.quantized]
        )
        return values
