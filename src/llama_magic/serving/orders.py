"""Bodies of requests, read into what is to be done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Message
from llama_magic.serving.parameters import boolean, check_names, integer, read_sampling, text, texts
from llama_magic.serving.problems import Refusal
from llama_magic.serving.served import Prompt, ServedModel

__all__ = ["Embedding", "Order", "check_model", "parse_json", "read_chat", "read_completion", "read_embedding"]

#: Most prompts or texts of one request (OpenAI's limit for embeddings).
MOST_TEXTS = 2048
_MOST_PROMPTS = 64

_COMMON = frozenset("model stream stream_options response_format json_schema logprobs n_probs return_tokens".split())
_CHAT = _COMMON | frozenset("messages top_logprobs modalities tool_choice function_call".split())
_TEXT = _COMMON | frozenset("prompt echo best_of".split())
_EMBEDDING = frozenset("model input encoding_format dimensions user".split())

#: What the roles of OpenAI's messages are called in chat templates.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Order:
    """A generation that a client asks for.

    Attributes
    ----------
    chat
        Whether the reply is a message or a continued text.
    prompts
        What to answer or to continue, one after the other.
    params
        How to sample.
    stream, include_usage
        Whether the reply comes in pieces, and with counts of tokens at its end.
    tops
        Alternatives to report for each token; None: no probabilities.
    echo
        Repeat the prompt before the text.
    return_tokens
        Add the ids of tokens, as llama-server does.
    """

    chat: bool
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    stream: bool = False
    include_usage: bool = False
    tops: int | None = None
    echo: bool = False
    return_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Embedding:
    """Texts to embed, and whether the vectors are sent as base64 of 32-bit floats."""

    inputs: tuple[str, ...]
    base64: bool = False


def parse_json(data: bytes) -> dict[str, Any]:
    """Return the object that a body holds."""
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(
            400, f"the body is not valid JSON: {str(error).partition(': line')[0]}", code="invalid_json"
        ) from None
    if not isinstance(found, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def check_model(body: Mapping[str, Any], served: ServedModel) -> None:
    """Refuse a request for a model that is not served here; one that names none gets what there is."""
    name = body.get("model")
    if name is None or name == "":
        return
    if text("model", name) not in (served.name, *served.other_names):
        raise Refusal(
            404,
            f"the model {name[:100]!r} is not served here; {served.name!r} is (GET /v1/models)",
            code="model_not_found",
            param="model",
        )


def read_chat(body: Mapping[str, Any], base: SamplingParams) -> Order:
    """Read the body of ``/v1/chat/completions``."""
    check_names(body, _CHAT)
    if body.get("modalities") not in (None, [], ["text"]):
        raise Refusal(400, "the models here write text only: leave modalities out", param="modalities")
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise Refusal(
            400, 'messages takes a list, for example [{"role": "user", "content": "Hello"}]', param="messages"
        )
    messages = tuple(_message(item, f"messages[{place}]") for place, item in enumerate(found))
    wanted = body.get("logprobs")
    tops = _tops(body, "top_logprobs") if wanted is not None and boolean("logprobs", wanted) else None
    if tops is None and body.get("top_logprobs"):
        raise Refusal(400, "top_logprobs needs logprobs: true beside it", param="top_logprobs")
    return _order(body, base, (messages,), tops, chat=True)


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise Refusal(400, f"{where} must be an object with role and content", param=where)
    role = item.get("role")
    if role in ("tool", "function") or item.get("tool_calls"):
        raise Refusal(400, f"{where}: this server calls no tools; write what they gave as a user message", param=where)
    if not isinstance(role, str) or role not in _ROLES:
        raise Refusal(400, f"{where}.role must be system, user or assistant", param=f"{where}.role")
    return Message(_ROLES[role], _content(item.get("content"), f"{where}.content"))


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return text(where, content)
    if not isinstance(content, list):
        raise Refusal(400, f"{where} must be a text or a list of text parts", param=where)
    parts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "refusal"):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise Refusal(
                400, f"{where}: the model reads text only; got a part of type {str(kind)[:40]!r}", param=where
            )
        parts.append(text(where, part.get("text", part.get("refusal"))))
    return "\n".join(parts)


def read_completion(body: Mapping[str, Any], base: SamplingParams) -> Order:
    """Read the body of ``/v1/completions``."""
    check_names(body, _TEXT)
    given = body.get("prompt")
    if isinstance(given, list) and any(isinstance(item, int | list) for item in given):
        raise Refusal(400, "prompt takes text: tokens of another vocabulary would mean something else", param="prompt")
    if given is None:
        raise Refusal(400, "prompt is missing: give the text to continue", param="prompt")
    prompts = texts("prompt", given)
    if not 0 < len(prompts) <= _MOST_PROMPTS:
        raise Refusal(400, f"prompt takes 1 to {_MOST_PROMPTS} texts; got {len(prompts)}", param="prompt")
    samples, best = body.get("n") or 1, body.get("best_of")
    if best is not None and best != samples:
        raise Refusal(400, "best_of is not supported: leave it out, or make it the same as n", param="best_of")
    wanted = body.get("logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        tops: int | None = integer("logprobs", wanted)
    else:
        tops = _tops(body, "n_probs") if wanted else None
    return _order(body, base, prompts, tops, chat=False)


def _tops(body: Mapping[str, Any], name: str) -> int:
    return integer(name, body.get(name) or 0)


def _order(
    body: Mapping[str, Any], base: SamplingParams, prompts: tuple[Prompt, ...], tops: int | None, *, chat: bool
) -> Order:
    params = read_sampling(body, base)
    if tops is None and body.get("n_probs"):
        tops = _tops(body, "n_probs")
    if tops is not None:
        if not 0 <= tops <= 100:
            name = "top_logprobs" if chat else "logprobs"
            raise Refusal(400, f"{name} must be between 0 and 100; got {tops}", param=name, code="invalid_value")
        params = params.replace(logprobs=max(1, tops))
    stream, options = boolean("stream", body.get("stream") or False), body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise Refusal(
            400, 'stream_options takes an object, for example {"include_usage": true}', param="stream_options"
        )
    usage = boolean("stream_options.include_usage", (options or {}).get("include_usage") or False)
    echo = boolean("echo", body.get("echo") or False)
    tokens = boolean("return_tokens", body.get("return_tokens") or False)
    return Order(chat, prompts, params, stream, usage, tops, echo, tokens)


def read_embedding(body: Mapping[str, Any], served: ServedModel) -> Embedding:
    """Read the body of ``/v1/embeddings``."""
    check_names(body, _EMBEDDING)
    given = body.get("input")
    if isinstance(given, list) and any(isinstance(item, int | list) for item in given):
        raise Refusal(
            400,
            "input takes text: tokens of another vocabulary would mean something else "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            param="input",
        )
    inputs = texts("input", given)
    if not 0 < len(inputs) <= MOST_TEXTS or not all(inputs):
        raise Refusal(400, f"input takes 1 to {MOST_TEXTS:,} texts, none of them empty", param="input")
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise Refusal(400, "encoding_format must be float or base64", param="encoding_format")
    if body.get("dimensions") not in (None, served.n_embd):
        raise Refusal(
            400, f"this model's embeddings have {served.n_embd} dimensions: leave dimensions out", param="dimensions"
        )
    return Embedding(inputs, form == "base64")
