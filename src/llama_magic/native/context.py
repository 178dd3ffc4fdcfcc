"""A context: the KV cache of one model, and the call that computes."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from llama_magic.errors import NativeError, OutOfMemoryError
from llama_magic.native.adapter import NativeAdapter
from llama_magic.native.library import lib
from llama_magic.native.model import NativeModel

__all__ = ["Aborted", "ContextSettings", "NativeContext", "NoSlot", "check"]


_MOST_ROWS = 256

#: Settings that go into `llama_context_params` under the same name.
_AS_THEY_ARE = (
    "offload_kqv", "op_offload", "swa_full", "rope_freq_base", "rope_freq_scale", "yarn_orig_ctx", "yarn_ext_factor",
    "yarn_attn_factor", "yarn_beta_slow", "yarn_beta_fast",
)  # fmt: skip


class Aborted(Exception):  # noqa: N818 - not an error: the user stopped it
    """`NativeContext.abort` was called while the context computed."""


class NoSlot(Exception):  # noqa: N818 - the caller makes room and tries again
    """The cache has no room for this batch."""


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """Sizes and choices of a context.

    `flash_attn` is a `llama_flash_attn_type` (-1 auto, 0 off, 1 on); the cache types are ggml's numbers;
    `rope_scaling` is a `llama_rope_scaling_type`. RoPE and YaRN numbers below zero, and 0 for the RoPE frequencies and
    `yarn_orig_ctx`, mean the model's own.
    `separate` gives each sequence a part of the cache for itself, and every token of a batch may have logits: for
    reading a text in chunks. `n_outputs_max` is then the most of them that have some, 0 for all: memory is set aside
    for as many rows. `eval_callback` is llama.cpp's `cb_eval`.
    """

    n_ctx: int
    n_seq_max: int
    n_threads: int
    n_threads_batch: int
    n_batch: int = 2048
    n_ubatch: int = 512
    flash_attn: int = -1
    cache_type_k: int = 1
    cache_type_v: int = 1
    embeddings: bool = False
    offload_kqv: bool = True
    op_offload: bool = True
    swa_full: bool = True
    rope_scaling: int = -1
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_orig_ctx: int = 0
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = -1.0
    yarn_beta_slow: float = -1.0
    yarn_beta_fast: float = -1.0
    separate: bool = False
    n_outputs_max: int = 0
    eval_callback: Any = None


class NativeContext:
    """A context whose sequences share one cache of `n_ctx` cells.

    Parameters
    ----------
    model
        The model; it is kept alive.
    settings
        Sizes and choices.

    Raises
    ------
    OutOfMemoryError
        The cache or the compute buffers could not be allocated.
    """

    def __init__(self, model: NativeModel, settings: ContextSettings) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = settings.n_ctx
        params.n_batch = settings.n_batch
        params.n_ubatch = min(settings.n_ubatch, settings.n_batch)
        params.n_seq_max = settings.n_seq_max
        params.n_threads = settings.n_threads
        params.n_threads_batch = settings.n_threads_batch
        params.flash_attn_type = settings.flash_attn
        params.type_k = settings.cache_type_k
        params.type_v = settings.cache_type_v
        params.rope_scaling_type = settings.rope_scaling
        for name in _AS_THEY_ARE:
            setattr(params, name, getattr(settings, name))
        params.kv_unified = not settings.separate
        params.no_perf = True
        params.embeddings = settings.embeddings
        if settings.eval_callback is not None:
            params.cb_eval = settings.eval_callback
        if not settings.embeddings and not settings.separate:
            # One row of logits a sequence is all that sampling reads; the default reserves one a token.
            params.n_outputs_max = settings.n_seq_max
        elif settings.n_outputs_max:
            params.n_outputs_max = settings.n_outputs_max
        # `strlen` is a native function of the type that llama.cpp wants: it gives 0 (go on) for an empty
        # string and 1 (stop) for one character. A Python callback would cost a call for every graph node.
        self._flag = ctypes.create_string_buffer(2)
        params.abort_callback = _ABORT
        params.abort_callback_data = ctypes.addressof(self._flag)
        handle = lib.llama_init_from_model(model.handle, params)
        if not handle:
            raise OutOfMemoryError(
                f"there was not enough memory for a context of {settings.n_ctx:,} tokens. "
                f"What helps: a smaller one (-c {max(256, settings.n_ctx // 2)}), "
                "or a quantized cache (-ctk q8_0 -ctv q8_0)"
            )
        self.handle: Any = handle
        self.model = model
        self.settings = settings
        self.memory: Any = lib.llama_get_memory(handle)
        self.n_ctx: int = lib.llama_n_ctx(handle)
        self.n_batch: int = lib.llama_n_batch(handle)
        self.n_ubatch: int = lib.llama_n_ubatch(handle)
        self._batch = _Batch(self.n_batch)
        self._one = _OneToken()
        self._llama_decode = lib.llama_decode
        self._rows: dict[int, npt.NDArray[np.float32]] = {}
        self._finalizer = weakref.finalize(self, _free, handle, self._flag, model)

    def close(self) -> None:
        """Free cache and buffers."""
        self._finalizer()

    # -- computing -------------------------------------------------------------------------

    def prefill(self, tokens: Sequence[int], start: int, seq: int, *, logits: bool) -> None:
        """Process `tokens` of one sequence from position `start`; at most `n_batch` of them.

        Parameters
        ----------
        logits
            Keep the logits of the last token, for sampling at index -1.

        Raises
        ------
        Aborted, NoSlot, NativeError
        """
        self._decode(self._batch.run(tokens, start, seq, last=logits))

    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        seqs: Sequence[int],
        *,
        logits: bool | Sequence[bool] = True,
    ) -> None:
        """Process tokens of given sequences; the logits of the i-th are at index i, where there are to be some.

        `logits` says so for all of them, or for each.
        """
        self._decode(self._batch.rows(tokens, positions, seqs, logits=logits))

    def step_one(self, token: int, seq: int) -> None:
        """Add one token to a sequence, behind its last."""
        batch, cell = self._one.next_of(seq)
        cell.value = token
        code = self._llama_decode(self.handle, batch)
        if code:
            check(code)

    def single(self, seq: int) -> tuple[Callable[[Any, Any], int], Any, Any, ctypes.c_int32]:
        """Return what a loop needs to add one token to a sequence at a time without a call of ours between.

        That is llama.cpp's function and its two arguments, then the cell to put the token into before each call: its
        position is the one after the last. `check` raises what a code other than 0 means.
        """
        return self._llama_decode, self.handle, *self._one.next_of(seq)

    def _decode(self, batch: Any) -> None:
        code = self._llama_decode(self.handle, batch)
        if code:
            check(code)

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """Return the pooled embedding of one text, of unit length; mean-pooled where the model does not pool."""
        self.clear()
        count = len(tokens)
        batch = self._batch.run(tokens, 0, 0, last=True)
        self._batch.logits[:count] = 1
        function = lib.llama_decode if self.model.has_decoder else lib.llama_encode
        if function(self.handle, batch) != 0:
            raise NativeError("llama.cpp could not compute the embedding")
        n_embd = self.model.n_embd
        pooled = lib.llama_get_embeddings_seq(self.handle, 0)
        if pooled:
            vector = np.ctypeslib.as_array(pooled, (n_embd,)).astype(np.float64)
        else:
            rows = [
                np.ctypeslib.as_array(lib.llama_get_embeddings_ith(self.handle, row), (n_embd,)) for row in range(count)
            ]
            vector = np.mean(np.asarray(rows, dtype=np.float64), axis=0)
        norm = float(np.linalg.norm(vector))
        return [float(value) for value in (vector / norm if norm else vector)]

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        """Return a view of the logits at an output index, shape (n_vocab,); valid until the next decode."""
        pointer = lib.llama_get_logits_ith(self.handle, index)
        address = ctypes.addressof(pointer.contents)
        row = self._rows.get(address)
        if row is None:
            # llama.cpp keeps its rows of logits where they are until it needs more of them.
            row = np.ctypeslib.as_array(pointer, (self.model.n_vocab,))
            if len(self._rows) > _MOST_ROWS:
                self._rows.clear()
            self._rows[address] = row
        return row

    def logits_of(self, index: int, count: int) -> npt.NDArray[np.float32]:
        """Return a view of the logits of `count` tokens in a row that have some, shape (count, n_vocab)."""
        pointer = lib.llama_get_logits_ith(self.handle, index)
        return np.ctypeslib.as_array(pointer, (count, self.model.n_vocab))

    def synchronize(self) -> None:
        """Wait until all is computed: accelerators go on after a decode has returned."""
        lib.llama_synchronize(self.handle)

    # -- stopping --------------------------------------------------------------------------

    def abort(self) -> None:
        """Make the running decode stop within one graph node. Safe from any thread."""
        self._flag[0] = b"x"

    def resume(self) -> None:
        """Allow computing again after `abort`."""
        self._flag[0] = b"\0"

    # -- the cache -------------------------------------------------------------------------

    def clear(self) -> None:
        """Empty the cache."""
        lib.llama_memory_clear(self.memory, False)

    def cut(self, seq: int, length: int) -> bool:
        """Drop all tokens of a sequence from position `length` on; False where the model can not do that."""
        if length > 0 and not self.settings.swa_full and self.model.n_swa:
            # What lies behind the window is gone; the tokens from here on would have to see it.
            first = int(lib.llama_memory_seq_pos_min(self.memory, seq))
            if first > max(0, length - self.model.n_swa):
                return False
        return bool(lib.llama_memory_seq_rm(self.memory, seq, length, -1))

    def drop(self, seq: int) -> None:
        """Drop a whole sequence."""
        lib.llama_memory_seq_rm(self.memory, seq, -1, -1)

    def use_adapters(self, adapters: Sequence[tuple[NativeAdapter, float]]) -> None:
        """Apply LoRA adapters, each with a scale, from the next decode on; what the cache holds was made without them.

        Raises
        ------
        NativeError
            llama.cpp refused them.
        """
        count = len(adapters)
        handles = (lib.llama_adapter_lora_p_ctypes * max(count, 1))(*[adapter.handle for adapter, _ in adapters])
        scales = (ctypes.c_float * max(count, 1))(*[scale for _, scale in adapters])
        if lib.llama_set_adapters_lora(self.handle, handles, count, scales):
            raise NativeError("llama.cpp could not apply the LoRA adapters")

    def share(self, source: int, target: int, length: int) -> None:
        """Let `target` begin with the first `length` tokens of `source`, without copying them."""
        lib.llama_memory_seq_cp(self.memory, source, target, 0, length)

    def last_position(self, seq: int) -> int:
        """Return the position of the last token in the cache, -1 for an empty sequence."""
        return int(lib.llama_memory_seq_pos_max(self.memory, seq))

    # -- its state -------------------------------------------------------------------------

    def state_size(self, seq: int) -> int:
        """Return the bytes that `state` will give."""
        return int(lib.llama_state_seq_get_size(self.handle, seq))

    def state(self, seq: int) -> memoryview:
        """Return what the cache holds of a sequence, as bytes that only this very build can read.

        Raises
        ------
        NativeError
            llama.cpp could not copy it.
        """
        data = np.empty(self.state_size(seq), dtype=np.uint8)
        written = lib.llama_state_seq_get_data(self.handle, _pointer(data, ctypes.c_uint8), data.size, seq)
        if written != data.size:
            raise NativeError(f"llama.cpp gave {written:,} of {data.size:,} bytes of the cache's state")
        return data.data

    def put_state(self, seq: int, state: memoryview) -> bool:
        """Fill a sequence with what `state` gave; False where it does not fit, and the sequence is empty then."""
        data = np.frombuffer(state, dtype=np.uint8)
        read = lib.llama_state_seq_set_data(self.handle, _pointer(data, ctypes.c_uint8), data.size, seq)
        if read != data.size:
            self.drop(seq)
        return bool(read == data.size)


class _Batch:
    """A `llama_batch` over numpy arrays that are filled again for every call."""

    def __init__(self, size: int) -> None:
        self.tokens = np.zeros(size, dtype=np.int32)
        self.positions = np.zeros(size, dtype=np.int32)
        self.counts = np.ones(size, dtype=np.int32)
        self.seqs = np.zeros(size, dtype=np.int32)
        self.logits = np.zeros(size, dtype=np.int8)
        self._pointers = (self.seqs.ctypes.data + 4 * np.arange(size)).astype(np.uintp)
        self._struct = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self.tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self.positions, ctypes.c_int32),
            n_seq_id=_pointer(self.counts, ctypes.c_int32),
            seq_id=_pointer(self._pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self.logits, ctypes.c_int8),
        )

    def run(self, tokens: Sequence[int], start: int, seq: int, *, last: bool) -> Any:
        count = len(tokens)
        self.tokens[:count] = tokens
        self.positions[:count] = np.arange(start, start + count)
        self.seqs[:count] = seq
        self.logits[:count] = 0
        self.logits[count - 1] = last
        self._struct.n_tokens = count
        return self._struct

    def rows(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        seqs: Sequence[int],
        *,
        logits: bool | Sequence[bool] = True,
    ) -> Any:
        count = len(tokens)
        self.tokens[:count] = tokens
        self.positions[:count] = positions
        self.seqs[:count] = seqs
        self.logits[:count] = logits
        self._struct.n_tokens = count
        return self._struct


class _OneToken:
    """A batch of one token over plain ctypes values: filling it costs a microsecond."""

    def __init__(self) -> None:
        self._token, self._seq = ctypes.c_int32(), ctypes.c_int32()
        self._count, self._logits = ctypes.c_int32(1), ctypes.c_int8(1)
        self._seqs = ctypes.pointer(self._seq)
        self._struct = lib.llama_batch(
            n_tokens=1,
            token=ctypes.pointer(self._token),
            embd=None,
            pos=None,  # llama.cpp counts on by itself
            n_seq_id=ctypes.pointer(self._count),
            seq_id=ctypes.pointer(self._seqs),
            logits=ctypes.pointer(self._logits),
        )

    def next_of(self, seq: int) -> tuple[Any, ctypes.c_int32]:
        self._seq.value = seq
        return self._struct, self._token


def check(code: int) -> NoReturn:
    """Raise what a code of `llama_decode` means (llama.h)."""
    if code == 1:
        raise NoSlot
    if code == 2:
        raise Aborted
    if code == -2:
        raise OutOfMemoryError("llama.cpp ran out of memory while computing; a smaller -ub or context helps")
    raise NativeError(f"llama.cpp could not process the batch (llama_decode returned {code})")


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def _strlen() -> Any:
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    return ctypes.cast(library.strlen, lib.ggml_abort_callback)


_ABORT = _strlen()


def _free(handle: Any, _flag: object, _model: NativeModel) -> None:
    lib.llama_free(handle)
