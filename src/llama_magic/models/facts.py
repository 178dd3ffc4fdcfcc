"""Figures that follow from a GGUF file's metadata, each with the place in llama.cpp that it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llama_magic.models.kv import KVCache, kv_cache
from llama_magic.models.metadata import ArrayLength, ModelMetadata

__all__ = ["KVCache", "TypeShare", "as_dict", "kv_cache", "provenance", "tensor_mix", "vocab_type", "warnings"]

#: tokenizer.ggml.model: the kind of tokenizer (llama-vocab.cpp, `llama_vocab::impl::load`).
_VOCAB_TYPES = {
    "llama": "SPM", "gpt2": "BPE", "gemma4": "BPE", "bert": "WPM", "t5": "UGM", "rwkv": "RWKV", "plamo2": "PLaMo-2",
}  # fmt: skip

#: Keys that tell where a file comes from, and what they are called here.
_PROVENANCE = {
    "general.author": "author",
    "general.organization": "organization",
    "general.base_model.0.name": "base model",
    "general.base_model.0.repo_url": "base model at",
    "general.source.url": "source",
    "general.repo_url": "repository",
    "general.url": "page",
    "general.quantized_by": "quantized by",
    "quantize.imatrix.file": "importance matrix",
    "quantize.imatrix.dataset": "its text",
    "quantize.imatrix.entries_count": "its tensors",
    "quantize.imatrix.chunks_count": "its chunks",
}


@dataclass(frozen=True, slots=True)
class TypeShare:
    """How much of a model one tensor type makes up.

    Attributes
    ----------
    type
        Such as "Q4_K".
    count, size, n_params
        Tensors, their bytes and weights.
    share
        Part of all bytes, from 0 to 1.
    """

    type: str
    count: int
    size: int
    n_params: int
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict."""
        return asdict(self)


def tensor_mix(metadata: ModelMetadata) -> tuple[TypeShare, ...]:
    """Return what each tensor type makes up, the largest first."""
    sums: dict[str, list[int]] = {}
    for tensor in metadata.tensors:
        entry = sums.setdefault(tensor.type, [0, 0, 0])
        entry[0] += 1
        entry[1] += tensor.size
        entry[2] += tensor.n_params
    whole = sum(entry[1] for entry in sums.values()) or 1
    found = [TypeShare(name, count, size, weights, size / whole) for name, (count, size, weights) in sums.items()]
    return tuple(sorted(found, key=lambda item: (-item.size, item.type)))


def vocab_type(metadata: ModelMetadata) -> str:
    """Return the kind of tokenizer, such as "BPE", and the name of its rules where the file gives one."""
    name = metadata.values.get("tokenizer.ggml.model")
    if not isinstance(name, str) or name in ("", "none", "no_vocab"):
        return ""
    rules = metadata.values.get("tokenizer.ggml.pre")
    kind = _VOCAB_TYPES.get(name, name)
    return f"{kind} ({rules})" if isinstance(rules, str) and rules else kind


def provenance(metadata: ModelMetadata) -> dict[str, str]:
    """Return who made and quantized a file, as far as it tells."""
    found = {label: metadata.values.get(key) for key, label in _PROVENANCE.items()}
    return {label: str(value) for label, value in found.items() if isinstance(value, (str, int)) and str(value).strip()}


def warnings(metadata: ModelMetadata) -> tuple[str, ...]:
    """Return what is unusual about a file, in sentences."""
    found = []
    if metadata.architecture == "unknown":
        found.append("it names no architecture, so llama.cpp can not load it")
    elif not metadata.kv_cache.known_architecture:
        found.append(f"its architecture {metadata.architecture!r} is not one that this llama.cpp is known to load")
    if metadata.byte_order == "big":
        found.append("it is big-endian: machines with the usual byte order can not load it; convert it again there")
    if metadata.version != 3:
        found.append(f"it is of the old GGUF version {metadata.version}")
    if not metadata.tensors:
        found.append("it holds no tensors: it is a vocabulary or a first part without weights")
    kind = metadata.values.get("general.type", "model")
    if kind != "model":
        found.append(f"it is no model by itself but of type {str(kind)!r}")
    elif metadata.chat_template is None and metadata.tensors and not _embeds(metadata):
        template = metadata.values.get("tokenizer.chat_template")
        reason = "its chat template is too long to be one" if template is not None else "it has no chat template"
        found.append(f"{reason}: prompts are continued, not answered")
    if kind == "model" and metadata.tensors and not metadata.n_ctx_train:
        found.append("it does not tell its context length")
    if metadata.bits_per_weight > 32:
        found.append("its tensors have more than 32 bits per weight")
    return tuple(found)


def _embeds(metadata: ModelMetadata) -> bool:
    """Tell whether it makes embeddings, not text."""
    return metadata.get("pooling_type", 0) not in (0, 0xFFFFFFFF) or metadata.get("attention.causal") is False


def as_dict(metadata: ModelMetadata) -> dict[str, Any]:
    """Return everything as plain values that JSON can hold."""
    cache = metadata.kv_cache
    return {
        "path": metadata.path,
        "architecture": metadata.architecture,
        "name": metadata.name,
        "ftype": metadata.ftype,
        "n_params": metadata.n_params,
        "file_size": metadata.file_size,
        "size": metadata.size,
        "bits_per_weight": metadata.bits_per_weight,
        "mix": [share.to_dict() for share in metadata.mix],
        "n_ctx_train": metadata.n_ctx_train,
        "n_layer": metadata.n_layer,
        "n_embd": metadata.n_embd,
        "n_head": metadata.n_head,
        "n_head_kv": metadata.n_head_kv,
        "n_expert": metadata.n_expert,
        "n_expert_used": metadata.n_expert_used,
        "kv_cache": cache.to_dict(),
        "n_vocab": metadata.n_vocab,
        "vocab_type": metadata.vocab_type,
        "special_tokens": dict(metadata.special_tokens),
        "chat_template": metadata.chat_template,
        "license": metadata.license,
        "provenance": metadata.provenance,
        "warnings": list(metadata.warnings),
        "version": metadata.version,
        "byte_order": metadata.byte_order,
        "parts": list(metadata.parts),
        "data_offset": metadata.data_offset,
        "transferred": metadata.transferred,
        "values": _plain(metadata.values),
        "tensors": [tensor.to_dict() for tensor in metadata.tensors],
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain_value(value) for key, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, ArrayLength):
        entries = [_plain_value(entry) for entry in value.numbers or value.texts]
        return entries or {"type": value.type, "length": value.length}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
