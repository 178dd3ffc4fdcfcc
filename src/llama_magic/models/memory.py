"""How much memory a model will take, told before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from llama_magic.models.gguf import ArrayLength, ModelMetadata
from llama_magic.models.options import LoadOptions

__all__ = ["MemoryNeed", "default_n_ctx", "estimate"]

#: Context used when none is asked for: enough for a long chat, small enough for a small machine.
DEFAULT_N_CTX = 4096

#: Bits that one value of each KV cache type takes, block scales included (ggml.c, `type_traits`).
_CACHE_BITS = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5,
    "iq4_nl": 4.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes for the weights, the KV cache, and the buffers that llama.cpp computes in."""

    weights: int
    kv_cache: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.compute


def default_n_ctx(metadata: ModelMetadata, options: LoadOptions) -> int:
    """Return the context to use: what was asked for, or the model's own up to `DEFAULT_N_CTX`."""
    if options.n_ctx is not None:
        return options.n_ctx
    return min(metadata.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)


def estimate(metadata: ModelMetadata, options: LoadOptions, contexts: int = 1) -> MemoryNeed:
    """Estimate what loading takes.

    The KV cache holds, for each layer and token, one key and one value row of
    ``n_head_kv * length`` values (llama.cpp, `llama_kv_cache`). Compute buffers hold the
    attention mask, activations of one ubatch and one row of logits.

    Parameters
    ----------
    contexts
        How many contexts of this size there will be.
    """
    n_ctx = default_n_ctx(metadata, options)
    n_head = _number(metadata.get("attention.head_count", 1)) or 1
    n_head_kv = _number(metadata.get("attention.head_count_kv", n_head)) or n_head
    head = metadata.n_embd / n_head
    key = float(metadata.get("attention.key_length", head))
    value = float(metadata.get("attention.value_length", head))
    bits = key * _CACHE_BITS[options.cache_type_k] + value * _CACHE_BITS[options.cache_type_v]
    kv_cache = int(metadata.n_layer * n_ctx * n_head_kv * bits / 8)
    width = max(metadata.n_embd, _number(metadata.get("feed_forward_length", 0)))
    mask = 2 * n_ctx * options.n_ubatch
    if options.flash_attn == "off":
        # Without it the attention scores of one ubatch are kept, four bytes each.
        mask += 4 * n_ctx * options.n_ubatch * int(n_head)
    compute = int(mask + 4 * options.n_ubatch * (3 * width + metadata.n_embd) + 8 * metadata.n_vocab)
    return MemoryNeed(metadata.size, kv_cache * contexts, compute * contexts)


def _number(value: object) -> float:
    if isinstance(value, ArrayLength):
        return sum(value.numbers) / len(value.numbers) if value.numbers else 0.0
    return float(value) if isinstance(value, (int, float)) else 0.0
