"""What a GGUF file says of itself, as data.

Nothing here reads files: `read_metadata` (models/gguf.py) and `read_remote` (models/remote.py) do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_magic.errors import InvalidRequestError, MissingDependencyError

if TYPE_CHECKING:
    import pandas as pd

    from llama_magic.models.facts import KVCache, TypeShare

__all__ = ["FTYPES", "TENSOR_TYPES", "ArrayLength", "ModelMetadata", "TensorInfo"]

#: ggml_type: name, weights in a block, bytes of a block (ggml.c, `type_traits`).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

#: general.file_type to the name of the quantization (llama.h, `llama_ftype`).
FTYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor.

    Attributes
    ----------
    name, type
        Such as "blk.0.attn_q.weight" and "Q4_K".
    shape
        In ggml's order: the length of a row first.
    offset
        Byte of the data part at which it begins.
    size
        Bytes.
    part
        Which file of a split model holds it, from 0.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int
    part: int = 0

    @property
    def n_params(self) -> int:
        """Weights in it."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict."""
        return {
            "name": self.name, "shape": list(self.shape), "type": self.type, "offset": self.offset,
            "size": self.size, "part": self.part,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """Stands for an array that was skipped.

    Attributes
    ----------
    length
        Its entries.
    numbers, texts
        The entries themselves where they are few: up to 1,024 numbers, up to 64 texts.
    type
        GGUF's name of what it holds: "u32", "f32", "str" and so on.
    offset
        Byte of the file at which its entries begin.
    """

    length: int
    numbers: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    type: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class ModelMetadata:
    """What a GGUF file says of itself.

    Attributes
    ----------
    path
        The file, the first of a split model; ``hf:owner/repo/file.gguf`` where it was read from the Hub.
    values
        Its key-value pairs; an array is kept as its length (`ArrayLength`), and so is a text above 1 MiB.
    tensors
        Its tensors, those of all parts.
    data_offset
        Byte at which tensor data begin; all before it is header.
    file_size
        Bytes of the file, of all parts together.
    version, byte_order
        GGUF version, and "little" or "big".
    parts
        The files of a split model; empty for a single file.
    special_tokens
        Names of tokens that have a role, such as ``{"bos": "<s>", "eos": "</s>"}``.
    transferred
        Bytes that were fetched from the Hub to learn this; 0 for a local file.
    """

    path: str
    values: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int = 0
    file_size: int = 0
    version: int = 3
    byte_order: str = "little"
    parts: tuple[str, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    transferred: int = 0

    def __repr__(self) -> str:
        from llama_magic.models.card import summary

        return summary(self)

    def _repr_html_(self) -> str:
        from llama_magic.models.card import card

        return card(self)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture's own keys: ``get("block_count")`` reads ``llama.block_count``."""
        return self.values.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: int = 0) -> int:
        """Return a whole number of the architecture's own keys; the largest where each layer has its own.

        A value that is no number gives `default`: files come from strangers.
        """
        value = self.get(key)
        if isinstance(value, ArrayLength):
            value = max(value.numbers, default=None)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return default
        return int(value)

    @property
    def architecture(self) -> str:
        """Such as "llama"."""
        name = self.values.get("general.architecture")
        return name if isinstance(name, str) and name else "unknown"

    @property
    def name(self) -> str:
        """The model's own name, or the file's."""
        name = self.values.get("general.name")
        return name if isinstance(name, str) and name.strip() else Path(self.path).stem

    @property
    def ftype(self) -> str:
        """The file's quantization, such as "Q4_1"."""
        number = self.values.get("general.file_type")
        # 1024 marks a type that was guessed (llama.h, LLAMA_FTYPE_GUESSED).
        return FTYPES.get(number & ~1024, "unknown") if isinstance(number, int) else "unknown"

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def n_params(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.n_params for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Real bits per weight: bytes of all tensors * 8 / parameters."""
        return self.size * 8 / self.n_params if self.n_params else 0.0

    @property
    def mix(self) -> tuple[TypeShare, ...]:
        """Tensor types: how many, bytes and share of each, the largest first."""
        from llama_magic.models.facts import tensor_mix

        return tensor_mix(self)

    @property
    def kv_cache(self) -> KVCache:
        """What the KV cache takes per token, or why that is not known."""
        from llama_magic.models.facts import kv_cache

        return kv_cache(self)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is unusual about the file."""
        from llama_magic.models.facts import warnings

        return warnings(self)

    @property
    def n_ctx_train(self) -> int:
        """Context length the model was trained for, in tokens; 0 where the file does not tell."""
        return self.number("context_length")

    @property
    def n_layer(self) -> int:
        """Transformer layers."""
        return self.number("block_count")

    @property
    def n_embd(self) -> int:
        """Width of the embeddings."""
        return self.number("embedding_length")

    @property
    def n_head(self) -> int:
        """Attention heads; the most in any layer where they differ."""
        return self.number("attention.head_count")

    @property
    def n_head_kv(self) -> int:
        """Heads that keys and values have; fewer than `n_head` with grouped-query attention."""
        return self.number("attention.head_count_kv", self.n_head)

    @property
    def n_expert(self) -> int:
        """Experts in a layer; 0 for a dense model."""
        return self.number("expert_count")

    @property
    def n_expert_used(self) -> int:
        """Experts that each token goes through."""
        return self.number("expert_used_count")

    @property
    def n_vocab(self) -> int:
        """Entries of the vocabulary."""
        tokens = self.values.get("tokenizer.ggml.tokens")
        return tokens.length if isinstance(tokens, ArrayLength) else self.number("vocab_size")

    @property
    def vocab_type(self) -> str:
        """Kind of tokenizer, such as "BPE"; empty where there is none."""
        from llama_magic.models.facts import vocab_type

        return vocab_type(self)

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template, None for a base model."""
        template = self.values.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    @property
    def license(self) -> str | None:
        """The licence that the file names, such as "apache-2.0"; None where it names none."""
        found = [self.values.get(key) for key in ("general.license", "general.license.name")]
        names = [value for value in found if isinstance(value, str) and value.strip() and value != "other"]
        return names[0] if names else next((value for value in found if isinstance(value, str) and value), None)

    @property
    def provenance(self) -> dict[str, str]:
        """Who made and quantized it, and with which importance matrix, as far as the file tells."""
        from llama_magic.models.facts import provenance

        return provenance(self)

    def header_sha256(self) -> str:
        """Return the SHA-256 of everything before the tensor data."""
        self._local()
        with Path(self.path).open("rb") as file:
            return hashlib.sha256(file.read(self.data_offset)).hexdigest()

    def array(self, key: str) -> list[Any]:
        """Return all entries of an array, such as ``tokenizer.ggml.tokens``: they are read from the file now."""
        from llama_magic.models.gguf import read_array

        self._local()
        return read_array(self.path, self.values.get(key), self.byte_order)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        from llama_magic.models.facts import as_dict

        return as_dict(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return the tensor table as a `pandas.DataFrame`, one row for each tensor."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingDependencyError("to_pandas needs pandas: pip install pandas") from None
        rows = [{**tensor.to_dict(), "n_params": tensor.n_params} for tensor in self.tensors]
        return pd.DataFrame(rows, columns=["name", "type", "shape", "n_params", "size", "offset", "part"])

    def _local(self) -> None:
        if self.transferred:
            raise InvalidRequestError(f"only the header of {self.path} was read; %llama download fetches the file")
