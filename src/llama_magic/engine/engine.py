"""The engine: keeps models loaded and answers requests. The worker hosts one; scripts may use it in process."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llama_magic._version import __version__
from llama_magic.backends.host import available_memory, default_threads
from llama_magic.engine.hashing import FileHash
from llama_magic.engine.jobs import runner_of
from llama_magic.engine.protocol import (
    Chunk,
    DetokenizeRequest,
    EmbedRequest,
    Event,
    ForgetRequest,
    GenerateRequest,
    LoadRequest,
    Log,
    Progress,
    Request,
    RestoreStateRequest,
    SaveStateRequest,
    StatusRequest,
    TokenizeRequest,
    UnloadRequest,
)
from llama_magic.engine.saving import restore_state, save_state
from llama_magic.errors import EngineProtocolError, GenerationInterrupted, InvalidRequestError, OutOfMemoryError
from llama_magic.inference.loop import Emit, Generation
from llama_magic.inference.pacing import Pacer
from llama_magic.inference.results import Completion, Receipt
from llama_magic.inference.runtime import ModelRuntime
from llama_magic.inference.saved import SavedHeader
from llama_magic.models.gguf import ModelMetadata, read_metadata
from llama_magic.models.memory import MemoryNeed, default_n_ctx, estimate
from llama_magic.models.options import CACHE_TYPES, FLASH_ATTENTION, LoadOptions, ModelInfo, ModelSpec
from llama_magic.native import ContextSettings, LoadCancelled, LogCapture, NativeModel, WorkerTools, library_info

__all__ = ["Engine"]

_BUFFER = re.compile(r"(\S+) model buffer size\s*=")


@dataclass(slots=True)
class _Loaded:
    runtime: ModelRuntime
    info: ModelInfo
    hash: FileHash


class Engine:
    """Answers requests, one at a time; `cancel` may be called from any thread meanwhile.

    Parameters
    ----------
    emit
        Called with every event of the request being answered, but not with its end.
    pacer
        Fetches the chunks of a generation on a thread of its own; None sends them from where they are made.
    """

    def __init__(self, emit: Callable[[Event], None] = lambda _event: None, pacer: Pacer | None = None) -> None:
        self.emit = emit
        self._pacer = pacer
        self._loaded: OrderedDict[tuple[str, LoadOptions], _Loaded] = OrderedDict()
        self._cancel = threading.Event()
        self._active: ModelRuntime | None = None
        self.log = LogCapture(lambda level, text: self.emit(Log(level, text)))
        self.log.install()
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            LoadRequest: self._handle_load,
            UnloadRequest: self._handle_unload,
            GenerateRequest: self._handle_generate,
            TokenizeRequest: self._handle_tokenize,
            DetokenizeRequest: self._handle_detokenize,
            EmbedRequest: self._handle_embed,
            ForgetRequest: self._handle_forget,
            SaveStateRequest: self._handle_save_state,
            RestoreStateRequest: self._handle_restore_state,
            StatusRequest: self._handle_status,
        }

    def answer(self, request: Request) -> Any:
        """Return the result of a request, emitting its events on the way.

        Raises
        ------
        LlamaMagicError
            Whatever the request led to; `GenerationInterrupted` when it was cancelled before it had a result.
        """
        handler = self._handlers.get(type(request))
        if handler is not None:
            return handler(request)
        job = runner_of(request)
        if job is None:
            raise EngineProtocolError(f"the worker knows no {type(request).__name__}")
        return job(request, WorkerTools(self.emit, self._cancel.is_set, self.log))

    def cancel(self) -> None:
        """Stop the request being answered as soon as possible."""
        self._cancel.set()
        active = self._active
        if active is not None:
            active.abort()

    def ready(self) -> None:
        """Forget an earlier cancel; to be called before each request."""
        self._cancel.clear()
        if self._active is not None:
            self._active.resume()

    def close(self) -> None:
        """Unload everything."""
        for loaded in self._loaded.values():
            loaded.runtime.close()
        self._loaded.clear()
        self._active = None

    # -- loading ---------------------------------------------------------------------------

    def _handle_load(self, request: LoadRequest) -> ModelInfo:
        loaded, _ = self._get(request.spec, force=request.force)
        return loaded.info

    def _handle_unload(self, request: UnloadRequest) -> tuple[str, ...]:
        keys = [key for key in self._loaded if request.path is None or key[0] == request.path]
        for key in keys:
            self._drop(key)
        return tuple(path for path, _ in keys)

    def _handle_status(self, _request: StatusRequest) -> tuple[ModelInfo, ...]:
        return tuple(loaded.info for loaded in self._loaded.values())

    def _drop(self, key: tuple[str, LoadOptions]) -> None:
        runtime = self._loaded.pop(key).runtime
        if self._active is runtime:
            self._active = None
        runtime.close()

    def _get(self, spec: ModelSpec, *, force: bool) -> tuple[_Loaded, float]:
        """Return the loaded model and the seconds that loading took, 0.0 if it was loaded."""
        loaded = self._loaded.get(spec.key)
        seconds = 0.0
        if loaded is None:
            started = time.perf_counter()
            loaded = self._load(spec, force=force)
            seconds = time.perf_counter() - started
            loaded.info = replace(loaded.info, load_s=seconds)
            self._loaded[spec.key] = loaded
        self._loaded.move_to_end(spec.key)
        self._active = loaded.runtime
        if self._cancel.is_set():
            loaded.runtime.abort()
        else:
            loaded.runtime.resume()
        return loaded, seconds

    def _load(self, spec: ModelSpec, *, force: bool) -> _Loaded:
        options = spec.options
        metadata = read_metadata(spec.path)
        need = estimate(metadata, options)
        if not force:
            self._make_room(spec, metadata, need)
        file_hash = FileHash(spec.path, metadata)
        self.emit(Progress("load", 0.0, spec.ref))
        try:
            model = NativeModel(
                spec.path,
                self.log,
                self._load_progress(spec.ref),
                n_gpu_layers=options.n_gpu_layers if isinstance(options.n_gpu_layers, int) else -1,
                devices=options.devices or None,
                use_mmap=options.use_mmap,
                use_mlock=options.use_mlock,
            )
        except LoadCancelled:
            raise GenerationInterrupted from None
        threads = options.n_threads or default_threads()
        settings = ContextSettings(
            n_ctx=default_n_ctx(metadata, options),
            n_seq_max=1,
            n_threads=threads,
            n_threads_batch=options.n_threads_batch or threads,
            n_batch=options.n_batch,
            n_ubatch=options.n_ubatch,
            flash_attn=FLASH_ATTENTION[options.flash_attn],
            cache_type_k=CACHE_TYPES[options.cache_type_k],
            cache_type_v=CACHE_TYPES[options.cache_type_v],
        )
        devices = _devices_used(self.log)
        chat_flash_attn = _chat_flash_attn(options, devices)
        larger = options if chat_flash_attn is None else options.replace(flash_attn="off")
        context = estimate(metadata, larger)
        runtime = ModelRuntime(model, settings, self.log, context.kv_cache + context.compute, chat_flash_attn)
        info = self._info(spec, metadata, runtime, settings, need, devices)
        return _Loaded(runtime, info, file_hash)

    def _load_progress(self, ref: str) -> Callable[[float], bool]:
        last = time.perf_counter()

        def report(fraction: float) -> bool:
            nonlocal last
            now = time.perf_counter()
            if now - last > 0.1:
                last = now
                self.emit(Progress("load", fraction, ref))
            return not self._cancel.is_set()

        return report

    def _make_room(self, spec: ModelSpec, metadata: ModelMetadata, need: MemoryNeed) -> None:
        """Unload what was used longest ago until the model fits; refuse it where it can not."""
        while need.total > available_memory() and self._loaded:
            self._drop(next(iter(self._loaded)))
        free = available_memory()
        if need.total > free:
            raise OutOfMemoryError(_refusal(spec, metadata, need, free))

    def _info(
        self,
        spec: ModelSpec,
        metadata: ModelMetadata,
        runtime: ModelRuntime,
        settings: ContextSettings,
        need: MemoryNeed,
        devices: tuple[str, ...],
    ) -> ModelInfo:
        model, library = runtime.model, library_info()
        return ModelInfo(
            ref=spec.ref,
            path=spec.path,
            name=spec.path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gguf"),
            architecture=metadata.architecture,
            description=model.description,
            ftype=model.ftype,
            n_params=model.n_params,
            size=model.size,
            n_ctx=settings.n_ctx,
            n_ctx_train=model.n_ctx_train,
            n_vocab=model.n_vocab,
            n_layer=model.n_layer,
            n_embd=model.n_embd,
            has_chat_template=runtime.prompts.has_template,
            devices=devices,
            n_threads=settings.n_threads,
            n_threads_batch=settings.n_threads_batch,
            sha256="",
            load_s=0.0,
            memory=need.total,
            llama_cpp_python=library.llama_cpp_python,
            llama_cpp_commit=library.commit,
        )

    # -- using -----------------------------------------------------------------------------

    def _handle_generate(self, request: GenerateRequest) -> Completion:
        loaded, load_s = self._get(request.spec, force=request.force)
        emit = Emit(self._emit_chunk, lambda fraction: self.emit(Progress("prompt", fraction)), self._pacer)
        generation = Generation(loaded.runtime, request.params, emit, self._cancel.is_set)
        completion, template = generation.run(request.prompt, request.messages, request.conversation)
        completion = replace(completion, timings=replace(completion.timings, load_s=load_s))
        receipt = _receipt(request, completion, loaded, generation.seed, template)
        return replace(completion, receipt=receipt)

    def _emit_chunk(self, chunk: Chunk) -> None:
        self.emit(chunk)

    def _handle_tokenize(self, request: TokenizeRequest) -> tuple[int, ...]:
        model = self._get(request.spec, force=False)[0].runtime.model
        return tuple(model.tokenize(request.text, add_special=request.add_special, parse_special=request.special))

    def _handle_detokenize(self, request: DetokenizeRequest) -> str:
        model = self._get(request.spec, force=False)[0].runtime.model
        for token in request.tokens:
            if not 0 <= token < model.n_vocab:
                raise InvalidRequestError(f"there is no token {token}; this model has 0 to {model.n_vocab - 1}")
        return model.detokenize(request.tokens)

    def _handle_embed(self, request: EmbedRequest) -> tuple[tuple[float, ...], ...]:
        runtime = self._get(request.spec, force=False)[0].runtime
        context = runtime.embedder()
        vectors = []
        for text in request.texts:
            tokens = runtime.model.tokenize(text, add_special=True, parse_special=False)
            if not tokens:
                raise InvalidRequestError("an empty text has no embedding")
            if len(tokens) > runtime.n_ctx:
                raise InvalidRequestError(f"the text has {len(tokens):,} tokens, the context holds {runtime.n_ctx:,}")
            vectors.append(tuple(context.embed(tokens)))
        return tuple(vectors)

    def _handle_forget(self, request: ForgetRequest) -> None:
        for loaded in self._loaded.values():
            loaded.runtime.forget(request.conversation)

    def _handle_save_state(self, request: SaveStateRequest) -> SavedHeader:
        loaded = self._get(request.spec, force=request.force)[0]
        return save_state(request, loaded.runtime, loaded.info, loaded.hash, self.emit, self._cancel.is_set)

    def _handle_restore_state(self, request: RestoreStateRequest) -> SavedHeader:
        loaded = self._get(request.spec, force=request.force)[0]
        return restore_state(request, loaded.runtime, loaded.hash, self.emit, self._cancel.is_set)


def _receipt(request: GenerateRequest, completion: Completion, loaded: _Loaded, seed: int, template: str) -> Receipt:
    info, timings = loaded.info, completion.timings
    return Receipt(
        model=request.spec.ref,
        path=request.spec.path,
        sha256=loaded.hash.value(),
        ftype=info.ftype,
        params={**request.params.to_dict(), "seed": seed},
        options=request.spec.options.to_dict(),
        devices=info.devices,
        n_threads=info.n_threads,
        n_ctx=info.n_ctx,
        timings={
            "prompt_tokens": timings.prompt_tokens,
            "cached_tokens": timings.cached_tokens,
            "prompt_s": timings.prompt_s,
            "prompt_tps": timings.prompt_tps,
            "generated_tokens": timings.generated_tokens,
            "generation_s": timings.generation_s,
            "generation_tps": timings.generation_tps,
            "time_to_first_token_s": timings.time_to_first_token_s,
            "load_s": timings.load_s,
        },
        llama_cpp_commit=info.llama_cpp_commit,
        llama_cpp_python=info.llama_cpp_python,
        llama_magic=__version__,
        llama_cli="",
        template=template,
    )


def _devices_used(log: LogCapture) -> tuple[str, ...]:
    """Return the devices that hold weights, as llama.cpp reported while it loaded them."""
    names = []
    for _, line in log.lines:
        match = _BUFFER.search(line)
        if match:
            name = match[1].split("_")[0]
            if name not in names:
                names.append(name)
    return tuple(names) or ("CPU",)


def _chat_flash_attn(options: LoadOptions, devices: tuple[str, ...]) -> int | None:
    """Return the flash attention of conversations: off on a processor when nothing else was asked for.

    There it is faster for short contexts, and slower for long ones: with it, a follow-up of 20
    tokens after 1,500 took 1.7 times as long on two cores. Conversations grow long; cells that
    stand alone seldom do.
    """
    free_to_choose = options.flash_attn == "auto" and options.cache_type_v in ("f16", "f32", "bf16")
    return FLASH_ATTENTION["off"] if free_to_choose and devices == ("CPU",) else None


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _refusal(spec: ModelSpec, metadata: ModelMetadata, need: MemoryNeed, free: int) -> str:
    """Say what does not fit and what would: a smaller context, a quantized cache, a smaller quantization."""
    options = spec.options
    n_ctx = default_n_ctx(metadata, options)
    remedies = []
    for smaller in (n_ctx // 2, n_ctx // 4, 512):
        if estimate(metadata, options.replace(n_ctx=max(smaller, 1))).total <= free:
            remedies.append(f"a smaller context (-c {smaller})")
            break
    if options.cache_type_k == "f16":
        quantized = options.replace(cache_type_k="q8_0", cache_type_v="q8_0", flash_attn="auto")
        if estimate(metadata, quantized).total <= free:
            remedies.append("a quantized cache (-ctk q8_0 -ctv q8_0)")
    room = free - need.kv_cache - need.compute
    if room > 0 and metadata.n_params:
        bits = 8 * room / metadata.n_params
        remedies.append(f"a quantization of at most {bits:.1f} bits per weight" if bits >= 1.5 else "a smaller model")
    else:
        remedies.append("a smaller model")
    remedies.append("--force to try all the same")
    return (
        f"{spec.ref} needs {_size(need.total)} (weights {_size(need.weights)}, cache for {n_ctx:,} tokens "
        f"{_size(need.kv_cache)}, buffers {_size(need.compute)}), but {_size(free)} are free. "
        f"What helps: {'; '.join(remedies)}."
    )
