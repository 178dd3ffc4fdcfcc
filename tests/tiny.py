"""Tiny Llama models with random weights, which the tests write: dense, or with experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.gguf import Tensor, write_gguf

__all__ = ["EMBD", "EXPERTS", "FF", "HEADS", "HEADS_KV", "LAYERS", "USED", "Weights", "tiny_llama", "vocabulary"]

EMBD, FF, HEADS, HEADS_KV, LAYERS = 64, 96, 4, 2, 2
EXPERTS, USED = 4, 2
_LETTERS = "▁abcdefghijklmnopqrstuvwxyz"

Weights = dict[str, npt.NDArray[np.float32]]


def vocabulary() -> list[str]:
    """The tokens: three special ones, all bytes, and some letters."""
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_LETTERS]


def tiny_llama(
    path: Path, *, experts: bool = False, seed: int = 0, still_query: bool = True, embd: int = EMBD, ff: int = FF
) -> Weights:
    """Write a model and return its weights, as (rows, columns) of float32.

    Parameters
    ----------
    still_query
        All queries are zero, so that attention is the mean of all values so far: easy to compute by hand.
    """
    random = np.random.default_rng(seed)
    tokens = vocabulary()
    head = embd // HEADS

    def matrix(*shape: int) -> npt.NDArray[np.float32]:
        return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    weights: Weights = {"token_embd.weight": matrix(len(tokens), embd) * 8, "output.weight": matrix(len(tokens), embd)}
    weights["output_norm.weight"] = random.uniform(0.5, 1.5, embd).astype(np.float32)
    for layer in range(LAYERS):
        block: dict[str, Any] = {
            "attn_norm": random.uniform(0.5, 1.5, embd).astype(np.float32),
            "ffn_norm": random.uniform(0.5, 1.5, embd).astype(np.float32),
            "attn_q": matrix(embd, embd) * (not still_query),
            "attn_k": matrix(HEADS_KV * head, embd),
            "attn_v": matrix(HEADS_KV * head, embd),
            "attn_output": matrix(embd, embd),
        }
        if experts:
            block |= {"ffn_gate_inp": matrix(EXPERTS, embd) * 4}
            block |= {f"ffn_{part}_exps": matrix(EXPERTS, ff, embd) for part in ("gate", "up")}
            block |= {"ffn_down_exps": matrix(EXPERTS, embd, ff)}
        else:
            block |= {"ffn_gate": matrix(ff, embd), "ffn_up": matrix(ff, embd), "ffn_down": matrix(embd, ff)}
        weights |= {f"blk.{layer}.{name}.weight": value.astype(np.float32) for name, value in block.items()}
    values = {
        "general.architecture": "llama", "general.name": "tiny", "general.file_type": 0,
        "llama.context_length": 4096, "llama.embedding_length": embd, "llama.block_count": LAYERS,
        "llama.feed_forward_length": ff, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS_KV, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": head, "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-1.0 - place for place in range(len(_LETTERS))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(_LETTERS)],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    if experts:
        values |= {"llama.expert_count": EXPERTS, "llama.expert_used_count": USED}
    tensors: list[Tensor] = [(name, value.shape[::-1], 0, value.tobytes()) for name, value in weights.items()]
    write_gguf(path, values, tensors)
    return weights
