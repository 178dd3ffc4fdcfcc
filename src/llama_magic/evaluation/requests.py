"""Evaluations, as the kernel sees them: what to ask a worker for, and what it tells on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_magic.errors import InvalidRequestError
from llama_magic.models.options import ModelSpec
from llama_magic.progress import Progress
from llama_magic.quantization.texts import TextPart

__all__ = [
    "EVALUATION",
    "EVALUATION_NAME",
    "LEAST_CTX",
    "Z95",
    "Estimate",
    "EvaluateRequest",
    "EvaluationProgress",
    "distinct_names",
    "short_name",
]

#: The built-in evaluation text: prose, dialogue, code, numbers and several languages, written for llama_magic and
#: apart from the calibration text, so that an importance matrix made from that is not judged by what it saw.
EVALUATION = Path(__file__).parent / "data" / "evaluation.txt"
EVALUATION_NAME = "llama_magic evaluation text"

#: The fewest tokens of a chunk: of the second half, one token less is scored.
LEAST_CTX = 8

#: Standard errors to each side of a mean that a 95 % confidence interval has (normal distribution).
Z95 = 1.959964


def short_name(ref: str, most: int = 40) -> str:
    """Return what a model is called in tables and messages: the last part of a path, cut at its start."""
    name = ref.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return name if len(name) <= most else f"…{name[1 - most :]}"


def distinct_names(refs: Sequence[str]) -> list[str]:
    """Return what tells models apart that stand beside each other: their names without the part they share."""
    names = [short_name(ref, 200) for ref in refs]
    shared = os.path.commonprefix(names) if len(names) > 1 else ""  # noqa: RUF071 - letters are compared, no folders
    cut = max(shared.rfind(mark) for mark in "-._: ") + 1
    return [name[cut:] or name for name in names]


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Let models read a text side by side; the result is an `Evaluation`.

    Attributes
    ----------
    models
        The models to evaluate, with absolute paths. `ModelSpec.ref` is what they are called; `n_ctx` of their options
        does not count.
    base
        What they are compared with; None computes perplexities alone.
    texts
        What is read. Each is cut into chunks for itself, and has results for itself.
    n_ctx
        Tokens in a chunk.
    chunks
        Most chunks of each text; None: all.
    stride
        Above 0: llama-perplexity's other method, a window that moves by so many tokens and scores its last ones.
    tolerant
        A model that fails becomes a `Failure` in the result while the others go on; otherwise it is an error.
    force
        Load models that seem not to fit into memory.
    round_base
        Round the base's probabilities to 16 bits as llama-perplexity's file does: to compare with the tool.
    """

    models: tuple[ModelSpec, ...]
    base: ModelSpec | None = None
    texts: tuple[TextPart, ...] = (TextPart(EVALUATION_NAME, str(EVALUATION)),)
    n_ctx: int = 512
    chunks: int | None = None
    stride: int = 0
    tolerant: bool = False
    force: bool = False
    round_base: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise InvalidRequestError("name a model to evaluate: %llama perplexity model.gguf")
        if not self.texts:
            raise InvalidRequestError("there is no text to read; text=None takes the evaluation text of llama_magic")
        if self.n_ctx < LEAST_CTX:
            raise InvalidRequestError(
                f"a chunk has at least {LEAST_CTX} tokens (-c {LEAST_CTX}); llama-perplexity's own is 512"
            )
        if self.chunks is not None and self.chunks < 1:
            raise InvalidRequestError(f"chunks must be at least 1, or None for all; got {self.chunks}")
        if self.stride < 0 or self.stride >= self.n_ctx:
            raise InvalidRequestError(
                f"a stride is at least 1 and less than the {self.n_ctx:,} tokens of a chunk; got {self.stride:,}"
            )
        if self.stride and self.base is not None:
            raise InvalidRequestError(
                "a stride goes with perplexity alone: llama-perplexity compares with a base over whole chunks"
            )


@dataclass(frozen=True, slots=True)
class Estimate:
    """How a model stands after some chunks; errors are standard errors, as llama-perplexity prints them.

    Attributes
    ----------
    tokens
        Tokens scored so far.
    ppl, ppl_error
        Perplexity.
    ln_ratio, ln_ratio_error
        ln(PPL(Q)/PPL(base)); None without a base, like all that follow.
    kld, kld_error
        Mean KL divergence from the base, in nats.
    rms_dp, rms_dp_error
        Root mean square of the change of the probability of the text's tokens, from 0 to 1.
    same_top, same_top_error
        Part of the tokens where base and model find the same token likeliest, from 0 to 1.
    """

    tokens: int
    ppl: float
    ppl_error: float
    ln_ratio: float | None = None
    ln_ratio_error: float | None = None
    kld: float | None = None
    kld_error: float | None = None
    rms_dp: float | None = None
    rms_dp_error: float | None = None
    same_top: float | None = None
    same_top_error: float | None = None

    @property
    def ppl_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the perplexity."""
        return self.ppl - Z95 * self.ppl_error, self.ppl + Z95 * self.ppl_error

    @property
    def kld_interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean KL divergence."""
        if self.kld is None or self.kld_error is None:
            return None
        return self.kld - Z95 * self.kld_error, self.kld + Z95 * self.kld_error


@dataclass(frozen=True, slots=True)
class EvaluationProgress(Progress):
    """Progress with the figures so far.

    Attributes
    ----------
    chunk, chunks
        Chunks that all models have read, and all there are.
    estimates
        For each model that still takes part its `ModelSpec.ref`, its place in the request (-1: the base) and
        its running estimate over all texts.
    failures
        Place in the request and reason of each model that fell out.
    """

    chunk: int = 0
    chunks: int = 0
    estimates: tuple[tuple[str, int, Estimate], ...] = ()
    failures: tuple[tuple[int, str], ...] = ()
