"""llama.cpp's samplers, one function each. A `Sampler` takes ownership of what they return."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from llama_magic.native.library import lib
from llama_magic.native.model import NativeModel

__all__ = [
    "adaptive_p",
    "dist",
    "dry",
    "greedy",
    "infill",
    "logit_bias",
    "min_p",
    "mirostat",
    "penalties",
    "temperature",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical",
    "xtc",
]


def greedy() -> Any:
    """Take the likeliest token."""
    return lib.llama_sampler_init_greedy()


def dist(seed: int) -> Any:
    """Draw from the distribution."""
    return lib.llama_sampler_init_dist(seed)


def logit_bias(model: NativeModel, bias: Sequence[tuple[int, float]]) -> Any:
    """Add a number to the logits of some tokens."""
    entries = (lib.llama_logit_bias * len(bias))(*[lib.llama_logit_bias(token, value) for token, value in bias])
    return lib.llama_sampler_init_logit_bias(model.n_vocab, len(bias), entries)


def penalties(model: NativeModel, last_n: int, repeat: float, frequency: float, presence: float) -> Any:
    """Penalize tokens seen among the last `last_n`."""
    return lib.llama_sampler_init_penalties(model.n_vocab, last_n, repeat, frequency, presence)


def dry(
    model: NativeModel, multiplier: float, base: float, allowed_length: int, last_n: int, breakers: Sequence[str]
) -> Any:
    """Penalize tokens that would extend a repetition."""
    texts = (ctypes.c_char_p * len(breakers))(*[text.encode() for text in breakers])
    pointer = ctypes.cast(texts, ctypes.POINTER(ctypes.c_char_p))
    return lib.llama_sampler_init_dry(model.vocab, multiplier, base, allowed_length, last_n, pointer, len(breakers))


def top_k(k: int) -> Any:
    """Keep the `k` likeliest tokens."""
    return lib.llama_sampler_init_top_k(k)


def top_p(p: float, min_keep: int) -> Any:
    """Keep the likeliest tokens that together reach probability `p`."""
    return lib.llama_sampler_init_top_p(p, min_keep)


def min_p(p: float, min_keep: int) -> Any:
    """Keep tokens at least `p` times as likely as the likeliest."""
    return lib.llama_sampler_init_min_p(p, min_keep)


def typical(p: float, min_keep: int) -> Any:
    """Keep the locally typical tokens."""
    return lib.llama_sampler_init_typical(p, min_keep)


def top_n_sigma(n: float) -> Any:
    """Keep tokens within `n` standard deviations of the highest logit."""
    return lib.llama_sampler_init_top_n_sigma(n)


def xtc(probability: float, threshold: float, min_keep: int, seed: int) -> Any:
    """Now and then drop all but the least likely of the tokens above a threshold."""
    return lib.llama_sampler_init_xtc(probability, threshold, min_keep, seed)


def temperature(value: float, dynamic_range: float, dynamic_exponent: float) -> Any:
    """Divide the logits by a temperature, fixed or following the entropy."""
    return lib.llama_sampler_init_temp_ext(value, dynamic_range, dynamic_exponent)


def mirostat(model: NativeModel, version: int, seed: int, tau: float, eta: float) -> Any:
    """Steer the surprise of the text towards `tau`; version 1 or 2. It also draws the token."""
    if version == 1:
        return lib.llama_sampler_init_mirostat(model.n_vocab, seed, tau, eta, 100)
    return lib.llama_sampler_init_mirostat_v2(seed, tau, eta)


def adaptive_p(target: float, decay: float, seed: int) -> Any:
    """Favour tokens near a target probability. It also draws the token."""
    return lib.llama_sampler_init_adaptive_p(target, decay, seed)


def infill(model: NativeModel) -> Any:
    """Choose candidates for filling in the middle."""
    return lib.llama_sampler_init_infill(model.vocab)
