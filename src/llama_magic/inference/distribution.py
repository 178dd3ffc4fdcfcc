"""How likely each token is to come next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llama_magic.inference.results import Candidate

__all__ = ["NextToken"]


@dataclass(frozen=True, slots=True)
class NextToken:
    """The distribution of the next token as the model gives it, before any sampler.

    Attributes
    ----------
    candidates
        The likeliest tokens with their natural-log probabilities, the likeliest first.
    logits
        Logits of the whole vocabulary, the highest first: 32-bit floats of the machine, as bytes. The first ones are
        those of `candidates`.
    n_vocab, n_prompt
        Tokens of the vocabulary and of the text before.
    """

    candidates: tuple[Candidate, ...]
    logits: bytes
    n_vocab: int
    n_prompt: int

    def __repr__(self) -> str:
        first = ", ".join(f"{c.text!r} {c.logprob:.2f}" for c in self.candidates[:5])
        return f"NextToken({first}, …; {self.n_vocab:,} tokens)"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict; the logits as a list."""
        import array

        return {**asdict(self), "logits": list(array.array("f", self.logits))}
