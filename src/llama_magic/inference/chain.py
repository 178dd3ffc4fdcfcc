"""From `SamplingParams` to a sampler chain, as llama.cpp's tools build theirs (`common/sampling.cpp`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llama_magic.errors import InvalidRequestError
from llama_magic.inference.params import SamplingParams
from llama_magic.native import LogCapture, NativeModel, Sampler, grammar_from_schema, stages

__all__ = ["bias_of", "build_sampler", "grammar_of", "prompt_window"]


def grammar_of(params: SamplingParams) -> str | None:
    """Return the GBNF text that the parameters ask for, or None."""
    if params.schema is not None:
        return grammar_from_schema(params.schema)
    return params.grammar


def bias_of(model: NativeModel, params: SamplingParams) -> list[tuple[int, float]]:
    """Return token ids with their biases, end-of-generation tokens included when they are to be ignored.

    Raises
    ------
    InvalidRequestError
        A token id is out of range, or a text is not exactly one token.
    """
    bias = []
    for token, value in params.logit_bias:
        if isinstance(token, str):
            ids = model.tokenize(token, add_special=False, parse_special=True)
            if len(ids) != 1:
                raise InvalidRequestError(
                    f"logit bias needs single tokens; {token!r} is {len(ids)} tokens here: {ids}. Give the id instead."
                )
            bias.append((ids[0], value))
        elif 0 <= token < model.n_vocab:
            bias.append((token, value))
        else:
            raise InvalidRequestError(f"logit bias: there is no token {token}; this model has 0 to {model.n_vocab - 1}")
    if params.ignore_eos:
        bias += [(token, -math.inf) for token in sorted(model.eog)]
    return bias


def prompt_window(params: SamplingParams, n_ctx: int) -> int:
    """Return how many of the prompt's last tokens the penalties look at; 0 where none is on."""
    windows = [0]
    if params.repeat_penalty != 1 or params.presence_penalty or params.frequency_penalty:
        windows.append(n_ctx if params.repeat_last_n < 0 else params.repeat_last_n)
    if params.dry_multiplier:
        windows.append(n_ctx if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n)
    return max(windows)


def build_sampler(
    model: NativeModel,
    params: SamplingParams,
    *,
    seed: int,
    n_ctx: int,
    bias: Sequence[tuple[int, float]],
    grammar: str | None,
    log: LogCapture,
) -> Sampler:
    """Return a sampler for `params` with its own `seed`."""
    if params.repeat_last_n < 0:
        params = params.replace(repeat_last_n=n_ctx)
    if params.dry_penalty_last_n < 0:
        params = params.replace(dry_penalty_last_n=n_ctx)
    return Sampler(model, _stages(model, params, seed, bias), grammar, log, greedy=_is_greedy(params, bias))


def _stages(model: NativeModel, params: SamplingParams, seed: int, bias: Sequence[tuple[int, float]]) -> list[Any]:
    chain = [stages.logit_bias(model, bias)] if bias else []
    if params.mirostat:
        chain.append(stages.temperature(params.temperature, 0.0, 1.0))
        chain.append(stages.mirostat(model, params.mirostat, seed, params.mirostat_tau, params.mirostat_eta))
        return chain
    names = _needed(params)
    builders = _builders(model, params, seed)
    chain += [builders[name]() for name in names]
    if "adaptive_p" in params.samplers:
        chain.append(stages.adaptive_p(params.adaptive_target, params.adaptive_decay, seed))
    elif "temperature" in params.samplers and "temperature" not in names:
        chain.append(stages.greedy())
    else:
        chain.append(stages.dist(seed))
    return chain


def _is_greedy(params: SamplingParams, bias: Sequence[tuple[int, float]]) -> bool:
    """Tell whether the chain takes the likeliest token as the model gives it."""
    if params.mirostat or bias or prompt_window(params, 1) or "adaptive_p" in params.samplers:
        return False
    return "temperature" in params.samplers and "temperature" not in _needed(params)


def _needed(params: SamplingParams) -> list[str]:
    """Return the samplers to build, in order.

    With temperature 0 the likeliest token is taken. Top-k, top-p, min-p and top-n-sigma always
    leave it among the candidates, so they are left out, with the sorting they need.
    """
    names = [name for name in params.samplers if name != "adaptive_p"]
    if params.temperature > 0 or "temperature" not in names or "adaptive_p" in params.samplers:
        return names
    if params.typical_p < 1 or params.xtc_probability > 0 or params.dynatemp_range > 0 or "infill" in names:
        return names
    return [name for name in names if name in ("penalties", "dry")]


def _builders(model: NativeModel, params: SamplingParams, seed: int) -> dict[str, Callable[[], Any]]:
    p, keep = params, params.min_keep
    return {
        "penalties": lambda: stages.penalties(
            model, p.repeat_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty
        ),
        "dry": lambda: stages.dry(
            model, p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_penalty_last_n, p.dry_sequence_breakers
        ),
        "top_n_sigma": lambda: stages.top_n_sigma(p.top_n_sigma),
        "top_k": lambda: stages.top_k(p.top_k),
        "typ_p": lambda: stages.typical(p.typical_p, keep),
        "top_p": lambda: stages.top_p(p.top_p, keep),
        "min_p": lambda: stages.min_p(p.min_p, keep),
        "xtc": lambda: stages.xtc(p.xtc_probability, p.xtc_threshold, keep, seed),
        "temperature": lambda: stages.temperature(p.temperature, p.dynatemp_range, p.dynatemp_exponent),
        "infill": lambda: stages.infill(model),
    }
