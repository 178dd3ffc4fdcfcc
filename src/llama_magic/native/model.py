"""A loaded model: weights, vocabulary, metadata."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llama_magic.errors import InvalidModelError, OutOfMemoryError
from llama_magic.native.library import lib
from llama_magic.native.loading import ModelSettings, model_params
from llama_magic.native.log import LogCapture

__all__ = ["LoadCancelled", "NativeModel"]

_MEMORY_WORDS = ("out of memory", "failed to allocate", "cannot allocate", "unable to allocate", "alloc")


class LoadCancelled(Exception):  # noqa: N818 - not an error: the user stopped it
    """The progress callback asked to stop."""


class NativeModel:
    """A model in memory.

    Parameters
    ----------
    path
        The GGUF file, or the first part of a split one.
    log
        The log in use, for error messages.
    progress
        Called with the fraction loaded; returning False stops the load.
    settings
        How to load it.
    **changes
        Fields of `settings` that are to be different.

    Raises
    ------
    InvalidModelError
        llama.cpp can not load the file, with its reason.
    OutOfMemoryError
        An allocation failed.
    LoadCancelled
        `progress` returned False.
    """

    def __init__(
        self,
        path: str,
        log: LogCapture,
        progress: Callable[[float], bool] | None = None,
        settings: ModelSettings | None = None,
        **changes: Any,
    ) -> None:
        self.settings = replace(settings or ModelSettings(), **changes)
        params, _alive = model_params(self.settings)
        state = {"cancelled": False}

        def report(fraction: float, _user_data: object) -> bool:
            if progress is not None and not progress(fraction):
                state["cancelled"] = True
            return not state["cancelled"]

        callback = lib.llama_progress_callback(report)
        params.progress_callback = callback
        log.clear()
        handle = lib.llama_model_load_from_file(path.encode(), params)
        if not handle:
            if state["cancelled"]:
                raise LoadCancelled
            raise _load_error(path, log)
        self.handle: Any = handle
        self.path = path
        self._finalizer = weakref.finalize(self, lib.llama_model_free, handle)
        self.vocab: Any = lib.llama_model_get_vocab(handle)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        self.eog: frozenset[int] = frozenset(
            token for token in range(self.n_vocab) if lib.llama_vocab_is_eog(self.vocab, token)
        )
        self._pieces: dict[int, bytes] = {}
        self._special_pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(256)

    def close(self) -> None:
        """Free the weights. Contexts of the model must be closed before."""
        self._finalizer()

    # -- facts -----------------------------------------------------------------------------

    @property
    def description(self) -> str:
        """llama.cpp's short description, such as "llama 135M Q4_1"."""
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.handle, buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    @property
    def ftype(self) -> str:
        """Name of the file's quantization, such as "Q4_1"."""
        name: bytes = lib.llama_ftype_name(lib.llama_model_ftype(self.handle)) or b"?"
        return name.decode().removesuffix(" - Medium").split(" ")[0]

    @property
    def n_params(self) -> int:
        """Parameters."""
        return int(lib.llama_model_n_params(self.handle))

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return int(lib.llama_model_size(self.handle))

    @property
    def n_ctx_train(self) -> int:
        """Context length the model was trained for, in tokens."""
        return int(lib.llama_model_n_ctx_train(self.handle))

    @property
    def n_layer(self) -> int:
        """Transformer layers."""
        return int(lib.llama_model_n_layer(self.handle))

    @property
    def n_embd(self) -> int:
        """Width of the embeddings."""
        return int(lib.llama_model_n_embd(self.handle))

    @property
    def is_recurrent(self) -> bool:
        """True for models whose state can not be cut back to an earlier token (Mamba, RWKV, hybrids)."""
        return bool(lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle))

    @property
    def n_swa(self) -> int:
        """Tokens that a sliding window of attention sees; 0 for a model that sees all."""
        return int(lib.llama_model_n_swa(self.handle))

    @property
    def has_decoder(self) -> bool:
        """False for encoder-only models, which embed but do not generate."""
        return bool(lib.llama_model_has_decoder(self.handle))

    @property
    def has_encoder(self) -> bool:
        """True for models that read a text with an encoder first, such as T5."""
        return bool(lib.llama_model_has_encoder(self.handle))

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, or None for a base model."""
        text: bytes | None = lib.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8", "replace") if text else None

    def metadata(self, key: str) -> str | None:
        """Return one metadata value as text, or None."""
        size = 4096
        buffer = ctypes.create_string_buffer(size)
        length = lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, size)
        return None if length < 0 else buffer.value.decode("utf-8", "replace")

    # -- vocabulary ------------------------------------------------------------------------

    @property
    def add_bos(self) -> bool:
        """True where the vocabulary wants a beginning-of-sequence token before a text."""
        return bool(lib.llama_vocab_get_add_bos(self.vocab))

    @property
    def bos(self) -> int:
        """The token that begins a sequence, -1 where the vocabulary has none."""
        return int(lib.llama_vocab_bos(self.vocab))

    def special(self, name: str) -> str:
        """Return the text of a special token ("bos", "eos", "eot", "pad", …), empty where there is none."""
        token = getattr(lib, f"llama_vocab_{name}")(self.vocab)
        if token < 0:
            return ""
        text: bytes = lib.llama_vocab_get_text(self.vocab, token) or b""
        return text.decode("utf-8", "replace")

    def control_texts(self) -> list[str]:
        """Return the texts of all control tokens, longest first: what must not come from a user's text."""
        found = []
        for token in range(self.n_vocab):
            if lib.llama_vocab_is_control(self.vocab, token):
                text: bytes = lib.llama_vocab_get_text(self.vocab, token) or b""
                if text:
                    found.append(text.decode("utf-8", "replace"))
        return sorted(found, key=len, reverse=True)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the token ids of `text`.

        Parameters
        ----------
        add_special
            Add the beginning-of-sequence token where the vocabulary wants one.
        parse_special
            Read ``<|im_start|>`` and the like as one token, not as characters.
        """
        data = text.encode("utf-8", "surrogatepass")
        size = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * size)()
            count = lib.llama_tokenize(self.vocab, data, len(data), tokens, size, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            size = -count

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token as they appear in a text; control tokens give none."""
        cached = self._pieces.get(token)
        if cached is None:
            cached = self._pieces[token] = self._piece(token, special=False)
        return cached

    def piece_with_special(self, token: int) -> bytes:
        """Return the bytes of a token, control tokens as their own text."""
        cached = self._special_pieces.get(token)
        if cached is None:
            cached = self._special_pieces[token] = self._piece(token, special=True)
        return cached

    def _piece(self, token: int, *, special: bool) -> bytes:
        length = lib.llama_token_to_piece(self.vocab, token, self._buffer, 256, 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self.vocab, token, buffer, -length, 0, special)
            return buffer.raw[:length]
        return self._buffer.raw[:length]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")


def _load_error(path: str, log: LogCapture) -> Exception:
    lines = log.errors()
    text = " ".join(lines)
    if any(word in text.lower() for word in _MEMORY_WORDS):
        return OutOfMemoryError(
            f"there was not enough memory to load {path}. What helps: a smaller quantization, a smaller context "
            f"(-c 2048), or unloading other models. llama.cpp says: {text}"
        )
    reasons = [line.split(": ", 1)[-1] for line in lines] or ["no reason given"]
    return InvalidModelError(f"llama.cpp can not load {path}: {'; '.join(dict.fromkeys(reasons))}")
