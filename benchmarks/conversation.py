"""Time to the first token of a follow-up in a long conversation.

The same tokens are measured twice: as the end of a conversation of 1,500 tokens, and alone. Before each
follow-up the conversation is put back to where it was, so that every round processes the same
tokens; the worker's own count of processed tokens is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.rows import Row, at_most
from benchmarks.runner import Setup, generate, turns, worker
from llama_magic.engine.client import EngineClient
from llama_magic.engine.protocol import DetokenizeRequest, TokenizeRequest
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Message
from llama_magic.models.options import ModelSpec

__all__ = ["measure"]

_HISTORY, _FOLLOW_UP = 1500, 20
_KEY = "benchmark"
_WORDS = "red blue green gold grey pink dark pale warm cold soft loud calm wild tall wide deep slow fast neat".split()
_GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class _Talk:
    """The client, the model, and the conversation so far."""

    client: EngineClient
    spec: ModelSpec
    history: tuple[Message, ...]

    def count(self, text: str) -> int:
        return len(self.client.request(TokenizeRequest(self.spec, text)))

    def question(self, number: int) -> tuple[str, str]:
        """Return a question, and what the template makes of it: about 20 tokens."""
        words = [_WORDS[(7 * number + 3 * at) % len(_WORDS)] for at in range(_FOLLOW_UP)]
        text = tail = ""
        for length in range(1, len(words) + 1):
            longer = f"Name {' '.join(words[:length])}"
            end = f"<|im_end|>\n<|im_start|>user\n{longer}<|im_end|>\n<|im_start|>assistant\n"
            if text and self.count(end) > _FOLLOW_UP - 1:
                break
            text, tail = longer, end
        return text, tail

    def restore(self) -> Message:
        """Put the conversation back to its first answer, and return that."""
        run = generate(self.client, self.spec, self.history, _GREEDY, conversation=_KEY)
        return Message("assistant", run.completion.text)


def measure(setup: Setup) -> list[Row]:
    """Time to first token of 20 tokens after 1,500, and of the same 20 alone."""
    spec = setup.spec()
    processed: set[int] = set()
    with worker(spec) as client:
        talk = _Talk(client, spec, _history(client, spec))

        def after(number: int) -> float:
            answer = talk.restore()
            question, _ = talk.question(number)
            messages = (*talk.history, answer, Message("user", question))
            run = generate(client, spec, messages, _GREEDY, conversation=_KEY)
            timings = run.completion.timings
            processed.add(timings.prompt_tokens - timings.cached_tokens)
            return run.first_s

        def alone(number: int) -> float:
            # The answer's last token is processed with the follow-up; some token stands for it.
            _, tail = talk.question(number)
            run = generate(client, spec, f" a{tail}", _GREEDY)
            processed.add(run.completion.timings.prompt_tokens - run.completion.timings.cached_tokens)
            return run.first_s

        after(99)
        alone(99)
        processed.clear()
        pairs = turns(after, alone, setup.rounds(15, 3))
    counts = " and ".join(str(count) for count in sorted(processed))
    ratios = [a / b for a, b in pairs]
    middle = sorted(pairs)[len(pairs) // 2]
    note = f"tokens processed: {counts}; a round in the middle: {middle[0]:.3f} s and {middle[1]:.3f} s"
    what = "time to first token, 20-token follow-up after 1,500 tokens of conversation / the same 20 tokens alone"
    return [at_most(what, 1.5, ratios, note=note)]


def _history(client: EngineClient, spec: ModelSpec) -> tuple[Message, ...]:
    text = "".join(f"Day {day}: the sea was calm, we sailed on and saw {day} birds.\n" for day in range(1, 200))
    tokens = client.request(TokenizeRequest(spec, text))[: _HISTORY - 40]
    return (Message("user", client.request(DetokenizeRequest(spec, tokens))),)
