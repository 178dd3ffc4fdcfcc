"""Why llama.cpp did not quantize: its log in words that say what to do. Runs in the worker."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from llama_magic.errors import DiskFullError, InvalidModelError, InvalidRequestError, LlamaMagicError, NativeError
from llama_magic.native.log import LogCapture

__all__ = ["disk_failure", "failure", "refused_requantizing"]

#: Less than this left on a disk: a failed write was because it is full.
_FULL = 1 << 20
_PATTERN = re.compile(r"regex|regular expression|[Mm]ismatched|Unexpected (?:end|character)|Invalid (?:range|escape)")


def failure(log: LogCapture, ftype: str, target: Path, before: str = "", better: str | None = None) -> LlamaMagicError:
    """Return the error for what llama.cpp's log says.

    Parameters
    ----------
    before
        Type of the source.
    better
        A better source, named where the source is refused.
    """
    lines = [line for _, line in log.lines]
    said = next((line for line in reversed(lines) if "failed to quantize" in line), "")
    reason = said.partition("failed to quantize: ")[2].strip() or "; ".join(log.errors()) or "no reason was given"
    if "imatrix" in reason or "importance matrix" in reason:
        return _matrix_failure(reason, lines, ftype)
    if "requantizing from type" in reason:
        return refused_requantizing(before, ftype, better)
    if "iostream error" in reason:
        return disk_failure(target)
    if "has invalid data" in reason:
        return InvalidModelError(f"the source is damaged: {reason}; download or convert it again")
    if _PATTERN.search(reason):
        return InvalidRequestError(f"--tensor-type: llama.cpp can not read the regular expression: {reason}")
    if "no tensor type fallback" in reason:
        return InvalidRequestError(f"{ftype} does not fit the shapes of this model ({reason}); take another type")
    return NativeError(f"llama.cpp could not quantize to {ftype}: {reason}")


def _matrix_failure(reason: str, lines: list[str], ftype: str) -> LlamaMagicError:
    tensor = re.search(r"for tensor (\S+)|offending tensor: (\S+)", "\n".join(lines))
    where = f" (for {tensor[1] or tensor[2]})" if tensor else ""
    if reason.startswith("Missing importance"):
        return InvalidRequestError(
            f"the importance matrix lacks a tensor that {ftype} needs{where}: make it again from more text "
            "(%llama imatrix MODEL --text FILE)"
        )
    if reason.startswith(("imatrix size", "imatrix contains")):
        return InvalidRequestError(f"the importance matrix can not be used: {reason}; make it again (%llama imatrix)")
    return InvalidRequestError(
        f"{ftype} needs an importance matrix{where}: %llama imatrix MODEL makes one, then --imatrix FILE. "
        "Q2_K, Q3_K_M and larger types work without one."
    )


def refused_requantizing(before: str, ftype: str, better: str | None) -> InvalidRequestError:
    """Return the refusal of a source that is quantized already."""
    offer = f"Take {better} instead, it has more bits; else --allow-requantize" if better else "--allow-requantize"
    return InvalidRequestError(
        f"the source is quantized already ({before}), and what it lost stays lost. {offer} makes {ftype} of it all "
        "the same."
    )


def disk_failure(target: Path) -> LlamaMagicError:
    """Return the error for a write that failed."""
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        return NativeError(f"{target.parent} can not be written to: {error.strerror or error}")
    if free < _FULL:
        return DiskFullError(f"the disk of {target.parent} is full; nothing was kept. Free some space, or name another")
    return NativeError(f"{target.name} could not be written to {target.parent}; check the folder and its disk")
