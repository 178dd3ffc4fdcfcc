"""How texts are cut for an evaluation: the worker's side.

As in llama.cpp's ``tools/perplexity/perplexity.cpp``. Chunks follow each other, begin with the token that begins a
text in place of their first one where the vocabulary adds one, and the logits of their second half are scored. With
a stride, a window moves over the text, and only its last tokens are scored; there the tool puts no token in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_magic.errors import InvalidRequestError
from llama_magic.evaluation.requests import LEAST_CTX, EvaluateRequest
from llama_magic.native import NativeModel
from llama_magic.quantization.chunk_reader import text_tokens

__all__ = ["Windows", "cut"]


@dataclass(frozen=True, slots=True)
class Windows:
    """Texts as windows of tokens, one text behind the other.

    Attributes
    ----------
    targets
        The tokens, shape (windows, n_ctx).
    counts
        Windows of each text.
    first
        First place of a window whose logits are scored; the last place but one is the last.
    bos
        Token that takes the place of each window's first one, or None.
    """

    targets: npt.NDArray[np.int32]
    counts: tuple[int, ...]
    first: int
    bos: int | None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def n_ctx(self) -> int:
        """Tokens in a window."""
        return int(self.targets.shape[1])

    @property
    def scored(self) -> int:
        """Tokens of a window that are scored."""
        return self.n_ctx - 1 - self.first

    def inputs(self, start: int, end: int) -> npt.NDArray[np.int32]:
        """Return what the model reads of some windows."""
        tokens: npt.NDArray[np.int32] = self.targets[start:end].copy()
        if self.bos is not None:
            tokens[:, 0] = self.bos
        return tokens

    def read_of(self, done: int) -> list[int]:
        """Return how many windows of each text are among the first `done`."""
        ends = np.cumsum(self.counts)
        return [int(np.clip(done - (end - count), 0, count)) for end, count in zip(ends, self.counts, strict=True)]


def cut(model: NativeModel, texts: Sequence[tuple[str, str]], request: EvaluateRequest) -> Windows:
    """Cut texts, given as (name, text), as a model's vocabulary has them.

    Raises
    ------
    InvalidRequestError
        A text is too short; the message says how many tokens are needed.
    """
    found = [_of_one(model, name, text, request, several=len(texts) > 1) for name, text in texts]
    first = request.n_ctx - request.stride - 1 if request.stride else request.n_ctx // 2
    bos = model.bos if model.add_bos and not request.stride else None
    targets = found[0] if len(found) == 1 else np.concatenate(found)
    return Windows(targets, tuple(len(part) for part in found), first, bos)


def _of_one(
    model: NativeModel, name: str, text: str, request: EvaluateRequest, *, several: bool
) -> npt.NDArray[np.int32]:
    n_ctx = request.n_ctx
    try:
        tokens = text_tokens(model, text, n_ctx, least_ctx=LEAST_CTX)
    except InvalidRequestError as error:
        if several:
            raise InvalidRequestError(f"{name}: {error}") from None
        raise
    if request.stride:
        windows = np.lib.stride_tricks.sliding_window_view(tokens, n_ctx)[:: request.stride]
        most = -(-(len(tokens) - n_ctx) // request.stride)
    else:
        most = len(tokens) // n_ctx
        windows = tokens[: most * n_ctx].reshape(most, n_ctx)
    return windows[: min(most, request.chunks or most)]
