"""A folder with a Hugging Face checkpoint: what it is, and what it lacks. Reads no weights and runs nothing of it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_magic.errors import InvalidModelError, InvalidRequestError, ModelNotFoundError
from llama_magic.models.references import safe_name
from llama_magic.quantization.safetensors import StoredTensor, is_lfs_pointer, read_header

__all__ = [
    "ADAPTER_CONFIG",
    "TOKENIZERS",
    "Checkpoint",
    "architectures_of",
    "base_of",
    "has_tokenizer",
    "index_names",
    "kind_of",
    "read_checkpoint",
    "read_config",
    "weight_files",
]

ADAPTER_CONFIG = "adapter_config.json"
#: Files of which the converter needs at least one to make a vocabulary.
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "rwkv_vocab_v20230424.txt", "tokenizer.jsonl", "tokenizer.tok.json",
)  # fmt: skip
#: Architectures that have no vocabulary of their own.
_NO_TOKENIZER = {"WavTokenizerDec", "Lfm2AudioForConditionalGeneration"}

#: A text model's settings inside those of a larger model (`ModelBase.load_hparams`).
_INNER = ("text_config", "llm_config", "lm_config", "language_config", "lfm")
#: How files with weights begin and end; safetensors are taken first.
_KINDS_OF_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_MOST_JSON = 64 << 20
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_WIDTHS = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "auto": 2.0}
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
#: Tensors of a projector for images or sound, which conversion of the text model leaves out.
_SENSES = re.compile(r"vision|visual|audio|projector|image_newline|patch_embed")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder holds.

    Attributes
    ----------
    folder
        Where it is.
    kind
        "model", or "adapter" for LoRA.
    config
        Its config.json, or adapter_config.json.
    architectures
        Names that the converter may know the text model by, the likeliest first.
    projectors
        Names that it may know the part for images or sound by.
    files
        The files with weights.
    tensors
        What is in them, as far as they are safetensors.
    size
        Bytes of these files.
    pickled
        They are files of Python's pickle, not safetensors.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    architectures: tuple[str, ...] = ()
    projectors: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    tensors: tuple[StoredTensor, ...] = ()
    size: int = 0
    pickled: bool = False

    @property
    def n_params(self) -> int:
        """Weights in it; of pickled files about."""
        return self.size // 2 if self.pickled else sum(tensor.n_params for tensor in self.tensors)

    def main_type(self) -> str:
        """Return the type that most of the weights have; empty where that is not told."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.dtype] += tensor.n_params
        return counts.most_common(1)[0][0] if counts else ""

    def likely_type(self) -> str:
        """Return the type that "auto" will choose, empty where only the converter can tell.

        As `ModelBase.__init__` does: that of the first matrix in 16 bits, else F16.
        """
        if self.pickled:
            return ""
        found = (tensor.dtype for tensor in self.tensors if len(tensor.shape) > 1 and tensor.dtype in {"BF16", "F16"})
        return next(found, "F16").lower()

    def estimate(self, outtype: str, *, projector: bool = False) -> int:
        """Return about how many bytes the converted file will take."""
        width = _WIDTHS[outtype]
        if self.pickled:
            return int(self.size * width / 2)
        total = 0.0
        for tensor in self.tensors:
            if projector == bool(_SENSES.search(tensor.name)):
                total += tensor.n_params * (4.0 if len(tensor.shape) < 2 else width) if _float(tensor) else tensor.size
        return int(total)


def _float(tensor: StoredTensor) -> bool:
    return tensor.dtype in _FLOATS


def kind_of(folder: Path) -> str:
    """Return "model", or "adapter" where a folder holds LoRA weights and no model."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return "model"
    whole = any(_weights(folder, stem, suffix) for stem, suffix in _KINDS_OF_WEIGHTS)
    return "model" if whole and (folder / "config.json").is_file() else "adapter"


def read_checkpoint(folder: Path, *, weights: bool = True) -> Checkpoint:
    """Return what a folder holds.

    Parameters
    ----------
    weights
        Look at the files with weights, too; without it they need not be there.

    Raises
    ------
    ModelNotFoundError, InvalidModelError
        Something is missing, or cut off.
    """
    kind = kind_of(folder)
    config = read_config(folder, kind)
    names = architectures_of(config)
    files = weight_files(folder, kind) if weights else ()
    pickled = bool(files) and not files[0].endswith(".safetensors")
    tensors: list[StoredTensor] = []
    for name in files:
        path = folder / name
        if not pickled:
            tensors += read_header(path)
        elif is_lfs_pointer(path):
            raise InvalidModelError(f"{name} is only a pointer of Git LFS; `git lfs pull` fetches the file itself")
    return Checkpoint(
        folder,
        kind,
        config,
        *names,
        files=files,
        tensors=tuple(tensors),
        size=sum((folder / name).stat().st_size for name in files),
        pickled=pickled,
    )


# -- the settings -----------------------------------------------------------------------------------------------------


def read_config(folder: Path, kind: str = "model") -> dict[str, Any]:
    """Return the settings of a checkpoint.

    Raises
    ------
    ModelNotFoundError, InvalidModelError
    """
    path = folder / (ADAPTER_CONFIG if kind == "adapter" else "config.json")
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} holds no {path.name}.{_instead(folder)}")
    return _json(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8")) if path.stat().st_size < _MOST_JSON else None
    except (OSError, ValueError, RecursionError) as exc:
        raise InvalidModelError(f"{path.name} can not be read: {exc}; download it again") from None
    if not isinstance(found, dict):
        raise InvalidModelError(f"{path.name} holds no settings; download it again")
    return found


def _instead(folder: Path) -> str:
    """Return what a folder without config.json holds."""
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".gguf") for name in names):
        return " It holds GGUF files: those need no converting, %llama quantize makes them smaller."
    if "params.json" in names:
        return (
            " It is in Mistral's or Meta's own format (params.json); take the repository's version for transformers, "
            "which has a config.json."
        )
    inner = [name for name in names if (folder / name / "config.json").is_file()]
    if inner:
        return f" Folders in it do: {', '.join(inner[:5])}; name one of those."
    return " A checkpoint is a folder as transformers saves it: config.json, tokenizer.json, model.safetensors."


def architectures_of(config: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the text model's architecture and those of the part for images or sound.

    As `get_model_architecture` in conversion/base.py reads them; where it decides by the name, both are returned.
    """
    own = _names(config)
    if not own and isinstance(config.get("ssm_cfg"), dict):
        own = [f"{config['ssm_cfg'].get('layer', 'Mamba')}ForCausalLM"]
    inner = [_names(config.get(key)) for key in _INNER]
    thinker = config.get("thinker_config")
    if isinstance(thinker, dict):
        inner.append(_names(thinker.get("text_config")))
    text = [*(name for names in inner for name in names), *own]
    senses = [*_names(config.get("vision_config")), *own]
    return tuple(dict.fromkeys(text)), tuple(dict.fromkeys(senses))


def _names(config: Any) -> list[str]:
    found = config.get("architectures") if isinstance(config, dict) else None
    return [name for name in found if isinstance(name, str)][:1] if isinstance(found, list) else []


def has_tokenizer(folder: Path, architectures: Iterable[str]) -> bool:
    """Tell whether there is anything to make a vocabulary from."""
    if not _NO_TOKENIZER.isdisjoint(architectures):
        return True
    return any((folder / name).is_file() for name in TOKENIZERS) or any(folder.glob("*.tiktoken"))


def base_of(config: dict[str, Any]) -> str:
    """Return the reference of the model that an adapter was trained on; empty where it is not told.

    Raises
    ------
    InvalidRequestError
        It is no LoRA adapter.
    """
    method = str(config.get("peft_type") or "LORA").upper()
    if method != "LORA":
        raise InvalidRequestError(f"llama.cpp knows adapters of type LoRA; this one is {method}")
    base = config.get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


# -- the files with weights -------------------------------------------------------------------------------------------


def weight_files(folder: Path, kind: str = "model") -> tuple[str, ...]:
    """Return the names of the files with weights, safetensors before pickled ones.

    Raises
    ------
    ModelNotFoundError
        There is none, or some are missing.
    InvalidModelError
        The index can not be read.
    """
    if kind == "adapter":
        found = [name for name in ("adapter_model.safetensors", "adapter_model.bin") if (folder / name).is_file()]
        if not found:
            raise ModelNotFoundError(f"{folder} holds {ADAPTER_CONFIG}, but no adapter_model.safetensors")
        return (found[0],)
    for stem, suffix in _KINDS_OF_WEIGHTS:
        listed = _indexed(folder / f"{stem}{suffix}.index.json") or _expected(_weights(folder, stem, suffix))
        if listed:
            missing = [name for name in listed if not (folder / name).is_file()]
            if missing:
                more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
                raise ModelNotFoundError(
                    f"{len(missing)} of {len(listed)} files with weights are missing in {folder}: "
                    f"{', '.join(missing[:8])}{more}"
                )
            return tuple(listed)
    others = [name for name in _listed(folder) if name.endswith((".safetensors", ".bin", ".pth", ".pt"))]
    told = f" It has {', '.join(others[:4])}, which the converter does not read." if others else ""
    raise ModelNotFoundError(f"{folder} holds no weights: model.safetensors, or its parts with their index.{told}")


def index_names(folder: Path) -> list[str]:
    """Return the files that the index of a checkpoint names, whether they are there or not; nothing without one."""
    found = (_indexed(folder / f"{stem}{suffix}.index.json") for stem, suffix in _KINDS_OF_WEIGHTS)
    return next((names for names in found if names), [])


def _indexed(path: Path) -> list[str]:
    """Return the files that an index names; nothing where there is no index."""
    if not path.is_file():
        return []
    weights = _json(path).get("weight_map")
    if not isinstance(weights, dict):
        raise InvalidModelError(f"{path.name} tells of no weights; download it again")
    names = sorted({str(name) for name in weights.values()})
    outside = next((name for name in names if not safe_name(name)), None)
    if outside is not None:
        raise InvalidModelError(f"{path.name} names a file outside of its folder: {outside[:80]!r}")
    return names


def _expected(names: list[str]) -> list[str]:
    """Return all parts of what is there in parts, also those that are not there."""
    found = next((match for match in map(_SHARD.fullmatch, names) if match), None)
    if found is None:
        return names
    count = int(found["count"])
    parts = [f"{found['stem']}-{number:05}-of-{found['count']}{found['suffix']}" for number in range(1, count + 1)]
    return sorted({*names, *parts})


def _weights(folder: Path, stem: str, suffix: str) -> list[str]:
    """Return what the converter takes without an index (`get_model_part_names`)."""
    return [name for name in _listed(folder) if name.startswith(stem) and name.endswith(suffix)]


def _listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - names are what is asked for
