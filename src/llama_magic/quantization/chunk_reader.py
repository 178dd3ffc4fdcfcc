"""A model reads a text in chunks, while its activations are summed and the likelihood of the text is computed.

As in llama.cpp's ``tools/imatrix/imatrix.cpp``: each chunk is read from an empty cache, with the token that
begins a text in place of its first one where the vocabulary adds one; as many chunks are read side by side as a
batch holds; and the likelihood counts tokens of the second half of each chunk, which have enough before them.
Unlike there, the output matrix is not multiplied for the first half, whose logits nobody reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llama_magic.backends.host import default_threads
from llama_magic.errors import InvalidRequestError
from llama_magic.models.loading import context_settings
from llama_magic.native import Aborted, NativeContext, NativeModel
from llama_magic.native.imatrix import ActivationSums
from llama_magic.quantization.imatrix import LEAST_CTX, ImatrixRequest
from llama_magic.quantization.imatrix_file import Entry
from llama_magic.quantization.imatrix_state import Likelihood

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ChunkReader", "pieces", "text_tokens"]

#: Rows of logits that are turned into likelihoods at once: few enough to stay in the processor's cache.
_ROWS = 16
#: LLAMA_MAX_SEQ of llama-cparams.h.
_MAX_SEQ = 256


class ChunkReader:
    """Reads chunks; a context manager.

    Parameters
    ----------
    model, text
        Who reads what.
    request
        The settings.
    cancelled
        True once the user stopped it.

    Attributes
    ----------
    chunks
        How many there are to read.
    likelihood
        Of what was read.

    Raises
    ------
    InvalidRequestError
        The text is too short.
    """

    def __init__(self, model: NativeModel, text: str, request: ImatrixRequest, cancelled: Callable[[], bool]) -> None:
        options = request.options
        self.n_ctx = options.n_ctx or 512
        self.tokens = text_tokens(
            model, text, self.n_ctx, parse_special=request.parse_special, from_chunk=request.from_chunk
        )
        self.chunks = min(len(self.tokens) // self.n_ctx, request.chunks or 2**31)
        self.n_ubatch = min(options.n_ubatch, options.n_batch)
        self.side_by_side = max(1, min(options.n_batch // self.n_ctx, self.chunks, self.n_ubatch, _MAX_SEQ))
        self.likelihood = Likelihood()
        self._cancelled = cancelled
        self._perplexity = request.perplexity
        # the inputs of the output matrix are wanted, so its product must be computed
        self._may_skip = not request.process_output
        self._bos = model.bos if model.add_bos else None
        self.sums = ActivationSums(cancelled, process_output=request.process_output)
        threads = options.n_threads_batch or options.n_threads or default_threads()
        settings = replace(
            context_settings(options, self.n_ctx * self.side_by_side, threads, n_seq_max=self.side_by_side),
            n_batch=self.n_ubatch,
            n_ubatch=self.n_ubatch,
            n_threads_batch=threads,
            separate=True,
            eval_callback=self.sums.callback,
        )
        self._context = NativeContext(model, settings)
        self.sums.stop = self._context.abort

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._context.close()

    def start(self, entries: Mapping[str, Entry], likelihood: Likelihood) -> None:
        """Go on from what was collected before."""
        self.sums.start(
            {name: entry.sums for name, entry in entries.items()},
            {name: entry.counts for name, entry in entries.items()},
        )
        self.likelihood = likelihood

    def entries(self) -> dict[str, Entry]:
        """Return what is collected so far."""
        return {name: Entry(sums, self.sums.counts[name]) for name, sums in self.sums.sums.items()}

    def read(self, done: int) -> int:
        """Read the next chunks, as many as fit side by side.

        Returns how many are read now; as many as before where it was cancelled, and then nothing of them counts.
        """
        count = min(self.side_by_side, self.chunks - done)
        n_ctx, half = self.n_ctx, self.n_ctx // 2
        targets = self.tokens[done * n_ctx : (done + count) * n_ctx].reshape(count, n_ctx)
        inputs = targets.copy()
        if self._bos is not None:
            inputs[:, 0] = self._bos
        found = Likelihood(self.likelihood.nll, self.likelihood.nll2, self.likelihood.count)
        self._context.clear()
        for start, end in pieces(n_ctx, max(1, self.n_ubatch // count), count):
            wanted = self._perplexity and end > half
            self.sums.skip_output = self._may_skip and not wanted
            if not self._decode(inputs[:, start:end], start):
                self.sums.discard()
                return done
            if wanted:
                self._score(targets, start, end, found)
        self.sums.commit()
        self.likelihood = found
        return done + count

    def _decode(self, tokens: npt.NDArray[np.int32], start: int) -> bool:
        """Let the model read a piece of every chunk; False where it was cancelled."""
        count, length = tokens.shape
        positions: Any = np.tile(np.arange(start, start + length, dtype=np.int32), count)
        sequences: Any = np.repeat(np.arange(count, dtype=np.int32), length)
        flat: Any = tokens.reshape(-1)
        try:
            self._context.step(flat, positions, sequences)
        except Aborted:
            pass
        finally:
            error, self.sums.error = self.sums.error, None
        if error is not None:
            raise error
        return not self._cancelled()

    def _score(self, targets: npt.NDArray[np.int32], start: int, end: int, found: Likelihood) -> None:
        """Add the likelihood of the tokens that follow those of a piece, from the second half of the chunks."""
        count, n_ctx = targets.shape
        length = end - start
        first = max(n_ctx // 2 - start, 0)
        for chunk in range(count):
            following = targets[chunk, start + 1 : end + 1]
            logits = self._context.logits_of(chunk * length, length)
            for row in range(first, len(following), _ROWS):
                wanted = following[row : row + _ROWS]
                values = _negative_log_likelihood(logits[row : row + len(wanted)], wanted)
                found.nll += float(values.sum())
                found.nll2 += float(np.square(values).sum())
                found.count += len(values)


def _negative_log_likelihood(logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    highest = logits.max(axis=1, keepdims=True)
    weights = logits - highest
    chosen = weights[np.arange(len(tokens)), tokens].astype(np.float64)
    np.exp(weights, out=weights)
    values: npt.NDArray[np.float64] = np.log(weights.sum(axis=1, dtype=np.float64)) - chosen
    return values


def pieces(n_ctx: int, most: int, count: int) -> list[tuple[int, int]]:
    """Cut a chunk's positions into pieces of at most `most`, none of them across its middle.

    Pieces are even: where `count` chunks have few tokens, a small rest would fall below the rows that are collected.
    """
    half = n_ctx // 2
    cut: list[tuple[int, int]] = []
    halves = ((0, half), (half, n_ctx)) if half * count >= _ROWS else ((0, n_ctx),)
    for start, end in halves:
        parts = -(-(end - start) // most)
        edges = [start + (end - start) * number // parts for number in range(parts + 1)]
        cut += itertools.pairwise(edges)
    return cut


def text_tokens(
    model: NativeModel,
    text: str,
    n_ctx: int,
    *,
    parse_special: bool = False,
    from_chunk: int = 0,
    least_ctx: int = LEAST_CTX,
) -> npt.NDArray[np.int32]:
    """Return the tokens of a text that is to be read in chunks, which must be enough for two.

    Parameters
    ----------
    n_ctx
        Tokens in a chunk.
    parse_special
        Read the texts of control tokens as these tokens.
    from_chunk
        Chunks to leave out at the start.
    least_ctx
        The fewest tokens that a chunk may have, for the message.

    Raises
    ------
    InvalidRequestError
        The text is too short.
    """
    tokens = model.tokenize(text, add_special=True, parse_special=parse_special)
    found = len(tokens)
    if from_chunk:
        if (from_chunk + 2) * n_ctx >= found:
            raise InvalidRequestError(
                f"after leaving out {from_chunk:,} chunks there is too little text left: it has {found:,} "
                f"tokens, {(from_chunk + 2) * n_ctx + 1:,} are needed"
            )
        tokens = tokens[from_chunk * n_ctx :]
    if found < 2 * n_ctx:
        shorter = f", or shorter chunks (-c {found // 2})" if found // 2 >= least_ctx else ""
        raise InvalidRequestError(
            f"the text has only {found:,} tokens; chunks of {n_ctx:,} need {2 * n_ctx:,} or more. "
            f"What helps: a longer text{shorter}."
        )
    return np.array(tokens, np.int32)
