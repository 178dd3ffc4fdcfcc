"""A request in OpenAI's words, and its stream of pieces read back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from llama_magic._version import __version__
from llama_magic.engine.protocol import GenerateRequest
from llama_magic.errors import RemoteError
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Candidate, Chunk, Completion, Receipt, Sample, Timings, TokenLogprob
from llama_magic.serving.endpoint import Endpoint
from llama_magic.serving.problems import error_of

__all__ = ["Gathered", "body_of"]

#: Fields of `SamplingParams` under another name, or said in another way.
_OTHERWISE = frozenset(
    {"max_tokens", "temperature", "top_p", "samples", "schema", "logprobs", "logit_bias", "samplers"}
)


def body_of(request: GenerateRequest, endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
    """Return address and body. What every server knows is always said, llama.cpp's own only where it was changed."""
    params, chat = request.params, request.prompt is None
    body: dict[str, Any] = {
        "model": request.spec.ref,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    if params.max_tokens >= 0:
        body["max_tokens"] = params.max_tokens
    for name, value in params.changed().items():
        if name not in _OTHERWISE and value is not None:
            body[name] = list(value) if isinstance(value, tuple) else value
    _say(body, params, chat=chat)
    if endpoint.ours:
        body["return_tokens"] = True
    if chat:
        body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
        return f"{endpoint.base_url}/chat/completions", body
    body["prompt"] = request.prompt
    return f"{endpoint.base_url}/completions", body


def _say(body: dict[str, Any], params: SamplingParams, *, chat: bool) -> None:
    if params.samples > 1:
        body["n"] = params.samples
    if params.logprobs:
        body |= {"logprobs": True, "top_logprobs": params.logprobs} if chat else {"logprobs": params.logprobs}
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    if params.samplers != SamplingParams().samplers:
        body["samplers"] = list(params.samplers)
    if params.schema is not None:
        named = {"name": "answer", "schema": json.loads(params.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": named}


class Gathered:
    """What has come of an answer: the pieces of each choice, then counts and times.

    Parameters
    ----------
    request
        What was asked.
    endpoint
        Who answers.
    """

    def __init__(self, request: GenerateRequest, endpoint: Endpoint) -> None:
        self._request = request
        self._endpoint = endpoint
        self._started = time.perf_counter()
        self._first_s = 0.0
        self._chunks: dict[int, list[Chunk]] = {0: []}
        self._reasons: dict[int, str] = {}
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._fingerprint = ""

    def read(self, data: Any) -> Iterator[Chunk]:
        """Take the JSON of one event, and yield the chunks in it."""
        if not isinstance(data, Mapping):
            raise RemoteError(f"{self._endpoint.base_url} sends what is no event of OpenAI's interface")
        if data.get("error"):
            raise error_of(0, data, self._endpoint.base_url)
        self._usage = data.get("usage") or self._usage
        self._timings = data.get("timings") or self._timings
        self._fingerprint = data.get("system_fingerprint") or self._fingerprint
        for choice in data.get("choices") or ():
            index = int(choice.get("index") or 0)
            self._reasons[index] = choice.get("finish_reason") or self._reasons.get(index, "")
            chunk = _chunk(choice, index)
            if chunk.text or chunk.tokens or chunk.logprobs:
                self._first_s = self._first_s or time.perf_counter() - self._started
                self._chunks.setdefault(index, []).append(chunk)
                yield chunk

    def completion(self) -> Completion:
        """Return the whole answer.

        Raises
        ------
        RemoteError
            The stream ended before the answer did.
        """
        if not any(self._reasons.values()):
            raise RemoteError(f"{self._endpoint.base_url} broke off before the end of the answer")
        samples = tuple(self._sample(index) for index in sorted(self._chunks))
        first, timings = samples[0], self._times()
        return Completion(
            text=first.text,
            tokens=first.tokens,
            finish_reason=first.finish_reason,
            timings=timings,
            receipt=self._receipt(timings),
            logprobs=first.logprobs,
            samples=samples,
        )

    def _sample(self, index: int) -> Sample:
        mine = self._chunks[index]
        reason = self._reasons.get(index) or "stop"
        return Sample(
            "".join(chunk.text for chunk in mine),
            tuple(token for chunk in mine for token in chunk.tokens),
            reason if reason in ("stop", "length") else "stop",
            tuple(row for chunk in mine for row in chunk.logprobs),
        )

    def _times(self) -> Timings:
        """Return the server's own times where it tells them, else what was seen from here."""
        usage, told = self._usage, self._timings
        pieces = sum(len(chunks) for chunks in self._chunks.values())
        cached = told.get("cache_n") or (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Timings(
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            cached_tokens=int(cached),
            prompt_s=float(told.get("prompt_ms", 1000 * self._first_s)) / 1000,
            generated_tokens=int(usage.get("completion_tokens") or told.get("predicted_n") or pieces),
            generation_s=float(told.get("predicted_ms", 1000 * (time.perf_counter() - self._started - self._first_s)))
            / 1000,
            time_to_first_token_s=self._first_s,
        )

    def _receipt(self, timings: Timings) -> Receipt:
        spec, params = self._request.spec, self._request.params
        found = {
            "prompt_tokens": timings.prompt_tokens, "cached_tokens": timings.cached_tokens,
            "prompt_s": timings.prompt_s, "generated_tokens": timings.generated_tokens,
            "generation_s": timings.generation_s, "time_to_first_token_s": timings.time_to_first_token_s,
            "prompt_tps": timings.prompt_tps, "generation_tps": timings.generation_tps,
        }  # fmt: skip
        return Receipt(
            model=spec.ref, path=spec.path, sha256="", ftype="", params=params.to_dict(), options={}, devices=(),
            n_threads=0, n_ctx=0, timings=found, llama_cpp_commit=self._fingerprint.removeprefix("llama.cpp-"),
            llama_cpp_python="", llama_magic=__version__, llama_cli="",
            template="completion" if self._request.prompt is not None else "chat", place=self._endpoint.root,
        )  # fmt: skip


def _chunk(choice: Mapping[str, Any], index: int) -> Chunk:
    delta = choice.get("delta")
    text = (delta.get("content") or "") if isinstance(delta, Mapping) else (choice.get("text") or "")
    tokens = tuple(int(token) for token in choice.get("tokens") or ())
    return Chunk(text, tokens, tuple(_rows(choice.get("logprobs"))), index)


def _rows(found: Any) -> Iterator[TokenLogprob]:
    """Yield the probabilities of a chat's or of a completion's choice; an id that is not told is -1."""
    if not isinstance(found, Mapping):
        return
    for row in found.get("content") or ():
        top = tuple(Candidate(_id(o), str(o["token"]), float(o["logprob"])) for o in row.get("top_logprobs") or ())
        yield TokenLogprob(_id(row), str(row["token"]), float(row["logprob"]), top)
    tokens, values = found.get("tokens") or (), found.get("token_logprobs") or ()
    tops = found.get("top_logprobs") or [{}] * len(tokens)
    for text, value, others in zip(tokens, values, tops, strict=False):
        top = tuple(Candidate(-1, str(name), float(logprob)) for name, logprob in (others or {}).items())
        yield TokenLogprob(-1, str(text), float(value or 0.0), top)


def _id(row: Mapping[str, Any]) -> int:
    value = row.get("id")
    return value if isinstance(value, int) else -1
