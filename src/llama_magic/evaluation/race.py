"""All levels answer the same prompt in one process, each at its own speed. Runs in the worker.

They take turns, token by token, and next comes always the one whose own clock shows the least. So each gets ahead as
far as it would have, had it been alone: what is seen is a race, though only one runs at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llama_magic.backends.host import default_threads
from llama_magic.errors import ContextFullError, InvalidRequestError, LlamaMagicError
from llama_magic.evaluation.comparison import Answer
from llama_magic.evaluation.levels import CompareRequest, LevelUpdate
from llama_magic.inference.chain import bias_of, build_sampler, grammar_of, prompt_window
from llama_magic.inference.prompt import PromptBuilder
from llama_magic.inference.results import Message
from llama_magic.inference.text import TextAssembler
from llama_magic.models.loading import context_settings
from llama_magic.native import NativeContext, NativeModel, Sampler
from llama_magic.native.tools import WorkerTools
from llama_magic.progress import Report

__all__ = ["race"]

#: Seconds between two updates of one level.
_UPDATE_S = 0.15


@dataclass(slots=True)
class _Runner:
    """One level at work.

    Attributes
    ----------
    clock
        Seconds of its own computing.
    """

    name: str
    model: NativeModel
    context: NativeContext
    sampler: Sampler
    text: TextAssembler
    limit: int
    clock: float = 0.0
    decode_s: float = 0.0
    decoded: int = 0
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    sent_at: float = 0.0

    def close(self) -> None:
        self.sampler.close()
        self.context.close()

    def answer(self) -> Answer:
        """What it wrote, whole."""
        tps = self.decoded / self.decode_s if self.decode_s else 0.0
        return Answer(self.text.text, tuple(self.tokens), tps, self.finish or "interrupted")


def race(models: Sequence[tuple[str, NativeModel]], request: CompareRequest, tools: WorkerTools) -> None:
    """Let all models answer. What they write is told as it comes; the one that fails is told with its reason."""
    runners: list[_Runner] = []
    try:
        for name, model in models:
            if tools.cancelled():
                return
            try:
                runners.append(_start(name, model, request, tools))
            except LlamaMagicError as error:
                tools.report(LevelUpdate("answer", level=name, values={"notes": (f"no answer: {error}",)}))
        _run(runners, request, tools)
    finally:
        for runner in runners:
            runner.close()


def _start(name: str, model: NativeModel, request: CompareRequest, tools: WorkerTools) -> _Runner:
    """Read the prompt and take the first token."""
    params, prompts = request.params, PromptBuilder(model)
    assert request.prompt is not None
    system = () if request.system is None else (Message("system", request.system),)
    messages = (*system, Message("user", request.prompt))
    made = prompts.text(request.prompt) if request.complete else prompts.chat(messages)
    if not made.tokens:
        raise InvalidRequestError("the prompt is empty")
    limit = params.max_tokens if params.max_tokens > 0 else 512
    n_ctx = len(made.tokens) + limit + 1
    if model.n_ctx_train and len(made.tokens) >= model.n_ctx_train:
        raise ContextFullError(len(made.tokens), model.n_ctx_train, model.n_ctx_train)
    threads = request.options.n_threads or default_threads()
    context = NativeContext(model, context_settings(request.options, n_ctx, threads))
    sampler = build_sampler(
        model, params, seed=params.seed or 0, n_ctx=n_ctx, bias=bias_of(model, params), grammar=grammar_of(params),
        log=tools.log,
    )  # fmt: skip
    runner = _Runner(name, model, context, sampler, TextAssembler(params.stop), limit)
    tools.report(LevelUpdate("answer", None, f"{name} reads the prompt", level=name))
    started = time.perf_counter()
    for at in range(0, len(made.tokens), context.n_ubatch):
        part = made.tokens[at : at + context.n_ubatch]
        context.prefill(part, at, 0, logits=at + len(part) == len(made.tokens))
        if tools.cancelled():
            break
    else:
        window = prompt_window(params, n_ctx)
        if window:
            sampler.accept_prompt(made.tokens[-window:])
        _take(runner, sampler.sample(context, -1), request)
    runner.clock = time.perf_counter() - started
    return runner


def _take(runner: _Runner, token: int, request: CompareRequest) -> None:
    if token in runner.model.eog and not request.params.ignore_eos:
        runner.finish = "stop"
        return
    runner.tokens.append(token)
    runner.text.feed(runner.model.piece(token))
    if runner.text.stopped:
        runner.finish = "stop"
    elif len(runner.tokens) >= runner.limit:
        runner.finish = "length"


def _run(runners: list[_Runner], request: CompareRequest, tools: WorkerTools) -> None:
    active = [runner for runner in runners if not runner.finish]
    for runner in runners:
        _send(runner, tools.report)
    while active and not tools.cancelled():
        runner = min(active, key=lambda one: one.clock)
        _step(runner, request)
        if runner.finish or runner.clock - runner.sent_at >= _UPDATE_S:
            _send(runner, tools.report)
            runner.sent_at = runner.clock
        if runner.finish:
            active.remove(runner)
    for runner in active:
        runner.finish = "interrupted"
        _send(runner, tools.report)


def _step(runner: _Runner, request: CompareRequest, clock: Callable[[], float] = time.perf_counter) -> None:
    started = clock()
    try:
        runner.context.step_one(runner.tokens[-1], 0)
    except LlamaMagicError:
        runner.finish = "context"
        return
    token = runner.sampler.sample(runner.context, 0)
    taken = clock() - started
    runner.clock += taken
    runner.decode_s += taken
    runner.decoded += 1
    _take(runner, token, request)


def _send(runner: _Runner, report: Report) -> None:
    """Tell what was written since the last time; at the end, the whole answer."""
    text = runner.text.finish() if runner.finish else runner.text.take()
    share = len(runner.tokens) / runner.limit
    values = {"answer": runner.answer()} if runner.finish else {}
    tps = runner.decoded / runner.decode_s if runner.decode_s else 0.0
    report(
        LevelUpdate(
            "answer", share, f"{runner.name}: {tps:.1f} tok/s", level=runner.name, values=values, text=text,
            count=len(runner.tokens), tps=tps,
        )
    )  # fmt: skip
