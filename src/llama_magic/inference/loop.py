"""The decode loop: a prompt goes in, chunks come out, a completion is left."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llama_magic.errors import ContextFullError, InvalidRequestError
from llama_magic.inference.cache import ConversationCache, Plan
from llama_magic.inference.chain import bias_of, build_sampler, grammar_of, prompt_window
from llama_magic.inference.logprobs import token_logprob
from llama_magic.inference.pacing import Pace, Pacer
from llama_magic.inference.params import SamplingParams
from llama_magic.inference.prefill import prefill
from llama_magic.inference.prompt import Prompt
from llama_magic.inference.results import Chunk, Completion, Message, Receipt, Sample, Timings, TokenLogprob
from llama_magic.inference.runtime import ModelRuntime
from llama_magic.inference.text import TextAssembler
from llama_magic.native import Aborted, NativeContext, NoSlot, Sampler, check

__all__ = ["Emit", "Generation", "draw_seed"]

#: Tokens that go into one chunk, which keeps the bytes to the front end in step with the text; but no sooner
#: than the first of these seconds after the last chunk, no later than the second, and earlier where waiting for
#: one more token would exceed the third.
FLUSH_TOKENS = 5
SHORTEST_S, FLUSH_S, LONGEST_S = 0.052, 0.11, 0.12

_MAX_SEED = 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class Emit:
    """Where chunks and the prompt's progress (0 to 1) go; `pacer` fetches chunks by itself where there is one."""

    chunk: Callable[[Chunk], None]
    progress: Callable[[float], None]
    pacer: Pacer | None = None


def _is_time(waited: float, step: float, tokens: int) -> bool:
    """Tell whether to send a chunk: `waited` seconds after the last one, with a token every `step` seconds."""
    return waited >= FLUSH_S or waited + step > LONGEST_S or (tokens >= FLUSH_TOKENS and waited >= SHORTEST_S)


def draw_seed() -> int:
    """Return a random seed; 0xFFFFFFFF is left out, it means "random" to llama.cpp."""
    return secrets.randbelow(_MAX_SEED + 1)


@dataclass(slots=True)
class _Track:
    """One continuation while it grows."""

    index: int
    sampler: Sampler
    text: TextAssembler
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    sent: int = 0
    spelled: int = 0
    finish: str = ""


class Generation:
    """One generation on one model.

    Parameters
    ----------
    runtime
        The model.
    params
        How to sample.
    emit
        Where chunks go.
    cancelled
        Asked before every token; True ends the generation with what there is.
    load_s
        Seconds that loading took, for the timings.
    """

    def __init__(
        self,
        runtime: ModelRuntime,
        params: SamplingParams,
        emit: Emit,
        cancelled: Callable[[], bool],
        load_s: float = 0.0,
    ) -> None:
        self._runtime = runtime
        self._model = runtime.model
        self._params = params
        self._emit = emit
        self._cancelled = cancelled
        self._load_s = load_s
        self._seed = params.seed if params.seed is not None else draw_seed()
        self._started = time.perf_counter()
        self._prompt_s = self._first_s = self._prompt_end = 0.0
        self._flushed = 0.0

    @property
    def seed(self) -> int:
        """The seed in use."""
        return self._seed

    def run(
        self,
        prompt: str | None,
        messages: Sequence[Message],
        conversation: str | None,
        receipt: Callable[[Timings, str], Receipt | None] = lambda _timings, _template: None,
    ) -> Completion:
        """Generate.

        Parameters
        ----------
        prompt, messages, conversation
            As in `GenerateRequest`.
        receipt
            Makes the receipt of the timings and of how the prompt was made ("chat" or "completion").

        Raises
        ------
        ContextFullError
            The prompt does not fit.
        InvalidRequestError
            The prompt is empty, or grammar, schema or biases can not be used.
        """
        made = self._runtime.prompts.text(prompt) if prompt is not None else self._runtime.prompts.chat(messages)
        if not made.tokens:
            raise InvalidRequestError("the prompt is empty; write something for the model to continue")
        if len(made.tokens) >= self._runtime.n_ctx:
            raise ContextFullError(len(made.tokens), self._runtime.n_ctx, self._model.n_ctx_train)
        self._runtime.close_spent()
        tracks = self._tracks()
        try:
            if conversation is None:
                plan = self._run_solo(made, tracks)
            else:
                plan = self._run_conversation(conversation, made, tracks)
        finally:
            self._runtime.close_later(track.sampler for track in tracks)
        return self._completion(made, plan, tracks, receipt)

    def _tracks(self) -> list[_Track]:
        params, runtime = self._params, self._runtime
        bias, grammar = bias_of(self._model, params), grammar_of(params)
        limit = params.max_tokens if params.max_tokens >= 0 else runtime.n_ctx
        return [
            _Track(
                index,
                build_sampler(
                    self._model,
                    params,
                    seed=(self._seed + index) % (_MAX_SEED + 1),
                    n_ctx=runtime.n_ctx,
                    bias=bias,
                    grammar=grammar,
                    log=runtime.log,
                ),
                TextAssembler(params.stop),
                limit,
            )
            for index in range(params.samples)
        ]

    # -- the prompt ------------------------------------------------------------------------

    def _run_solo(self, made: Prompt, tracks: list[_Track]) -> Plan:
        cache = self._runtime.solo(len(tracks))
        plan = cache.plan(made.tokens)
        if plan.logits is None:
            if not self._prefill(cache.context, plan, None):
                return self._stop(plan, tracks, "interrupted")
            cache.remember(plan.tokens)
        self._begin(plan, tracks)
        logits = plan.logits
        for track in tracks:
            token = track.sampler.sample(cache.context, -1) if logits is None else track.sampler.sample_from(logits)
            row = cache.context.logits(-1) if logits is None and self._params.logprobs else logits
            self._take(track, token, row)
        if len(tracks) == 1:
            self._decode_one(cache.context, plan, tracks[0])
        else:
            self._decode_many(cache.context, plan, tracks)
        return plan

    def _run_conversation(self, key: str, made: Prompt, tracks: list[_Track]) -> Plan:
        if len(tracks) > 1:
            raise InvalidRequestError("several samples need a request that stands alone, not a conversation")
        cache = self._runtime.chat()
        plan = cache.plan(key, made.tokens)
        context, track = cache.context, tracks[0]
        if not self._prefill(context, plan, lambda: cache.evict(key)):
            return self._stop(plan, tracks, "interrupted")
        self._begin(plan, tracks)
        token = track.sampler.sample(context, -1)
        self._take(track, token, context.logits(-1) if self._params.logprobs else None)
        self._decode_one(context, plan, track, cache, key)
        return plan

    def _prefill(self, context: NativeContext, plan: Plan, make_room: Callable[[], bool] | None) -> bool:
        """Process what the cache does not hold; False when cancelled."""
        long = len(plan.tokens) - plan.keep > context.n_ubatch
        report = self._emit.progress if long else None
        return prefill(self._runtime, context, plan, self._cancelled, make_room=make_room, progress=report)

    def _begin(self, plan: Plan, tracks: list[_Track]) -> None:
        window = prompt_window(self._params, self._runtime.n_ctx)
        if window:
            for track in tracks:
                track.sampler.accept_prompt(plan.tokens[-window:])
        self._prompt_end = time.perf_counter()
        self._prompt_s = self._prompt_end - self._started

    # -- the tokens ------------------------------------------------------------------------

    def _take(self, track: _Track, token: int, logits: object = None) -> None:
        """Add a sampled token to a track, and see whether it ends there."""
        if token in self._model.eog and not self._params.ignore_eos:
            track.finish = "stop"
        else:
            track.tokens.append(token)
            if self._params.logprobs:
                row = token_logprob(self._model, logits, token, self._params.logprobs)  # type: ignore[arg-type]
                track.logprobs.append(row)
            if self._params.stop:
                self._spell(track, len(track.tokens))
            if track.text.stopped:
                track.finish = "stop"
            elif len(track.tokens) >= track.limit:
                track.finish = "length"
        if not self._first_s:
            self._first_s = time.perf_counter() - self._started
            self._flush(track)

    def _spell(self, track: _Track, count: int) -> None:
        """Turn the tokens since the last call, `count` in all, into text."""
        feed, piece = track.text.feed, self._model.piece
        for token in track.tokens[track.spelled : count]:
            feed(piece(token))
        track.spelled = count

    def _decode_one(
        self,
        context: NativeContext,
        plan: Plan,
        track: _Track,
        cache: ConversationCache | None = None,
        key: str = "",
    ) -> None:
        """Generate one continuation."""
        seq, n_ctx, cancelled, clock = plan.slot.seq, self._runtime.n_ctx, self._cancelled, time.perf_counter
        step, sample, held = context.step_one, track.sampler.sample, plan.slot.tokens
        tokens, limit = track.tokens, track.limit
        plain = not (self._params.logprobs or self._params.stop)
        pacer = self._hand_over(track) if plain and not track.finish else None
        if pacer is not None:
            try:
                self._decode_paced(context, plan, track, cache, key)
            finally:
                pacer.stop()
            self._flush(track, last=True)
            return
        eog = frozenset[int]() if self._params.ignore_eos else self._model.eog
        position, before = len(held), clock()
        while not track.finish:
            if cancelled():
                track.finish = "interrupted"
                break
            if position >= n_ctx:
                track.finish = "context"
                break
            token = tokens[-1]
            try:
                step(token, seq)
            except Aborted:
                track.finish = "interrupted"
                break
            except NoSlot:
                if cache is not None and cache.evict(key):
                    continue
                track.finish = "context"
                break
            held.append(token)
            position += 1
            token = sample(context, 0)
            if not plain:
                self._take(track, token, context.logits(0))
            elif token in eog:
                track.finish = "stop"
            else:
                tokens.append(token)
                if len(tokens) >= limit:
                    track.finish = "length"
            now = clock()
            if _is_time(now - self._flushed, now - before, len(tokens) - track.sent):
                self._flush(track)
            before = now
        self._flush(track, last=True)

    def _decode_paced(
        self, context: NativeContext, plan: Plan, track: _Track, cache: ConversationCache | None, key: str
    ) -> None:
        """Do the same where nothing has to be looked at for each token, and the pacer sends the text.

        The weights have just passed through the processor's caches, so whatever is touched here comes from memory:
        nothing is touched that need not be.
        """
        cancelled, sample, append = self._cancelled, track.sampler.sample, track.tokens.append
        decode, handle, batch, cell = context.single(plan.slot.seq)
        eog = frozenset[int]() if self._params.ignore_eos else self._model.eog
        held, first, token = plan.slot.tokens, len(track.tokens) - 1, track.tokens[-1]
        room = min(track.limit - len(track.tokens), self._runtime.n_ctx - len(held))
        try:
            for _ in range(room):
                if cancelled():
                    track.finish = "interrupted"
                    return
                cell.value = token
                while code := decode(handle, batch):
                    if not self._may_retry(code, track, cache, key):
                        return
                token = sample(context, 0)
                if token in eog:
                    track.finish = "stop"
                    return
                append(token)
            track.finish = "length" if len(track.tokens) >= track.limit else "context"
        finally:
            # All tokens but the last were processed, and that one too where another followed it that is no text.
            held.extend(track.tokens[first : len(track.tokens) - (track.finish != "stop")])

    @staticmethod
    def _may_retry(code: int, track: _Track, cache: ConversationCache | None, key: str) -> bool:
        """Say whether to decode again after a failure: where another conversation could give up its place."""
        try:
            check(code)
        except Aborted:
            track.finish = "interrupted"
        except NoSlot:
            if cache is not None and cache.evict(key):
                return True
            track.finish = "context"
        return False

    def _hand_over(self, track: _Track) -> Pacer | None:
        """Let the pacer, where there is one, fetch chunks: it only reads `track.tokens`, which grows meanwhile."""
        pacer = self._emit.pacer
        if pacer is None:
            return None
        pace = Pace(self._flushed)

        def take() -> tuple[Chunk | None, float]:
            count = len(track.tokens) - track.sent
            chunk = self._chunk(track)
            return chunk, pace.sent(count, self._flushed)

        pacer.start(take)
        return pacer

    def _decode_many(self, context: NativeContext, plan: Plan, tracks: list[_Track]) -> None:
        """Generate several continuations of one prompt, one batch a step."""
        start = len(plan.tokens)
        for track in tracks[1:]:
            context.share(0, track.index, start)
        active = [track for track in tracks if not track.finish]
        before = flushed = time.perf_counter()
        while active:
            if self._cancelled():
                self._end(active, "interrupted")
                break
            if start + max(len(track.tokens) for track in active) > self._runtime.n_ctx:
                self._end(active, "context")
                break
            try:
                context.step(
                    [track.tokens[-1] for track in active],
                    [start + len(track.tokens) - 1 for track in active],
                    [track.index for track in active],
                )
            except Aborted:
                self._end(active, "interrupted")
                break
            except NoSlot:
                self._end(active, "context")
                break
            for row, track in enumerate(active):
                token = track.sampler.sample(context, row)
                self._take(track, token, context.logits(row) if self._params.logprobs else None)
            now = time.perf_counter()
            if _is_time(now - flushed, now - before, FLUSH_TOKENS):
                flushed = now
                for track in active:
                    self._flush(track)
            before = now
            active = [track for track in active if not track.finish]
        for track in tracks:
            self._flush(track, last=True)
        del plan.slot.tokens[start:]

    @staticmethod
    def _end(tracks: list[_Track], reason: str) -> None:
        for track in tracks:
            track.finish = reason

    def _stop(self, plan: Plan, tracks: list[_Track], reason: str) -> Plan:
        self._prompt_end = time.perf_counter()
        self._prompt_s = self._prompt_end - self._started
        self._end(tracks, reason)
        return plan

    def _flush(self, track: _Track, *, last: bool = False) -> None:
        chunk = self._chunk(track, last=last)
        if chunk is not None:
            self._emit.chunk(chunk)

    def _chunk(self, track: _Track, *, last: bool = False) -> Chunk | None:
        """Return what has gathered since the last chunk, None where nothing has."""
        count = len(track.tokens)  # on another thread, more may follow at any moment
        self._spell(track, count)
        text = track.text.take() + (track.text.finish() if last else "")
        self._flushed = time.perf_counter()
        if not text and track.sent == count:
            return None
        tokens, logprobs = tuple(track.tokens[track.sent : count]), tuple(track.logprobs[track.sent : count])
        track.sent = count
        return Chunk(text, tokens, logprobs, track.index)

    # -- the end ---------------------------------------------------------------------------

    def _completion(
        self, made: Prompt, plan: Plan, tracks: list[_Track], receipt: Callable[[Timings, str], Receipt | None]
    ) -> Completion:
        now = time.perf_counter()
        samples = tuple(
            Sample(track.text.text, tuple(track.tokens), track.finish, tuple(track.logprobs)) for track in tracks
        )
        first = samples[0]
        timings = Timings(
            prompt_tokens=len(made.tokens),
            cached_tokens=min(plan.keep, len(made.tokens)),
            prompt_s=self._prompt_s,
            generated_tokens=sum(len(sample.tokens) for sample in samples),
            generation_s=now - self._prompt_end,
            time_to_first_token_s=self._first_s,
            load_s=self._load_s,
        )
        return Completion(
            text=first.text,
            tokens=first.tokens,
            finish_reason=first.finish_reason,
            timings=timings,
            receipt=receipt(timings, made.template),
            logprobs=first.logprobs,
            samples=samples,
            notes=made.notes,
        )
