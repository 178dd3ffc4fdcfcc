"""Replies in OpenAI's shapes, with llama.cpp's additions (``timings``, ``tokens``)."""

from __future__ import annotations

import base64
import json
import secrets
import struct
import time
from collections.abc import Sequence
from typing import Any

from llama_magic.inference.results import Candidate, Chunk, Completion, Sample, Timings, TokenLogprob
from llama_magic.serving.orders import Order
from llama_magic.serving.served import ServedModel

__all__ = ["DONE", "Reply", "embedding_reply", "event", "models_reply", "usage_of"]

#: The end of a stream of events.
DONE = b"data: [DONE]\n\n"

_REASONS = {"stop": "stop", "length": "length", "context": "length"}


def event(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Reply:
    """Writes the reply to one order, whole or in pieces.

    Parameters
    ----------
    order
        What was asked.
    model
        Who answers.
    """

    def __init__(self, order: Order, model: ServedModel) -> None:
        self._order = order
        self._head = {
            "id": ("chatcmpl-" if order.chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint or None,
        }
        self._begun: dict[int, int] = {}  # by choice: characters of its tokens so far

    def _object(self, *, piece: bool) -> str:
        if not self._order.chat:
            return "text_completion"
        return "chat.completion.chunk" if piece else "chat.completion"

    # -- in pieces -------------------------------------------------------------------------

    def piece(self, number: int, chunk: Chunk) -> bytes:
        """Return the event for a chunk of the prompt of this number."""
        place = number * self._order.params.samples + chunk.index
        choice = self._delta(place, chunk.text, chunk.logprobs, first=place not in self._begun)
        self._begun[place] = self._begun.get(place, 0) + sum(len(row.text) for row in chunk.logprobs)
        if self._order.return_tokens:
            choice["tokens"] = list(chunk.tokens)
        return self._event([choice])

    def _delta(self, place: int, text: str, rows: Sequence[TokenLogprob], *, first: bool) -> dict[str, Any]:
        logprobs = self._logprobs(rows, self._begun.get(place, 0)) if rows else None
        if self._order.chat:
            role = {"role": "assistant"} if first else {}
            return {"index": place, "delta": {**role, "content": text}, "logprobs": logprobs, "finish_reason": None}
        echo = self._echo(place) if first else ""
        return {"index": place, "text": echo + text, "logprobs": logprobs, "finish_reason": None}

    def ends(self, completions: Sequence[Completion]) -> list[bytes]:
        """Return the events that end a stream, the last but ``[DONE]``."""
        events = []
        for place, sample in enumerate(_samples(completions)):
            choice: dict[str, Any] = {"index": place, "logprobs": None, "finish_reason": _reason(sample)}
            first = place not in self._begun  # it ended before its first token
            if self._order.chat:
                choice["delta"] = {"role": "assistant", "content": ""} if first else {}
            else:
                choice["text"] = self._echo(place) if first else ""
            last = place == len(completions) * self._order.params.samples - 1
            more = {"timings": _timings(completions)} if last else {}
            events.append(self._event([choice], more))
        if self._order.include_usage:
            value = {**self._head, "object": self._object(piece=True), "choices": [], "usage": usage_of(completions)}
            events.append(event(value))
        return events

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self._order.include_usage else {}
        return event({**self._head, "object": self._object(piece=True), "choices": choices, **usage, **(more or {})})

    # -- whole -----------------------------------------------------------------------------

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the reply to a request that does not stream."""
        choices = []
        for place, sample in enumerate(_samples(completions)):
            rows = self._logprobs(sample.logprobs, 0) if self._order.tops is not None else None
            choice: dict[str, Any] = {"index": place, "logprobs": rows, "finish_reason": _reason(sample)}
            if self._order.chat:
                choice["message"] = {"role": "assistant", "content": sample.text, "refusal": None}
            else:
                choice["text"] = self._echo(place) + sample.text
            if self._order.return_tokens:
                choice["tokens"] = list(sample.tokens)
            choices.append(choice)
        return {
            **self._head,
            "object": self._object(piece=False),
            "choices": choices,
            "usage": usage_of(completions),
            "timings": _timings(completions),
        }

    def _echo(self, place: int) -> str:
        prompt = self._order.prompts[place // self._order.params.samples]
        return prompt if self._order.echo and isinstance(prompt, str) else ""

    # -- probabilities ---------------------------------------------------------------------

    def _logprobs(self, rows: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        tops = self._order.tops or 0
        if self._order.chat:
            return {
                "content": [
                    {
                        **_token(row),
                        "top_logprobs": [_token(other) for other in row.top[:tops]],
                    }
                    for row in rows
                ],
                "refusal": None,
            }
        offsets = []
        for row in rows:
            offsets.append(offset)
            offset += len(row.text)
        return {
            "tokens": [row.text for row in rows],
            "token_logprobs": [row.logprob for row in rows],
            "top_logprobs": [{other.text: other.logprob for other in row.top[:tops]} for row in rows] if tops else None,
            "text_offset": offsets,
        }


def _token(row: TokenLogprob | Candidate) -> dict[str, Any]:
    """Return a token with its probability, and llama-server's ``id``."""
    # A token may end in the middle of a character: then its bytes are not those of its text.
    told = None if "\ufffd" in row.text else list(row.text.encode())
    return {"id": row.id, "token": row.text, "logprob": row.logprob, "bytes": told}


def _samples(completions: Sequence[Completion]) -> list[Sample]:
    found: list[Sample] = []
    for done in completions:
        found += done.samples or (Sample(done.text, done.tokens, done.finish_reason, done.logprobs),)
    return found


def _reason(sample: Sample) -> str:
    return _REASONS.get(sample.finish_reason, "stop")


def usage_of(completions: Sequence[Completion]) -> dict[str, Any]:
    """Return OpenAI's counts of tokens."""
    prompt = sum(done.timings.prompt_tokens for done in completions)
    generated = sum(done.timings.generated_tokens for done in completions)
    cached = sum(done.timings.cached_tokens for done in completions)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _timings(completions: Sequence[Completion]) -> dict[str, float]:
    """Return llama-server's timings: counts, milliseconds and rates."""
    rows = [done.timings for done in completions]
    prompt = sum(row.prompt_tokens - row.cached_tokens for row in rows)
    generated, prompt_s = sum(row.generated_tokens for row in rows), sum(row.prompt_s for row in rows)
    both = Timings(
        prompt_tokens=prompt,
        generated_tokens=generated,
        prompt_s=prompt_s,
        generation_s=sum(row.generation_s for row in rows),
    )
    return {
        "cache_n": sum(row.cached_tokens for row in rows),
        "prompt_n": prompt,
        "prompt_ms": round(1000 * prompt_s, 3),
        "prompt_per_second": round(both.prompt_tps, 3),
        "predicted_n": generated,
        "predicted_ms": round(1000 * both.generation_s, 3),
        "predicted_per_second": round(both.generation_tps, 3),
    }


def models_reply(model: ServedModel) -> dict[str, Any]:
    """Return the reply to ``/v1/models``, with llama-server's ``meta``."""
    meta = {
        "n_vocab": model.n_vocab, "n_ctx": model.n_ctx, "n_ctx_train": model.n_ctx_train, "n_embd": model.n_embd,
        "n_params": model.n_params, "size": model.size,
    }  # fmt: skip
    row = {"id": model.name, "object": "model", "created": model.created, "owned_by": "llama_magic", "meta": meta}
    return {"object": "list", "data": [row]}


def embedding_reply(
    model: ServedModel, vectors: Sequence[Sequence[float]], tokens: int, *, as64: bool
) -> dict[str, Any]:
    """Return the reply to ``/v1/embeddings``."""

    def form(vector: Sequence[float]) -> Any:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as64 else list(vector)

    rows = [{"object": "embedding", "index": place, "embedding": form(row)} for place, row in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": rows, "model": model.name, "usage": usage}
