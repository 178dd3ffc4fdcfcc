"""Time to the first token of a follow-up in a long conversation.

The same tokens are measured twice: as the end of a conversation of 1,500 tokens, and alone. Before each
follow-up the conversation is put back to where it was, so that every round processes the same
tokens; the worker's own count of processed tokens is told.

The follow-up comes a moment after the answer, as from a person: meanwhile the worker processes what any next
turn begins with. A row of its own has the follow-up that comes at once, as from cells that run in a row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from benchmarks.rows import Row, at_most, info
from benchmarks.runner import Setup, generate, turns, worker
from llama_magic.engine.client import EngineClient
from llama_magic.engine.protocol import DetokenizeRequest, TokenizeRequest
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.results import Message
from llama_magic.models.options import ModelSpec

__all__ = ["measure"]

_HISTORY, _FOLLOW_UP = 1500, 20
#: Seconds between an answer and the follow-up: nobody reads and types faster.
_PAUSE_S = 0.5
_KEY = "benchmark"
_WORDS = "red blue green gold grey pink dark pale warm cold soft loud calm wild tall wide deep slow fast neat".split()
_GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class _Talk:
    """The client, the model, and the conversation so far."""

    client: EngineClient
    spec: ModelSpec
    history: tuple[Message, ...]
    processed: set[int] = field(default_factory=set)

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

    def ask(self, number: int, pause: float) -> float:
        """Put the conversation back to its first answer, wait, ask a question; return its time to first token."""
        question, _ = self.question(number)
        answer = generate(self.client, self.spec, self.history, _GREEDY, conversation=_KEY).completion.text
        time.sleep(pause)
        messages = (*self.history, Message("assistant", answer), Message("user", question))
        run = generate(self.client, self.spec, messages, _GREEDY, conversation=_KEY)
        self.processed.add(run.completion.timings.prompt_tokens - run.completion.timings.cached_tokens)
        return run.first_s

    def alone(self, number: int) -> float:
        """Return the time to first token of the same tokens without the conversation."""
        # The answer's last token is processed with the follow-up; some token stands for it.
        return generate(self.client, self.spec, f" a{self.question(number)[1]}", _GREEDY).first_s

    def counts(self) -> str:
        """Return the numbers of tokens that were processed, in words, and forget them."""
        told = " and ".join(str(count) for count in sorted(self.processed))
        self.processed.clear()
        return told


def measure(setup: Setup) -> list[Row]:
    """Time to first token of 20 tokens after 1,500, and of the same 20 alone."""
    spec = setup.spec()
    with worker(spec) as client:
        talk = _Talk(client, spec, _history(client, spec))
        for pause in (0.0, _PAUSE_S):
            talk.ask(99, pause)
        talk.alone(99)
        talk.processed.clear()
        person = turns(lambda number: talk.ask(number, _PAUSE_S), talk.alone, setup.rounds(15, 3))
        counts = talk.counts()
        at_once = turns(lambda number: talk.ask(number, 0.0), talk.alone, setup.rounds(15, 3))
    what = "time to first token, 20-token follow-up after 1,500 tokens of conversation / the same 20 tokens alone"
    ahead = f"asked {_PAUSE_S} s after the answer; what any turn begins with is processed by then, {counts} are left"
    return [
        at_most(what, 1.5, [a / b for a, b in person], note=f"{ahead}; {_middle(person)}"),
        info(f"{what}, asked at once", [a / b for a, b in at_once], note=f"{talk.counts()} tokens; {_middle(at_once)}"),
    ]


def _middle(pairs: list[tuple[float, float]]) -> str:
    middle = sorted(pairs)[len(pairs) // 2]
    return f"a round in the middle: {middle[0]:.3f} s and {middle[1]:.3f} s"


def _history(client: EngineClient, spec: ModelSpec) -> tuple[Message, ...]:
    text = "".join(f"Day {day}: the sea was calm, we sailed on and saw {day} birds.\n" for day in range(1, 200))
    tokens = client.request(TokenizeRequest(spec, text))[: _HISTORY - 40]
    return (Message("user", client.request(DetokenizeRequest(spec, tokens))),)
