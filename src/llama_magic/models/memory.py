"""How much memory a model will take, told before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from llama_magic.models.metadata import ModelMetadata
from llama_magic.models.options import LoadOptions

__all__ = ["VOCABULARY", "MemoryNeed", "default_n_ctx", "estimate"]

#: Context used when none is asked for: enough for a long chat, small enough for a small machine.
DEFAULT_N_CTX = 4096

#: Bytes of main memory that an entry of a vocabulary takes in llama.cpp, merges included: 17 MB for SmolLM2's 49,152.
VOCABULARY = 350


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes for the weights, the KV cache, the buffers that llama.cpp computes in, and vocabulary with metadata."""

    weights: int
    kv_cache: int
    compute: int
    other: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.compute + self.other


def default_n_ctx(metadata: ModelMetadata, options: LoadOptions) -> int:
    """Return the context to use: what was asked for, or the model's own up to `DEFAULT_N_CTX`."""
    if options.n_ctx is not None:
        return options.n_ctx
    return min(metadata.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)


def estimate(metadata: ModelMetadata, options: LoadOptions, contexts: int = 1) -> MemoryNeed:
    """Estimate what loading takes.

    The KV cache is reckoned layer by layer (models/kv.py). Compute buffers hold the attention
    mask, activations of one ubatch and one row of logits. What llama.cpp itself would allocate is
    told by `dry_run` (models/dryrun.py), which takes as long as reading the vocabulary.

    Parameters
    ----------
    contexts
        How many contexts of this size there will be.
    """
    n_ctx = default_n_ctx(metadata, options)
    cache = metadata.kv_cache
    kv_cache = cache.size(
        n_ctx, options.cache_type_k, options.cache_type_v, min(options.n_ubatch, n_ctx), swa_full=options.swa_full
    )
    n_head = metadata.n_head or 1
    width = max(metadata.n_embd, metadata.number("feed_forward_length"))
    mask = 2 * n_ctx * options.n_ubatch
    if options.flash_attn == "off":
        # Without it the attention scores of one ubatch are kept, four bytes each.
        mask += 4 * n_ctx * options.n_ubatch * int(n_head)
    compute = int(mask + 4 * options.n_ubatch * (3 * width + metadata.n_embd) + 8 * metadata.n_vocab)
    return MemoryNeed(metadata.size, kv_cache * contexts, compute * contexts, VOCABULARY * metadata.n_vocab)
