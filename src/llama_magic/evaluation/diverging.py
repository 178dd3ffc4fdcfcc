"""Forces a text through models and looks at every token: the worker's side of `llama_magic.evaluation.divergence`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llama_magic.backends.host import default_threads
from llama_magic.errors import GenerationInterrupted, InvalidRequestError
from llama_magic.evaluation.divergence import Divergence, DivergeRequest, ForcedToken, ForcedTokens
from llama_magic.evaluation.evaluating import check_memory, load_model, other_vocabulary
from llama_magic.evaluation.lockstep import LockStep, Stopped
from llama_magic.evaluation.reader import Reader
from llama_magic.evaluation.requests import short_name
from llama_magic.evaluation.windows import Windows
from llama_magic.inference.logprobs import token_logprob
from llama_magic.inference.prompt import PromptBuilder
from llama_magic.inference.results import Message
from llama_magic.models.loading import context_settings
from llama_magic.models.options import ModelSpec
from llama_magic.native import Aborted, LoadCancelled, NativeContext, NativeModel, WorkerTools
from llama_magic.progress import Progress

__all__ = ["run"]


def run(request: DivergeRequest, tools: WorkerTools) -> Divergence:
    """Do what `DivergeRequest` says."""
    models: list[NativeModel] = []
    try:
        return _run(request, tools, models)
    except (LoadCancelled, Stopped, Aborted):
        raise GenerationInterrupted from None
    finally:
        for model in models:
            model.close()


def _run(request: DivergeRequest, tools: WorkerTools, models: list[NativeModel]) -> Divergence:
    started = time.perf_counter()
    if not request.force:
        check_memory([request.base, *request.models], 512)
    base = load_model(request.base, tools)
    models.append(base)
    prompt, notes = _prompt(request, base)
    text = _text(request, base, prompt, tools)
    both = np.array([*prompt, *text], np.int32)[None, :]
    windows = Windows(both, (1,), len(prompt) - 1, None)
    readers = [Reader(short_name(request.base.ref), base, request.base.options, windows)]
    for spec in request.models:
        model = load_model(spec, tools)
        models.append(model)
        if reason := other_vocabulary(model, base, both[0].tolist()):
            raise InvalidRequestError(
                f"{short_name(spec.ref)} and {short_name(request.base.ref)} have different vocabularies ({reason}): "
                "the text's tokens would mean something else"
            )
        readers.append(Reader(short_name(spec.ref), model, spec.options, windows))
    tools.report(Progress("diverge", None, f"reading {len(text):,} tokens with {len(readers)} models"))
    seen: dict[int, list[ForcedToken]] = {id(reader): [] for reader in readers}

    def inspect(reader: Reader, logits: npt.NDArray[np.float32], following: npt.NDArray[np.int32]) -> None:
        seen[id(reader)] += [
            _look(reader.model, row, int(token), request.top) for row, token in zip(logits, following, strict=True)
        ]

    with LockStep(readers[1:], readers[0], tools.cancelled, inspect=inspect) as steps:
        steps.read()
    found = [
        ForcedTokens(spec.ref, spec.path, _with_kld(reader, seen[id(reader)]))
        for spec, reader in zip((request.base, *request.models), readers, strict=True)
    ]
    return Divergence(
        found[0], tuple(found[1:]), request.prompt, tuple(text), _pieces(base, text), request.text is not None,
        request.chat and base.chat_template is not None, time.perf_counter() - started, secrets.token_hex(4), notes,
    )  # fmt: skip


def _prompt(request: DivergeRequest, base: NativeModel) -> tuple[tuple[int, ...], tuple[str, ...]]:
    builder = PromptBuilder(base)
    made = builder.chat([Message("user", request.prompt)]) if request.chat else builder.text(request.prompt)
    tokens = made.tokens or ((base.bos,) if base.bos >= 0 else ())
    if not tokens:
        raise InvalidRequestError("the prompt is empty, and this vocabulary has no token that begins a text")
    return tokens, made.notes


def _text(request: DivergeRequest, base: NativeModel, prompt: Sequence[int], tools: WorkerTools) -> list[int]:
    if request.text is not None:
        tokens = base.tokenize(request.text, add_special=False, parse_special=False)[: request.max_tokens]
        if not tokens:
            raise InvalidRequestError("the given text is empty")
        return tokens
    tokens = _greedy(request, base, prompt, tools)
    if not tokens:
        raise InvalidRequestError(
            f"{short_name(request.base.ref)} ends its answer before the first token; another prompt, or a text of "
            "your own (text=…), gives something to compare"
        )
    return tokens


def _greedy(request: DivergeRequest, base: NativeModel, prompt: Sequence[int], tools: WorkerTools) -> list[int]:
    """Let the reference write, always its likeliest token, until it ends its answer."""
    options: ModelSpec = request.base
    threads = options.options.n_threads or default_threads()
    settings = replace(
        context_settings(options.options, len(prompt) + request.max_tokens, threads), n_batch=512, n_ubatch=512
    )
    context = NativeContext(base, settings)
    tokens: list[int] = []
    try:
        for start in range(0, len(prompt), context.n_batch):
            part = prompt[start : start + context.n_batch]
            context.prefill(part, start, 0, logits=start + len(part) == len(prompt))
        while len(tokens) < request.max_tokens and not tools.cancelled():
            token = int(context.logits(-1).argmax())
            if token in base.eog:
                break
            tokens.append(token)
            if len(tokens) % 8 == 0:
                share = len(tokens) / request.max_tokens
                tools.report(Progress("diverge", share, f"the reference writes: {len(tokens):,} tokens"))
            if len(tokens) < request.max_tokens:
                context.step_one(token, 0)
    finally:
        context.close()
    if tools.cancelled():
        raise Stopped
    return tokens


def _look(model: NativeModel, row: npt.NDArray[np.float32], token: int, top: int) -> ForcedToken:
    told = token_logprob(model, row, token, top)
    return ForcedToken(told.logprob, int((row > row[token]).sum()) + 1, told.top)


def _with_kld(reader: Reader, tokens: list[ForcedToken]) -> tuple[ForcedToken, ...]:
    kld = reader.parts[0].kld
    if kld is None:
        return tuple(tokens)
    return tuple(replace(token, kld=float(value)) for token, value in zip(tokens, kld, strict=True))


def _pieces(model: NativeModel, tokens: Sequence[int]) -> tuple[str, ...]:
    """Return the text of each token; of a character that several make, the last has it all."""
    texts: list[str] = []
    rest = b""
    for place, token in enumerate(tokens):
        rest += model.piece_with_special(token)
        try:
            text = rest.decode("utf-8")
        except UnicodeDecodeError as error:
            cut_off = error.end == len(rest) and len(rest) - error.start < 4 and place + 1 < len(tokens)
            text = rest[: error.start].decode("utf-8", "replace") if cut_off else rest.decode("utf-8", "replace")
            rest = rest[error.start :] if cut_off else b""
        else:
            rest = b""
        texts.append(text)
    return tuple(texts)
