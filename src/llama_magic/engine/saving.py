"""Writing and reading the state of a conversation's cache. Only the worker runs this."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llama_magic._version import __version__
from llama_magic.backends.host import available_memory
from llama_magic.engine.hashing import FileHash
from llama_magic.engine.protocol import Event, Progress, RestoreStateRequest, SaveStateRequest
from llama_magic.errors import (
    ContextFullError,
    GenerationInterrupted,
    InvalidRequestError,
    OutOfMemoryError,
    SavedStateError,
)
from llama_magic.inference.cache import ConversationCache, Slot
from llama_magic.inference.prefill import TAIL, goes_ahead, prefill
from llama_magic.inference.runtime import ModelRuntime
from llama_magic.inference.saved import (
    Part,
    SavedHeader,
    differences,
    pack_ids,
    read_header,
    read_held,
    write_saved,
)
from llama_magic.models.options import CACHE_TYPES, FLASH_ATTENTION, LoadOptions, ModelInfo
from llama_magic.native import library_info, state_version
from llama_magic.units import format_bytes

__all__ = ["restore_state", "save_state"]

#: Load options that change where and how fast is computed, but not what a cache of the same type means.
_NEUTRAL = frozenset(
    "n_ctx n_batch n_ubatch n_gpu_layers n_threads n_threads_batch flash_attn cache_type_k cache_type_v devices "
    "backend use_mmap use_mlock direct_io lazy_mode override_tensor cpu_moe n_cpu_moe n_cpu_ffn tensor_split main_gpu "
    "offload_kqv op_offload check_tensors repack no_host numa memory_budget".split()
)

#: Bytes to leave free on the disk.
_SPARE = 1 << 20

Emit = Callable[[Event], None]
Cancelled = Callable[[], bool]


def save_state(
    request: SaveStateRequest,
    runtime: ModelRuntime,
    info: ModelInfo,
    file_hash: FileHash,
    emit: Emit,
    cancel: Cancelled,
) -> SavedHeader:
    """Answer a `SaveStateRequest`."""
    slot = _fill(runtime, request, emit, cancel)
    cache, path = runtime.chat(), Path(request.path)
    size = cache.context.state_size(slot.seq)
    if size > (free := available_memory()):
        raise OutOfMemoryError(
            f"copying the conversation's cache takes {format_bytes(size)}, but {format_bytes(free)} of memory are "
            "free. A file name that ends in .json saves the text alone."
        )
    _check_disk(path.parent, size + len(request.text))
    made_with = _made_with(cache, file_hash, request.spec.options)
    state, ids = cache.context.state(slot.seq), pack_ids(slot.tokens)
    default = LoadOptions().to_dict()
    header = SavedHeader(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        conversation=request.name,
        turns=request.turns,
        tokens=len(slot.tokens),
        ref=request.spec.ref,
        path=request.spec.path,
        description=info.description,
        options={name: value for name, value in request.spec.options.to_dict().items() if value != default[name]},
        made_with=made_with,
        text=Part.of(request.text),
        ids=Part.of(ids),
        state=Part.of(state),
        llama_magic=__version__,
    )
    try:
        # The kernel made the file: one that it has taken away again, as after an interrupt, does not come back.
        with path.open("r+b") as file:
            write_saved(file, header, request.text, ids, state, _step("save", emit, cancel))
    except OSError as error:
        raise InvalidRequestError(f"{str(path)!r} can not be written: {error.strerror or error}") from error
    return header


def restore_state(
    request: RestoreStateRequest, runtime: ModelRuntime, file_hash: FileHash, emit: Emit, cancel: Cancelled
) -> SavedHeader:
    """Answer a `RestoreStateRequest`."""
    path = Path(request.path)
    header, cache = read_header(path), runtime.chat()
    _check_usable(path, header, runtime, _made_with(cache, file_hash, request.spec.options))
    with read_held(path, _step("restore", emit, cancel)) as held:
        if any(not 0 <= token < runtime.model.n_vocab for token in held.tokens):
            raise _refused(path, "it holds tokens that this model does not have")
        runtime.log.clear()
        why = cache.put(request.conversation, held.tokens, held.state)
        if why:
            said = "; ".join(runtime.log.errors())
            raise _refused(path, f"{why} ({said})" if said and why.startswith("llama.cpp") else why)
    return header


def _refused(path: Path, why: str) -> SavedStateError:
    return SavedStateError(f"the cache in {path.name!r} can not be used here: {why}. --text-only takes its text")


def _check_usable(path: Path, header: SavedHeader, runtime: ModelRuntime, here: dict[str, Any]) -> None:
    found = differences(header.made_with, here)
    if found:
        told = ""
        if header.made_with.get("model") != here["model"]:
            told = f". It belongs to {header.ref} ({header.description}); %llama load goes back to that"
        raise _refused(path, f"it was made with {', '.join(found)}{told}")
    if header.tokens >= runtime.n_ctx:
        larger = 1 << header.tokens.bit_length()
        raise _refused(
            path,
            f"it holds {header.tokens:,} tokens, the context {runtime.n_ctx:,}; %llama load -c {larger} makes room",
        )


def _made_with(cache: ConversationCache, file_hash: FileHash, options: LoadOptions) -> dict[str, Any]:
    """Return what a state depends on, as it reads back from JSON."""
    settings, model = cache.context.settings, file_hash.value()
    if not model.startswith("sha256"):
        raise InvalidRequestError(f"the model's file can not be read to know it again: {model}")
    names = {number: name for name, number in FLASH_ATTENTION.items()}
    types = {number: name for name, number in CACHE_TYPES.items()}
    found: dict[str, Any] = {
        "model": model,
        "llama_cpp": library_info().commit,
        "state": state_version(),
        "byteorder": sys.byteorder,
        "cache_type_k": types[settings.cache_type_k],
        "cache_type_v": types[settings.cache_type_v],
        "flash_attn": names[settings.flash_attn],
    }
    default = LoadOptions().to_dict()
    found |= {
        name: value for name, value in options.to_dict().items() if name not in _NEUTRAL and value != default[name]
    }
    if "lora" in found:
        found["lora"] = [(_file_sha256(path), scale) for path, scale in found["lora"]]
    same: dict[str, Any] = json.loads(json.dumps(found))
    return same


def _file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InvalidRequestError(f"the adapter {path!r} can not be read: {error.strerror or error}") from error
    return f"sha256:{digest.hexdigest()}"


def _fill(runtime: ModelRuntime, request: SaveStateRequest, emit: Emit, cancel: Cancelled) -> Slot:
    """Have the cache hold the conversation; what it holds already is not processed again."""
    tokens = runtime.prompts.beginning(request.messages)
    if len(tokens) >= runtime.n_ctx:
        raise ContextFullError(len(tokens), runtime.n_ctx, runtime.model.n_ctx_train)
    cache, key = runtime.chat(), request.conversation
    kept, left = cache.held(key, tokens)
    slot = cache.slots.get(key)
    if slot is not None and slot.tokens and kept == len(slot.tokens) and left <= TAIL and not goes_ahead(runtime.model):
        return slot
    plan = cache.plan(key, tokens)
    done = prefill(
        runtime,
        cache.context,
        plan,
        cancel,
        make_room=lambda: cache.evict(key),
        progress=lambda fraction: emit(Progress("prompt", fraction)),
        logits=False,
    )
    if not done:
        raise GenerationInterrupted
    return plan.slot


def _check_disk(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + _SPARE > free:
        raise InvalidRequestError(
            f"the conversation takes {format_bytes(size)}, but {format_bytes(free)} are free in {str(folder)!r}. "
            "What helps: %llama save --delete NAME, a shorter conversation, or LLAMA_MAGIC_HOME on another disk"
        )


def _step(stage: str, emit: Emit, cancel: Cancelled) -> Callable[[float], None]:
    def step(fraction: float) -> None:
        if cancel():
            raise GenerationInterrupted
        emit(Progress(stage, fraction))

    return step
