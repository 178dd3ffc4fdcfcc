"""Sampling parameters of a request: OpenAI's names and llama.cpp's, read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from llama_magic.inference.params import SamplingParams, parse_samplers
from llama_magic.serving.problems import Refusal
from llama_magic.suggest import did_you_mean

__all__ = [
    "IGNORED",
    "SAMPLING",
    "UNSUPPORTED",
    "boolean",
    "check_names",
    "integer",
    "number",
    "read_sampling",
    "text",
    "texts",
]

#: Most stop strings of a request.
_MOST_STOPS = 64


def _refuse(name: str, words: str, value: Any) -> Refusal:
    shown = json.dumps(value, ensure_ascii=True, default=str)
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    return Refusal(400, f"{name} takes {words}; got {shown}", param=name, code="invalid_value")


def number(name: str, value: Any) -> float:
    """Read a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refuse(name, "a number", value)
    return float(value)


def integer(name: str, value: Any) -> int:
    """Read a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(name, "a whole number", value)
    return value


def boolean(name: str, value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise _refuse(name, "true or false", value)
    return value


def text(name: str, value: Any) -> str:
    """Read a text, which must consist of whole characters."""
    if not isinstance(value, str):
        raise _refuse(name, "a text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(400, f"{name} holds half of a character (a lone surrogate)", param=name) from None
    return value


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Read a text or a list of them."""
    if isinstance(value, str):
        return (text(name, value),)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _refuse(name, "a text or a list of texts", value)
    return tuple(text(name, item) for item in value)


def _stop(name: str, value: Any) -> tuple[str, ...]:
    found = texts(name, value)
    if len(found) > _MOST_STOPS:
        raise _refuse(name, f"at most {_MOST_STOPS} texts", len(found))
    return found


def _length(name: str, value: Any) -> int:
    count = integer(name, value)
    return -1 if count < 0 else count


def _count(name: str, value: Any) -> int:
    count = integer(name, value)
    if not 1 <= count <= 64:
        raise _refuse(name, "a number between 1 and 64", value)
    return count


def _seed(name: str, value: Any) -> int | None:
    seed = integer(name, value)
    return None if seed in (-1, 0xFFFFFFFF) else seed


def _samplers(name: str, value: Any) -> tuple[str, ...]:
    return parse_samplers(value if isinstance(value, str) else ";".join(texts(name, value)))


def _bias(name: str, value: Any) -> tuple[tuple[int | str, float], ...]:
    """Read OpenAI's map of token ids, or llama.cpp's list of pairs, where false means never."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise _refuse(name, "a map from token ids to numbers", value)
    found: list[tuple[int | str, float]] = []
    for token, bias in pairs:
        if isinstance(token, str) and token.isdecimal():
            token = int(token)
        if isinstance(token, bool) or not isinstance(token, int | str):
            raise _refuse(name, "token ids as keys", token)
        found.append((token, -1e9 if bias is False else number(name, bias)))
    return tuple(found)


#: name in a request: (field of `SamplingParams`, how it is read)
SAMPLING: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "temperature": ("temperature", number),
    "top_p": ("top_p", number),
    "max_tokens": ("max_tokens", _length),
    "max_completion_tokens": ("max_tokens", _length),
    "n_predict": ("max_tokens", _length),
    "stop": ("stop", _stop),
    "seed": ("seed", _seed),
    "n": ("samples", _count),
    "presence_penalty": ("presence_penalty", number),
    "frequency_penalty": ("frequency_penalty", number),
    "logit_bias": ("logit_bias", _bias),
    # llama.cpp's own
    "top_k": ("top_k", integer),
    "min_p": ("min_p", number),
    "typical_p": ("typical_p", number),
    "top_n_sigma": ("top_n_sigma", number),
    "xtc_probability": ("xtc_probability", number),
    "xtc_threshold": ("xtc_threshold", number),
    "dynatemp_range": ("dynatemp_range", number),
    "dynatemp_exponent": ("dynatemp_exponent", number),
    "repeat_penalty": ("repeat_penalty", number),
    "repeat_last_n": ("repeat_last_n", integer),
    "dry_multiplier": ("dry_multiplier", number),
    "dry_base": ("dry_base", number),
    "dry_allowed_length": ("dry_allowed_length", integer),
    "dry_penalty_last_n": ("dry_penalty_last_n", integer),
    "dry_sequence_breakers": ("dry_sequence_breakers", texts),
    "mirostat": ("mirostat", integer),
    "mirostat_tau": ("mirostat_tau", number),
    "mirostat_eta": ("mirostat_eta", number),
    "adaptive_target": ("adaptive_target", number),
    "adaptive_decay": ("adaptive_decay", number),
    "samplers": ("samplers", _samplers),
    "min_keep": ("min_keep", integer),
    "ignore_eos": ("ignore_eos", boolean),
    "grammar": ("grammar", text),
}

#: Taken and without effect here: bookkeeping of a provider, and how llama-server keeps its cache.
IGNORED = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key parallel_tool_calls cache_prompt id_slot "
    "timings_per_token".split()
)

#: What a model here can not do, and what to do instead. A value that asks for nothing (null, false, empty) is taken.
UNSUPPORTED: dict[str, str] = {
    "tools": "this server calls no tools: leave tools out, or ask for JSON with response_format",
    "functions": "this server calls no functions: leave functions out, or ask for JSON with response_format",
    "audio": "the models here write text only",
    "prediction": "predicted outputs are not supported: leave prediction out",
    "web_search_options": "this server searches nothing: leave web_search_options out",
    "reasoning_effort": "how long a model thinks can not be set here: leave reasoning_effort out",
    "suffix": "text is only continued at its end: leave suffix out",
}


def check_names(body: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse parameters that would not do what their sender thinks."""
    for name, value in body.items():
        if name in UNSUPPORTED:
            if value:
                raise Refusal(400, UNSUPPORTED[name], param=name, code="unsupported_parameter")
        elif name not in known and name not in SAMPLING and name not in IGNORED:
            hint = did_you_mean(name[:80], [*known, *SAMPLING])
            raise Refusal(400, f"there is no parameter {name[:80]!r}.{hint}", param=name[:80], code="unknown_parameter")
    if body.get("tool_choice") not in (None, "none", "auto"):
        raise Refusal(400, UNSUPPORTED["tools"], param="tool_choice", code="unsupported_parameter")


def read_sampling(body: Mapping[str, Any], base: SamplingParams) -> SamplingParams:
    """Return the sampling parameters of a request, those of `base` where it says nothing.

    Raises
    ------
    Refusal
        A value is of another kind.
    InvalidRequestError
        It is out of range.
    """
    found: dict[str, Any] = {}
    for name, (field, read) in SAMPLING.items():
        if body.get(name) is not None:
            found[field] = read(name, body[name])
    schema = _schema(body)
    if schema is not None:
        found["schema"] = schema
    return base.replace(**found)


def _schema(body: Mapping[str, Any]) -> str | None:
    """Return the JSON schema that `response_format`, or llama.cpp's `json_schema`, asks for, as JSON text."""
    schema, name = body.get("json_schema"), "json_schema"
    wanted = body.get("response_format")
    if wanted is not None:
        name = "response_format"
        if not isinstance(wanted, Mapping) or not isinstance(wanted.get("type"), str):
            raise _refuse(name, 'an object with a type, for example {"type": "json_object"}', wanted)
        kind = wanted["type"]
        if kind == "json_object":
            schema = wanted.get("schema") or {"type": "object"}
        elif kind == "json_schema":
            inner = wanted.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, Mapping) else wanted.get("schema")
            if schema is None:
                raise _refuse(name, 'a schema under {"json_schema": {"schema": …}}', wanted)
        elif kind != "text":
            raise _refuse(name, "the type text, json_object or json_schema", kind)
    if schema is None:
        return None
    if not isinstance(schema, Mapping):
        raise _refuse(name, "a JSON schema, which is an object", schema)
    return json.dumps(schema, ensure_ascii=False)
