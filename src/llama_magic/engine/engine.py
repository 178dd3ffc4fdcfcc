"""The engine: keeps models loaded and answers requests. The worker hosts one; scripts may use it in process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llama_magic._version import __version__
from llama_magic.backends.host import default_threads
from llama_magic.engine.flag import Flag
from llama_magic.engine.hashing import FileHash
from llama_magic.engine.protocol import (
    Chunk,
    DetokenizeRequest,
    EmbedRequest,
    Event,
    ForgetRequest,
    GenerateRequest,
    LoadRequest,
    Log,
    NextTokenRequest,
    Progress,
    Request,
    RestoreStateRequest,
    SaveStateRequest,
    StatusRequest,
    TokenizeRequest,
    UnloadRequest,
)
from llama_magic.engine.residency import LoadPlan, check, devices_used, plan_load, room
from llama_magic.engine.runners import runner_of
from llama_magic.engine.saving import restore_state, save_state
from llama_magic.errors import EngineProtocolError, GenerationInterrupted, InvalidRequestError, LlamaMagicError
from llama_magic.inference.distribution import NextToken
from llama_magic.inference.loop import Emit, Generation
from llama_magic.inference.next_token import next_token
from llama_magic.inference.pacing import Pacer
from llama_magic.inference.prefill import begin_next_turn
from llama_magic.inference.results import Completion, Message, Receipt, Timings
from llama_magic.inference.runtime import ModelRuntime
from llama_magic.inference.saved import SavedHeader
from llama_magic.models.gguf import ModelMetadata, read_metadata
from llama_magic.models.loading import chat_flash_attn, context_settings, model_settings, numa_strategy
from llama_magic.models.memory import MemoryNeed, default_n_ctx, estimate
from llama_magic.models.options import DeviceUse, LoadOptions, ModelInfo, ModelSpec
from llama_magic.native import ContextSettings, LoadCancelled, LogCapture, NativeModel, WorkerTools, library_info
from llama_magic.native.heap import trim
from llama_magic.native.loading import init_numa
from llama_magic.native.placement import Placed, placement, splits

__all__ = ["Engine"]


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
        self._cancel = Flag()
        self._active: ModelRuntime | None = None
        self._answered: tuple[ModelRuntime, str, tuple[Message, ...]] | None = None
        self.log = LogCapture(lambda level, text: self.emit(Log(level, text)))
        self.log.install()
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            LoadRequest: self._handle_load,
            UnloadRequest: self._handle_unload,
            GenerateRequest: self._handle_generate,
            NextTokenRequest: self._handle_next_token,
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
        self._active = self._answered = None

    # -- loading ---------------------------------------------------------------------------

    def _handle_load(self, request: LoadRequest) -> ModelInfo:
        loaded, seconds = self._get(request.spec, force=request.force)
        return replace(loaded.info, load_s=seconds)

    def _handle_unload(self, request: UnloadRequest) -> tuple[str, ...]:
        keys = [key for key in self._loaded if request.path is None or key[0] == request.path]
        for key in keys:
            self._drop(key)
        trim()
        return tuple(path for path, _ in keys)

    def _handle_status(self, _request: StatusRequest) -> tuple[ModelInfo, ...]:
        return tuple(loaded.info for loaded in self._loaded.values())

    def _drop(self, key: tuple[str, LoadOptions]) -> None:
        runtime = self._loaded.pop(key).runtime
        if self._active is runtime:
            self._active = self._answered = None
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
        loaded.runtime.use_adapters(spec.options.lora)
        return loaded, seconds

    def _load(self, spec: ModelSpec, *, force: bool) -> _Loaded:
        options = spec.options
        metadata = read_metadata(spec.path)
        plan = self._make_room(spec, metadata) if not force else LoadPlan(estimate(metadata, options))
        file_hash = FileHash(spec.path, metadata)
        self.emit(Progress("load", 0.0, spec.ref))
        init_numa(numa_strategy(options))
        try:
            model = NativeModel(
                spec.path,
                self.log,
                self._load_progress(spec.ref),
                model_settings(options, n_gpu_layers=plan.n_gpu_layers),
            )
        except LoadCancelled:
            raise GenerationInterrupted from None
        settings = context_settings(options, default_n_ctx(metadata, options), default_threads())
        placed = placement(self.log)
        devices = devices_used(self.log)
        chat = chat_flash_attn(options, devices)
        larger = options if chat is None else options.replace(flash_attn="off")
        context = estimate(metadata, larger)
        runtime = ModelRuntime(model, settings, self.log, context.kv_cache + context.compute, chat)
        need = plan.need
        info = self._info(spec, metadata, runtime, settings, need, devices)
        info = replace(info, uses=self._uses(placed, runtime))
        return _Loaded(runtime, info, file_hash)

    def _uses(self, placed: tuple[Placed, ...], runtime: ModelRuntime) -> tuple[DeviceUse, ...]:
        """Return what each device does; an accelerator only where the graph of a batch has parts for it."""
        rows = placed
        if any(row.type == "accelerator" for row in rows):
            parts = None
            if runtime.model.has_decoder and any(row.type == "cpu" and row.layers for row in rows):
                runtime.solo()  # the context that cells use: its graph is planned now
                parts = splits(self.log)
            if parts is None or parts[0] <= 1:
                rows = tuple(row for row in rows if row.type != "accelerator")
        return tuple(DeviceUse(row.device, row.type, row.layers, row.weights) for row in rows)

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

    def _make_room(self, spec: ModelSpec, metadata: ModelMetadata) -> LoadPlan:
        """Unload what was used longest ago until the model fits; refuse it where it can not."""
        plan = plan_load(spec, metadata, self.log, self._held())
        check(spec, metadata, plan, room(spec, 0, self._held()))  # better refused before anything is unloaded
        while self._loaded and plan.need.total > room(spec, self._held()):
            self._drop(next(iter(self._loaded)))
            trim()
        check(spec, metadata, plan, room(spec, self._held()))
        return plan

    def _held(self) -> int:
        """Return the bytes that loaded models were reckoned to take."""
        return sum(loaded.info.memory for loaded in self._loaded.values())

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
        generation = Generation(loaded.runtime, request.params, emit, self._cancel.is_set, load_s)
        receipt = _receipt_maker(request, loaded, generation.seed)
        completion = generation.run(request.prompt, request.messages, request.conversation, receipt)
        if request.conversation is not None and request.messages:
            turns = (*request.messages, Message("assistant", completion.text))
            self._answered = (loaded.runtime, request.conversation, turns)
        return completion

    def look_ahead(self) -> None:
        """Process what the next turn of the conversation that was answered last begins with; `cancel` ends it.

        To be called after `ready`, while nobody waits for anything: who asks next then waits for fewer tokens.
        """
        answered, self._answered = self._answered, None
        if answered is None or answered[0] is not self._active:
            return
        runtime, conversation, messages = answered
        try:
            begin_next_turn(runtime, conversation, messages, self._cancel.is_set)
        except LlamaMagicError:
            runtime.forget(conversation)

    def _handle_next_token(self, request: NextTokenRequest) -> NextToken:
        runtime = self._get(request.spec, force=False)[0].runtime
        prompts = runtime.prompts
        made = prompts.text(request.prompt) if request.prompt is not None else prompts.chat(request.messages)
        tokens = (*made.tokens, *request.tokens)
        return next_token(runtime, tokens, request.conversation, request.count, self._cancel.is_set)

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


def _receipt_maker(request: GenerateRequest, loaded: _Loaded, seed: int) -> Callable[[Timings, str], Receipt]:
    """Return what makes the receipt at the end; what is known before is got ready now, while nobody waits for it."""
    info = loaded.info
    params, options = {**request.params.to_dict(), "seed": seed}, request.spec.options.to_dict()

    def make(timings: Timings, template: str) -> Receipt:
        return Receipt(
            model=request.spec.ref,
            path=request.spec.path,
            sha256=loaded.hash.value(),
            ftype=info.ftype,
            params=params,
            options=options,
            devices=info.devices,
            n_threads=info.n_threads,
            n_ctx=info.n_ctx,
            timings=timings.to_dict(),
            llama_cpp_commit=info.llama_cpp_commit,
            llama_cpp_python=info.llama_cpp_python,
            llama_magic=__version__,
            llama_cli="",
            template=template,
            place=info.place,
        )

    return make
