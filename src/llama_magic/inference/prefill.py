"""Processing what a cache does not hold of a prompt, and what the next turn begins with before it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llama_magic.errors import ContextFullError
from llama_magic.inference.cache import Plan
from llama_magic.inference.results import Message
from llama_magic.inference.runtime import ModelRuntime
from llama_magic.native import Aborted, NativeContext, NativeModel, NoSlot

__all__ = ["TAIL", "begin_next_turn", "goes_ahead", "prefill"]

#: So many tokens may follow what the cache holds after an answer: the end of the turn, and what begins the next.
TAIL = 32


def prefill(
    runtime: ModelRuntime,
    context: NativeContext,
    plan: Plan,
    cancelled: Callable[[], bool],
    *,
    make_room: Callable[[], bool] | None = None,
    progress: Callable[[float], None] | None = None,
    logits: bool = True,
) -> bool:
    """Process what the cache does not hold of a plan's tokens; False when cancelled, with what is done kept.

    Parameters
    ----------
    runtime, context, plan
        The model, and what is to be done where.
    cancelled
        Asked before every ubatch.
    make_room
        Called where the cache is full; True where another attempt is worth it.
    progress
        Told the share that is done, 0 to 1, before every ubatch.
    logits
        Keep the logits of the last token.

    Raises
    ------
    ContextFullError
        The cache is full.
    """
    slot, tokens, at = plan.slot, plan.tokens, plan.keep
    todo = len(tokens) - at
    while at < len(tokens):
        if cancelled():
            return False
        if progress is not None:
            progress((at - plan.keep) / todo)
        part = tokens[at : at + context.n_ubatch]
        try:
            context.prefill(part, at, slot.seq, logits=logits and at + len(part) == len(tokens))
        except Aborted:
            del slot.tokens[context.last_position(slot.seq) + 1 :]
            return False
        except NoSlot:
            if make_room is not None and make_room():
                continue
            raise ContextFullError(len(tokens), runtime.n_ctx, runtime.model.n_ctx_train) from None
        slot.tokens.extend(part)
        at += len(part)
    return True


def goes_ahead(model: NativeModel) -> bool:
    """Tell whether tokens that only most next turns begin with do no harm: the cache can be cut back to before them."""
    return not (model.is_recurrent or model.n_swa)


def begin_next_turn(
    runtime: ModelRuntime, conversation: str, messages: Sequence[Message], cancelled: Callable[[], bool]
) -> int:
    """Process what the next turn of a conversation begins with whatever is asked in it; return how many tokens.

    That is the end of the answer and what the template puts before a question. None are processed where the
    cache would have to be cut back for it (a template that treats earlier answers otherwise than the last),
    where it could not be cut back later, and where it is full.

    Parameters
    ----------
    messages
        The conversation with its last answer.
    """
    if not goes_ahead(runtime.model):
        return 0
    tokens, cache = runtime.prompts.beginning(messages), runtime.chat()
    slot = cache.slots.get(conversation)
    if slot is None or len(tokens) >= runtime.n_ctx:
        return 0
    kept, left = cache.held(conversation, tokens)
    if kept < len(slot.tokens) or not 0 < left <= TAIL:
        return 0
    before = len(slot.tokens)
    try:
        prefill(runtime, cache.context, cache.plan(conversation, tokens), cancelled, logits=False)
    except ContextFullError:
        return 0
    return len(slot.tokens) - before
