"""What the KV cache of a model takes, from its metadata.

It follows `llama_model::create_memory` and each architecture's `load_arch_hparams` of llama.cpp
(src/llama-model.cpp, src/models/). Where an architecture keeps something else, or is not known,
that is said instead of a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llama_magic.models.metadata import TENSOR_TYPES, ArrayLength, ModelMetadata

__all__ = ["KVCache", "kv_cache"]

# Names are those of llama.cpp (src/llama-arch.cpp, `LLM_ARCH_NAMES`).

#: A key and a value row for every layer and token.
_STANDARD = frozenset(
    "llama deci falcon grok gpt2 gptneox mpt baichuan starcoder refact bloom stablelm qwen qwen2 qwen2moe qwen2vl "
    "qwen3 qwen3moe qwen3vl qwen3vlmoe phi2 phi3 phimoe plamo codeshell orion internlm2 minicpm minicpm3 gemma "
    "starcoder2 xverse command-r dbrx olmo olmoe openelm arctic deepseek deepseek2 deepseek2-ocr chatglm glm4 glm4moe "
    "bitnet jais jais2 nemotron exaone granite granitemoe chameleon plm bailingmoe bailingmoe2 dots1 arcee ernie4_5 "
    "ernie4_5-moe hunyuan-moe hunyuan-dense hunyuan_vl hy_v3 smollm3 seed_oss grovemoe apertus minimax-m2 cogvlm "
    "pangu-embedded mistral3 mistral4 paddleocr llama-embed maincoder talkie".split()
)
#: They see all tokens at once and keep nothing.
_WITHOUT = frozenset(
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert wavtokenizer-dec "
    "gemma-embedding dream llada llada-moe rnd1".split()
)
#: A state of fixed size instead of a cache that grows.
_RECURRENT = frozenset("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7".split())
#: Both: layers without key-value heads are recurrent.
_HYBRID = frozenset(
    "jamba plamo2 granitehybrid lfm2 lfm2moe falcon-h1 nemotron_h nemotron_h_moe qwen3next qwen35 qwen35moe "
    "kimi-linear kimi-k3 bailingmoe3 minimax-01".split()
)
#: Hybrids in which every n-th layer has attention, by default.
_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
#: Keep keys only where the file has the lengths of latent attention (`llama_hparams::is_mla`).
_LATENT = frozenset("deepseek2 mistral4 kimi-linear kimi-k3 bailingmoe3".split())
#: They keep more than keys and values, or share them: no figure is better than a wrong one.
_OTHERS = frozenset(
    "clip gptj gemma4-assistant deepseek32 deepseek4 glm-dsa t5 t5encoder graniteswitch dots3note hy_v4 hrm_text "
    "minimax-m3 qwen4exp eagle3 dflash glm5-next nanbeige qwen3tts pockettts".split()
)


@dataclass(frozen=True, slots=True)
class _Window:
    """Sliding window: every `pattern`-th layer sees all tokens, the first or the last of them.

    `pattern` 0 takes it from the file, which has to give it; `window` is the default.
    """

    pattern: int
    dense_first: bool = False
    window: int = 0


_WINDOWS = {
    "llama4": _Window(4), "afmoe": _Window(4), "cohere2": _Window(4), "cohere2moe": _Window(4, dense_first=True),
    "exaone4": _Window(4, window=4096), "exaone-moe": _Window(4), "gemma2": _Window(2, window=4096),
    "gemma3": _Window(6), "gemma3n": _Window(5), "gemma4": _Window(0), "gpt-oss": _Window(2), "granite_swa": _Window(0),
    "laguna": _Window(4, dense_first=True), "maple": _Window(0), "mellum": _Window(4), "mimo2": _Window(0),
    "muse-glimmer": _Window(4), "olmo2": _Window(4), "plamo3": _Window(8),
    "smallthinker": _Window(4, dense_first=True), "spark2_5": _Window(0), "step35": _Window(0),
}  # fmt: skip

_MAX_LAYERS = 512  # llama-hparams.h, LLAMA_MAX_LAYERS
_N_UBATCH = 512


@dataclass(frozen=True, slots=True)
class KVCache:
    """What a model keeps for the tokens it has seen, in values; their type decides on the bytes.

    Attributes
    ----------
    reason
        Why it is not known; empty where it is.
    layers, keys, values
        Layers that keep every token, and how many values they keep for a token, all layers together.
    window
        Tokens that layers with a sliding window see; 0 without any.
    window_layers, window_keys, window_values
        The same for these layers. They keep `window` tokens and those of a batch under way.
    state
        Bytes of the recurrent state of a sequence, which does not grow.
    row
        Values of one head: the block of a quantized type has to divide it.
    known_architecture
        Whether this llama.cpp is known to have the architecture.
    """

    reason: str = ""
    layers: int = 0
    keys: int = 0
    values: int = 0
    window: int = 0
    window_layers: int = 0
    window_keys: int = 0
    window_values: int = 0
    state: int = 0
    row: int = 0
    known_architecture: bool = True

    @property
    def known(self) -> bool:
        """Whether the figures hold."""
        return not self.reason

    def allows(self, cache_type: str) -> bool:
        """Tell whether the rows can be kept in this type, such as "q8_0"."""
        return self.row % _block(cache_type)[0] == 0

    def per_token(self, cache_type: str = "f16", cache_type_v: str | None = None) -> float:
        """Return the bytes by which the cache grows with each token, beyond any window."""
        return self.keys * _width(cache_type) + self.values * _width(cache_type_v or cache_type)

    def window_size(self, cache_type: str = "f16", n_ubatch: int = _N_UBATCH) -> int:
        """Return the most bytes that layers with a window keep: it and a batch under way."""
        cells = _pad(self.window + n_ubatch) if self.window_layers else 0
        return int(cells * (self.window_keys + self.window_values) * _width(cache_type))

    def size(
        self,
        n_ctx: int,
        cache_type: str = "f16",
        cache_type_v: str | None = None,
        n_ubatch: int = _N_UBATCH,
        *,
        swa_full: bool = False,
    ) -> int:
        """Return the bytes for a context of `n_ctx` tokens and one sequence, its recurrent state included.

        llama.cpp rounds both parts up to 256 tokens (llama-context.cpp, llama-kv-cache-iswa.cpp).

        Parameters
        ----------
        swa_full
            Layers with a window keep every token all the same.
        """
        n_ctx = _pad(n_ctx)
        short = n_ctx if swa_full else min(n_ctx, _pad(self.window + n_ubatch))
        keys = self.keys * n_ctx + self.window_keys * short
        values = self.values * n_ctx + self.window_values * short
        return int(keys * _width(cache_type) + values * _width(cache_type_v or cache_type)) + self.state

    def to_dict(self) -> dict[str, Any]:
        """Return it as a plain dict, with the bytes for 1,000 tokens."""
        if not self.known:
            return {"known": False, "reason": self.reason}
        types = [name for name in ("f16", "q8_0") if self.allows(name)]
        return {
            "known": True,
            "per_1000_tokens": {name: round(1000 * self.per_token(name)) for name in types},
            "layers": self.layers,
            "window": self.window,
            "window_layers": self.window_layers,
            "window_size": {name: self.window_size(name) for name in types},
            "state": self.state,
        }


def _block(cache_type: str) -> tuple[int, int]:
    _, block, width = next(entry for entry in TENSOR_TYPES.values() if entry[0] == cache_type.upper())
    return block, width


def _width(cache_type: str) -> float:
    block, width = _block(cache_type)
    return width / block


def _pad(count: int) -> int:
    return -(-count // 256) * 256


class _Unknown(Exception):  # noqa: N818 - never leaves this module
    """The file does not give what is needed."""


def kv_cache(metadata: ModelMetadata) -> KVCache:
    """Return what the model keeps for the tokens it has seen, or why that is not known."""
    name = metadata.architecture
    if name in _WITHOUT:
        return KVCache()
    if name in _OTHERS:
        return KVCache(f"{name} keeps more than keys and values")
    if not (name in _STANDARD or name in _RECURRENT or name in _HYBRID or name in _WINDOWS):
        return KVCache("this architecture is not known here", known_architecture=False)
    try:
        return _Layers(metadata).cache()
    except _Unknown as exc:
        return KVCache(str(exc))


class _Layers:
    """The layers of one model, as llama.cpp sees them."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self.metadata = metadata
        self.name = metadata.architecture
        self.all = metadata.n_layer
        # Layers for predicting further tokens (MTP) have no part in the main context's cache.
        self.count = self.all - metadata.number("nextn_predict_layers")
        if not 0 < self.count <= self.all <= _MAX_LAYERS:
            raise _Unknown(f"the file says it has {self.all:,} layers")

    def cache(self) -> KVCache:
        name = self.name
        recurrent = self.recurrent()
        state = 4 * sum(recurrent) * self._state_values() if any(recurrent) else 0
        if name in _RECURRENT:
            return KVCache(state=state)
        window, sliding = self.sliding(recurrent)
        latent = name in _LATENT and bool(
            self.metadata.number("attention.key_length_mla") and self.metadata.number("attention.value_length_mla")
        )
        sums = {False: [0, 0, 0], True: [0, 0, 0]}
        row = 0
        for layer in range(self._with_cache()):
            if recurrent[layer] and name != "falcon-h1":
                continue
            heads = self.per_layer("attention.head_count_kv", layer, "attention.head_count")
            if not heads or (name.startswith("nemotron_h") and self.per_layer("feed_forward_length", layer)):
                continue
            key, value = self._lengths(layer, sliding=sliding[layer])
            entry = sums[sliding[layer]]
            entry[0] += 1
            entry[1] += heads * key
            entry[2] += 0 if latent else heads * value
            row = math.gcd(row, key, 0 if latent else value)
        full, short = sums[False], sums[True]
        return KVCache(
            layers=full[0],
            keys=full[1],
            values=full[2],
            window=window if short[0] else 0,
            window_layers=short[0],
            window_keys=short[1],
            window_values=short[2],
            state=state,
            row=row,
        )

    def per_layer(self, key: str, layer: int, fallback: str = "") -> int:
        """Return a number that may be given once or for each layer; 0 where it is missing."""
        value = self.metadata.get(key)
        if value is None and fallback:
            return self.per_layer(fallback, layer)
        if isinstance(value, ArrayLength):
            if layer >= len(value.numbers):
                raise _Unknown(f"the file gives {key} for {value.length:,} of {self.all} layers")
            value = value.numbers[layer]
        if value is None:
            return 0
        if not isinstance(value, int) or value < 0 or value > 1 << 24:
            raise _Unknown(f"the file gives no usable {key}")
        return int(value)

    def recurrent(self) -> list[bool]:
        """Tell which layers are recurrent."""
        if self.name in _RECURRENT or self.name == "falcon-h1":
            return [True] * self.count
        if self.name in _INTERVAL:
            if self.metadata.get("attention.recurrent_layers") is not None:
                return [bool(self.per_layer("attention.recurrent_layers", layer)) for layer in range(self.count)]
            interval = self.metadata.number("full_attention_interval", _INTERVAL[self.name])
            if interval < 1:
                raise _Unknown("the file gives no usable full_attention_interval")
            return [(layer + 1) % interval != 0 for layer in range(self.count)]
        if self.name not in _HYBRID:
            return [False] * self.count
        return [
            self.per_layer("attention.head_count_kv", layer, "attention.head_count") == 0
            and not (self.name.startswith("nemotron_h") and self.per_layer("feed_forward_length", layer))
            for layer in range(self.count)
        ]

    def sliding(self, recurrent: list[bool]) -> tuple[int, list[bool]]:
        """Return the window, and which layers have it."""
        none = 0, [False] * self.count
        window = self.metadata.number("attention.sliding_window")
        if self.name == "lfm2":
            return (window, [not flag for flag in recurrent]) if window > 0 else none
        rule = _WINDOWS.get(self.name)
        if rule is None or (self.name == "exaone4" and self.count != 64):
            return none
        given = self.metadata.get("attention.sliding_window")
        if self.name == "llama4":
            window = 0 if given == 0 else 8192
        elif self.name == "smallthinker" and window > 0:
            window = 4096
        window = window if given is not None or self.name == "llama4" else rule.window
        if window <= 0:
            return none
        pattern = self.metadata.get("attention.sliding_window_pattern")
        if isinstance(pattern, ArrayLength):
            key = "attention.sliding_window_pattern"
            return window, [bool(self.per_layer(key, layer)) for layer in range(self.count)]
        every = self.metadata.number("attention.sliding_window_pattern", rule.pattern) if rule.pattern else 0
        if every < 1:
            raise _Unknown("the file does not tell which layers have a sliding window")
        dense = 0 if rule.dense_first else every - 1
        return window, [layer % every != dense for layer in range(self.count)]

    def _with_cache(self) -> int:
        """Return how many layers have keys and values of their own; later ones use those before."""
        if self.name == "gemma3n":
            return min(20, self.count)
        if self.name == "gemma4":
            return min(self.all - self.metadata.number("attention.shared_kv_layers"), self.count)
        return self.count

    def _lengths(self, layer: int, *, sliding: bool) -> tuple[int, int]:
        heads = self.per_layer("attention.head_count", 0) or self.per_layer("attention.head_count", layer)
        usual = self.metadata.n_embd // heads if heads else 0
        key = self.metadata.number("attention.key_length", usual)
        value = self.metadata.number("attention.value_length", usual)
        if sliding:
            key = self.metadata.number("attention.key_length_swa", key)
            value = self.metadata.number("attention.value_length_swa", value)
        if not (0 < key <= 1 << 24 and 0 < value <= 1 << 24):
            raise _Unknown("the file does not tell the width of its attention heads")
        return key, value

    def _state_values(self) -> int:
        """Return the values that one recurrent layer keeps (`llama_hparams::n_embd_r` and `n_embd_s`)."""
        number = self.metadata.number
        width, head = self.metadata.n_embd, number("wkv.head_size")
        if head:
            return width * (number("token_shift_count", 2) + head)
        if number("shortconv.l_cache"):
            return width * (number("shortconv.l_cache") - 1)
        kernel, kda = number("ssm.conv_kernel"), number("kda.head_dim")
        heads = self.per_layer("attention.head_count", 0)
        if kda:
            return 3 * (kernel - 1 if kernel else 3) * heads * kda + kda * kda * heads
        if self.name == "minimax-01":
            size = number("attention.key_length", width // heads if heads else 0)
            return size * size * heads
        inner, state = number("ssm.inner_size"), number("ssm.state_size")
        if not inner or not state:
            raise _Unknown("the file does not tell the size of its recurrent state")
        return max(kernel - 1, 0) * (inner + 2 * number("ssm.group_count") * state) + state * inner
