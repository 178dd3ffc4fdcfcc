"""Why a checkpoint was not converted, in words that say what to do. Runs in the worker."""

from __future__ import annotations

import difflib
import errno
import importlib.metadata
import re
import signal
from collections.abc import Iterable
from pathlib import Path

from llama_magic.errors import (
    InvalidModelError,
    LlamaMagicError,
    MissingDependencyError,
    ModelNotFoundError,
    NativeError,
    OutOfMemoryError,
)
from llama_magic.quantization.converter import ConverterError
from llama_magic.quantization.failures import disk_failure

__all__ = ["converter_failure", "no_tokenizer", "unsupported"]

_MOST = 300


def unsupported(architecture: str, known: Iterable[str], what: str = "model") -> InvalidModelError:
    """Return the error for an architecture that the converter does not know, with those that are near."""
    names = sorted(known)
    folded = {name.lower(): name for name in names}
    near = [folded[name] for name in difflib.get_close_matches(architecture.lower(), folded, n=5, cutoff=0.6)]
    family = re.sub(r"(For|Model|LMHead).*", "", architecture).rstrip("0123456789_.").lower()
    near += [name for name in names if len(family) > 2 and name.lower().startswith(family) and name not in near][:3]
    told = f" Near ones that it knows: {', '.join(near)}." if near else f" It knows {len(names)} others, none near."
    named = architecture or "a checkpoint whose config.json names no architecture"
    part = f"the projector (--mmproj) of {named}" if what == "mmproj" else named
    version = importlib.metadata.version("llama-cpp-python")
    return InvalidModelError(
        f"this llama.cpp (llama-cpp-python {version}) can not convert {part}.{told} A newer one may know it."
    )


def no_tokenizer(folder: str) -> ModelNotFoundError:
    """Return the error for a checkpoint without a vocabulary."""
    return ModelNotFoundError(
        f"{folder} holds no tokenizer: it needs tokenizer.json or tokenizer.model (or vocab.json, vocab.txt) beside "
        "config.json. Copy it from the model that this one was made of."
    )


def converter_failure(failed: ConverterError, *, name: str, target: Path, tokenizer: bool) -> LlamaMagicError:
    """Return the error for what the converter said.

    Parameters
    ----------
    name
        The checkpoint.
    target
        A file in the folder that was written to.
    tokenizer
        There is a file to make a vocabulary from.
    """
    text = " ".join(failed.text.split())
    if failed.kind == "Signal":
        return _ended(int(failed.text))
    if failed.errno in {errno.ENOSPC, errno.EDQUOT} or re.search(r"\d+ requested and \d+ written", text):
        return disk_failure(target)
    if failed.kind == "MemoryError" or "DefaultCPUAllocator" in text:
        return OutOfMemoryError(f"converting {name} ran out of memory; close other models (%llama unload) or programs")
    if failed.kind in {"ModuleNotFoundError", "ImportError"}:
        return _missing(text)
    if "trust_remote_code" in text:
        return InvalidModelError(
            f"{name} needs Python code of its own to be read, and code from checkpoints is never run here. Look for a "
            "GGUF file of it on the Hub (%llama models --search NAME)."
        )
    if "mmap can only be used" in text or "PytorchStreamReader failed" in text:
        return InvalidModelError(
            f"a .bin file of {name} is damaged, or in torch's format of before 2020; download it again, or take a "
            "version of it in safetensors"
        )
    if "Weights only load failed" in text or "weights_only" in text:
        return InvalidModelError(
            f"a .bin file of {name} holds more than tensors, and such Python objects are never loaded here; take a "
            "version of it in safetensors"
        )
    return _about_content(failed, text, name, tokenizer=tokenizer)


def _about_content(failed: ConverterError, text: str, name: str, *, tokenizer: bool) -> LlamaMagicError:
    supported = re.search(r"(?:Model|Architecture) '?(\w+)'? (?:is )?not supported", text)
    if supported:
        return unsupported(supported[1], ())
    if re.search(r"pre-tokenizer was not recognized", text + failed.trace):
        return InvalidModelError(
            f"this llama.cpp does not know the pre-tokenizer of {name}: a changed tokenizer, or a newer one than "
            "llama-cpp-python. Take the tokenizer files of the model that it was made of, or a newer llama-cpp-python."
        )
    if not tokenizer:
        return no_tokenizer(name)
    if re.search(r"set_vocab|AutoTokenizer|[Tt]okenizer", failed.trace) and "set_vocab" in failed.trace:
        return InvalidModelError(f"the tokenizer of {name} can not be read: {text[:_MOST] or failed.kind}")
    method = re.search(r"Quant (?:method|format) (?:is not yet supported: )?'(\w[\w-]*)'", text)
    if method:
        return InvalidModelError(
            f"the weights of {name} are quantized already, with {method[1]}, which the converter can not undo; take "
            "the checkpoint that it was made of"
        )
    if "Can not map tensor" in text:
        return InvalidModelError(
            f"{name} holds a tensor that its architecture does not have ({text[:_MOST]}); it may be a part or an "
            "adapter of another model, or newer than this llama.cpp"
        )
    if failed.kind in {"KeyError", "NotImplementedError", "ValueError", "AssertionError"}:
        return InvalidModelError(f"{name} can not be converted: {failed.kind}: {text[:_MOST] or 'no reason was given'}")
    return NativeError(f"llama.cpp's converter failed on {name}: {failed.kind}: {text[:_MOST]}")


def _ended(number: int) -> LlamaMagicError:
    if number == signal.SIGKILL:
        return OutOfMemoryError("the converter was killed (SIGKILL), most likely because memory ran out")
    return NativeError(f"the converter crashed ({signal.Signals(number).name}); nothing was written")


def _missing(text: str) -> MissingDependencyError:
    if "mistral-common" in text or "mistral_common" in text:
        return MissingDependencyError("this checkpoint needs mistral-common: pip install mistral-common")
    return MissingDependencyError(
        f"the converter lacks a package ({text[:_MOST]}): pip install 'llama-magic[convert]' gives what most "
        "checkpoints need"
    )
