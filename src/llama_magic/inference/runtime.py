"""A loaded model with its contexts, made when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from llama_magic.backends.host import available_memory
from llama_magic.errors import ModelNotFoundError, OutOfMemoryError
from llama_magic.inference.cache import ConversationCache, SoloCache
from llama_magic.inference.prompt import PromptBuilder
from llama_magic.native import ContextSettings, LogCapture, NativeContext, NativeModel, Sampler
from llama_magic.native.adapter import NativeAdapter

__all__ = ["ModelRuntime"]

#: Conversations that stay warm in one context.
MAX_CONVERSATIONS = 16


class ModelRuntime:
    """One model, and up to three contexts over it.

    Requests that stand alone have a context to themselves (see `SoloCache` for why), all
    conversations share a second one, embeddings use a third.

    Parameters
    ----------
    model
        The weights; owned from here on.
    settings
        Sizes of the contexts; `n_seq_max` is set here.
    log
        llama.cpp's log.
    context_bytes
        What one context takes; compared with the free memory before the second and third are made.
    chat_flash_attn
        `flash_attn` of the context that conversations share; None: as in `settings`.
    """

    def __init__(
        self,
        model: NativeModel,
        settings: ContextSettings,
        log: LogCapture,
        context_bytes: int = 0,
        chat_flash_attn: int | None = None,
    ) -> None:
        self.model = model
        self.log = log
        self.prompts = PromptBuilder(model)
        self._settings = settings
        self._context_bytes = context_bytes
        self._chat_flash_attn = chat_flash_attn
        self._solo: SoloCache | None = None
        self._chat: ConversationCache | None = None
        self._embedder: NativeContext | None = None
        self._current: NativeContext | None = None
        self._aborting = False
        self._adapters: dict[tuple[str, int], NativeAdapter] = {}
        self._adapters_key: tuple[tuple[str, int, float], ...] = ()
        self._in_use: list[tuple[NativeAdapter, float]] = []
        self._spent: list[Sampler] = []

    @property
    def n_ctx(self) -> int:
        """Tokens that each context holds."""
        return self._settings.n_ctx

    def solo(self, samples: int = 1) -> SoloCache:
        """Return the cache for requests that stand alone, with room for so many samples."""
        have = self._solo
        if have is None or have.context.settings.n_seq_max < samples:
            if have is not None:
                have.context.close()
                self._solo = None
            self._solo = have = SoloCache(self._context(n_seq_max=max(4, samples)))
        self._use(have.context)
        return have

    def chat(self) -> ConversationCache:
        """Return the cache that conversations share."""
        if self._chat is None:
            # Models with a recurrent state reserve one for every sequence.
            n_seq_max = 4 if self.model.is_recurrent else MAX_CONVERSATIONS
            context = self._context(n_seq_max=n_seq_max, flash_attn=self._chat_flash_attn)
            self._chat = ConversationCache(context, self.model)
        self._use(self._chat.context)
        return self._chat

    def embedder(self) -> NativeContext:
        """Return the context for embeddings."""
        if self._embedder is None:
            self._embedder = self._context(n_seq_max=1, embeddings=True)
        self._use(self._embedder)
        return self._embedder

    def forget(self, conversation: str | None) -> None:
        """Drop one conversation from the cache, or all."""
        if self._chat is None:
            return
        for key in [conversation] if conversation is not None else list(self._chat.slots):
            self._chat.forget(key)

    def _context(self, *, n_seq_max: int, embeddings: bool = False, flash_attn: int | None = None) -> NativeContext:
        values = self._settings
        size = values.n_ctx
        self._make_room()
        made = NativeContext(
            self.model,
            replace(
                values,
                n_seq_max=n_seq_max,
                n_batch=size if embeddings else min(values.n_batch, size),
                n_ubatch=size if embeddings else min(values.n_ubatch, size),
                flash_attn=values.flash_attn if flash_attn is None else flash_attn,
                embeddings=embeddings,
            ),
        )
        if self._in_use:
            made.use_adapters(self._in_use)
        return made

    def use_adapters(self, chosen: tuple[tuple[str, float], ...]) -> bool:
        """Apply these LoRA adapters (path, scale) and no others; True where that is a change.

        The base stays as it is. What the caches hold was computed with the adapters before, so it goes.

        Raises
        ------
        ModelNotFoundError, InvalidModelError
            An adapter is not there, or is none for this model; those in use stay.
        """
        wanted = tuple((path, _stamp(path), scale) for path, scale in chosen if scale)
        if wanted == self._adapters_key:
            return False
        in_use = [(self._adapter(path, stamp), scale) for path, stamp, scale in wanted]
        contexts = [cache.context for cache in (self._solo, self._chat) if cache is not None]
        for context in [*contexts, *([self._embedder] if self._embedder else [])]:
            context.use_adapters(in_use)
            context.clear()
        self._adapters_key, self._in_use = wanted, in_use
        if self._solo is not None:
            self._solo = SoloCache(self._solo.context)
        if self._chat is not None:
            self._chat = ConversationCache(self._chat.context, self.model)
        # Those that are out of use stay in memory, so that going back to them is quick. A file that was changed goes.
        for key in [key for key in self._adapters if key[1] != _stamp(key[0], missing=-1)]:
            if all(adapter is not self._adapters[key] for adapter, _ in in_use):
                self._adapters.pop(key).close()
        return True

    def _adapter(self, path: str, stamp: int) -> NativeAdapter:
        found = self._adapters.get((path, stamp))
        if found is None:
            found = self._adapters[path, stamp] = NativeAdapter(self.model, path, self.log)
        return found

    def _make_room(self) -> None:
        """Give up contexts that only save time when memory is too short for another one."""
        if self._context_bytes <= available_memory():
            return
        if self._solo is not None:
            self._solo.context.close()
            self._solo = None
        if self._embedder is not None:
            self._embedder.close()
            self._embedder = None
        free = available_memory()
        if self._context_bytes > free and self._chat is not None:
            raise OutOfMemoryError(
                f"another context of {self.n_ctx:,} tokens takes {self._context_bytes / 1e6:,.0f} MB, but "
                f"{free / 1e6:,.0f} MB are free. What helps: a smaller context (-c {self.n_ctx // 2}); "
                "a quantized cache (-ctk q8_0 -ctv q8_0); unloading other models (%llama unload)."
            )

    def _use(self, context: NativeContext) -> None:
        self._current = context
        if self._aborting:
            context.abort()
        else:
            context.resume()

    def abort(self) -> None:
        """Stop what is being computed. Safe from any thread."""
        self._aborting = True
        context = self._current
        if context is not None:
            context.abort()

    def resume(self) -> None:
        """Allow computing again."""
        self._aborting = False
        if self._current is not None:
            self._current.resume()

    def close_later(self, samplers: Iterable[Sampler]) -> None:
        """Keep samplers that are done until `close_spent`: who waits for an answer does not wait for their end, too."""
        self._spent += samplers

    def close_spent(self) -> None:
        """Free the samplers of the generation before."""
        while self._spent:
            self._spent.pop().close()

    def close(self) -> None:
        """Free contexts and weights."""
        self.close_spent()
        contexts = [cache.context for cache in (self._solo, self._chat) if cache is not None]
        closers: list[Callable[[], None]] = [context.close for context in contexts]
        if self._embedder is not None:
            closers.append(self._embedder.close)
        self._solo = self._chat = self._embedder = self._current = None
        for close in closers:
            close()
        self._in_use = []
        while self._adapters:
            self._adapters.popitem()[1].close()
        self.model.close()


def _stamp(path: str, missing: int | None = None) -> int:
    """Return when a file was last changed: another adapter under the same name is another adapter."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError as error:
        if missing is not None:
            return missing
        raise ModelNotFoundError(f"the LoRA adapter {path} can not be read: {error.strerror}") from None
