"""How the next token is chosen: llama.cpp's samplers and their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.suggest import did_you_mean, reject_unknown

__all__ = ["DEFAULT_SAMPLERS", "SAMPLERS", "SamplingParams", "parse_samplers"]

#: Sampler names as ``--samplers`` takes them, with llama.cpp's one-letter forms (``--sampler-seq``).
SAMPLERS: dict[str, str] = {
    "penalties": "e", "dry": "d", "top_n_sigma": "s", "top_k": "k", "typ_p": "y", "top_p": "p",
    "min_p": "m", "xtc": "x", "temperature": "t", "infill": "i", "adaptive_p": "a",
}  # fmt: skip

#: llama.cpp's default order (`common_params_sampling::samplers`).
DEFAULT_SAMPLERS: tuple[str, ...] = (
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature",
)  # fmt: skip

_ALIASES = {
    "typical": "typ_p", "typical_p": "typ_p", "typ": "typ_p", "temp": "temperature", "nucleus": "top_p",
    "top_sigma": "top_n_sigma", "adaptive": "adaptive_p",
}  # fmt: skip


def parse_samplers(text: str) -> tuple[str, ...]:
    """Read a sampler order: names separated by ``;`` or ``,``, or llama.cpp's letters (``edskypmxt``)."""
    text = text.strip()
    letters = {letter: name for name, letter in SAMPLERS.items()}
    if text and ";" not in text and "," not in text and set(text) <= set(letters):
        return tuple(letters[letter] for letter in text)
    names = []
    for part in text.replace(",", ";").split(";"):
        name = part.strip().lower().replace("-", "_")
        if not name:
            continue
        name = _ALIASES.get(name, name)
        if name not in SAMPLERS:
            raise InvalidRequestError(
                f"unknown sampler {part.strip()!r}.{did_you_mean(name, SAMPLERS)} Known: {', '.join(SAMPLERS)}"
            )
        names.append(name)
    return tuple(names)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of one generation. Names and defaults are llama.cpp's where it has them.

    Attributes
    ----------
    max_tokens
        Most tokens to generate; -1 for no limit but the context.
    temperature, dynatemp_range, dynatemp_exponent
        Temperature (0: always the likeliest token) and dynamic temperature
        (https://arxiv.org/abs/2309.02772; range 0 is off).
    top_k, top_p, min_p, typical_p, top_n_sigma, xtc_probability, xtc_threshold
        Truncation samplers; 0, 1.0, 0.0, 1.0, -1 and 0.0 turn them off.
    repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty
        Penalties over the last `repeat_last_n` tokens (-1: the whole context).
    dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers
        DRY repetition penalty; a multiplier of 0 is off.
    adaptive_target, adaptive_decay
        The adaptive-p sampler, used only where `samplers` names it.
    mirostat, mirostat_tau, mirostat_eta
        0: off, 1 or 2: the algorithm (https://arxiv.org/abs/2007.14966); it replaces the other samplers.
    samplers
        The order of the samplers.
    logit_bias
        Pairs of token (id or text that is one token) and bias added to its logit.
    seed
        None draws one; the seed used is in the receipt.
    stop
        Strings that end the text; they are not part of it.
    ignore_eos
        Never end by the model's own end-of-generation tokens.
    grammar
        A GBNF grammar that the text must match.
    schema
        A JSON schema, as JSON text, that the text must match.
    logprobs
        Alternatives to report for each token; 0 reports none.
    samples
        Continuations to decode side by side.
    min_keep
        Least candidates that a truncation sampler leaves.
    """

    max_tokens: int = 512
    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
    logit_bias: tuple[tuple[int | str, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    grammar: str | None = None
    schema: str | None = None
    logprobs: int = 0
    samples: int = 1
    min_keep: int = 0

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.grammar is not None and self.schema is not None:
            raise InvalidRequestError("give a grammar or a schema, not both")
        for name in self.samplers:
            if name not in SAMPLERS:
                raise InvalidRequestError(f"unknown sampler {name!r}.{did_you_mean(name, SAMPLERS)}")
        if any(not text for text in self.stop):
            raise InvalidRequestError("a stop string must not be empty")

    @classmethod
    def from_keywords(cls, base: SamplingParams | None = None, **keywords: Any) -> SamplingParams:
        """Build parameters from user keywords over `base`; an unknown one raises `TypeError`.

        ``stop`` takes a string or several; ``samplers`` a string or names; ``logit_bias`` a mapping or pairs.
        """
        reject_unknown(keywords, [f.name for f in fields(cls)], "sampling keyword")
        known = dict(keywords)
        if isinstance(known.get("stop"), str):
            known["stop"] = (known["stop"],)
        if isinstance(known.get("samplers"), str):
            known["samplers"] = parse_samplers(known["samplers"])
        if isinstance(known.get("logit_bias"), Mapping):
            known["logit_bias"] = tuple(known["logit_bias"].items())
        for name in ("stop", "samplers", "dry_sequence_breakers"):
            if name in known:
                known[name] = tuple(known[name] or ())
        if "logit_bias" in known:
            known["logit_bias"] = tuple((token, float(bias)) for token, bias in known["logit_bias"] or ())
        return replace(base or cls(), **known)

    def replace(self, **changes: Any) -> SamplingParams:
        """Return a copy with some parameters changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as a plain dict."""
        return {name: getattr(self, name) for name in PARAM_NAMES}  # the values are plain already

    def changed(self) -> dict[str, Any]:
        """Return only what differs from the defaults."""
        default = SamplingParams()
        return {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)
        }


#: The keys of `SamplingParams.to_dict`, in its order.
PARAM_NAMES = tuple(each.name for each in fields(SamplingParams))

#: name: (least, most, what to say)
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0, math.inf, "0 or more"),
    "dynatemp_range": (0, math.inf, "0 or more"),
    "top_p": (0, 1, "between 0 and 1"),
    "min_p": (0, 1, "between 0 and 1"),
    "typical_p": (0, 1, "between 0 and 1"),
    "xtc_probability": (0, 1, "between 0 and 1"),
    "xtc_threshold": (0, 1, "between 0 and 1"),
    "adaptive_target": (-1, 1, "between 0 and 1, or -1 for off"),
    "adaptive_decay": (0, 0.99, "between 0 and 0.99"),
    "repeat_last_n": (-1, math.inf, "0 or more, or -1 for the whole context"),
    "dry_multiplier": (0, math.inf, "0 or more"),
    "dry_penalty_last_n": (-1, math.inf, "0 or more, or -1 for the whole context"),
    "mirostat": (0, 2, "0, 1 or 2"),
    "logprobs": (0, 100, "between 0 and 100"),
    "samples": (1, 64, "between 1 and 64"),
    "seed": (0, 0xFFFFFFFE, "between 0 and 4294967294"),
    "min_keep": (0, math.inf, "0 or more"),
}


def _check_numbers(params: SamplingParams) -> None:
    for f in fields(params):
        value = getattr(params, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequestError(f"{f.name} must be a finite number; got {value}")
    if params.max_tokens != -1 and params.max_tokens < 1:
        raise InvalidRequestError(f"max_tokens takes 1 or more, or -1 for no limit; got {params.max_tokens}")
    if params.repeat_penalty <= 0:
        raise InvalidRequestError(f"repeat_penalty must be above 0 (1.0 is off); got {params.repeat_penalty}")
    for name, (least, most, words) in _RANGES.items():
        value = getattr(params, name)
        if value is not None and not least <= value <= most:
            raise InvalidRequestError(f"{name} must be {words}; got {value}")
