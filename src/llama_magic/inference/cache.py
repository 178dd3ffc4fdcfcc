"""What a context holds already, so that it is not processed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_magic.native import NativeContext, NativeModel

__all__ = ["ConversationCache", "Plan", "Slot", "SoloCache"]


@dataclass(slots=True)
class Slot:
    """One sequence of a context and the tokens it holds.

    It can be cut back to no fewer than `floor` tokens: a restored state lacks what a sliding window had left behind.
    """

    seq: int
    tokens: list[int] = field(default_factory=list)
    used: int = 0
    floor: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for a prompt.

    Attributes
    ----------
    slot
        Where it goes.
    tokens
        The prompt's tokens; where the cache holds the same text in other tokens, those.
    keep
        How many of them the cache holds.
    logits
        Saved logits of the last token, shape (n_vocab,), when `keep` covers the whole prompt.
    """

    slot: Slot
    tokens: list[int]
    keep: int
    logits: Any = None


class SoloCache:
    """The cache of requests that stand alone: one prompt at a time.

    The same request must give the same answer whatever ran before it. Logits depend, in
    their last bits, on how a prompt was cut into batches and on where its keys lie in the
    cache. So a prompt always begins in an empty cache or after whole ubatches, which were
    computed in the same cut; and the logits after the last prompt are kept, so that running
    the same cell again processes nothing.
    """

    def __init__(self, context: NativeContext) -> None:
        self.context = context
        self.slot = Slot(0)
        self._prompt: tuple[int, ...] = ()
        self._logits: Any = None
        self._whole = 0  # tokens at the start that were computed as whole ubatches of a prompt

    def plan(self, tokens: Sequence[int]) -> Plan:
        """Prepare the cache for a prompt."""
        for seq in range(1, self.context.settings.n_seq_max):
            self.context.drop(seq)
        wanted = tuple(tokens)
        if wanted == self._prompt and self._logits is not None and self._cut(len(wanted)):
            return Plan(self.slot, list(wanted), len(wanted), self._logits)
        block = self.context.n_ubatch
        keep = min(_common(self.slot.tokens, wanted), len(wanted) - 1, self._whole) // block * block
        if not self._cut(keep):
            keep = 0
            self.context.clear()
            self.slot.tokens.clear()
        self._prompt, self._logits, self._whole = (), None, keep
        return Plan(self.slot, list(wanted), keep)

    def _cut(self, length: int) -> bool:
        if not self.context.cut(0, length):
            return False
        del self.slot.tokens[length:]
        return len(self.slot.tokens) == length

    def remember(self, tokens: Sequence[int]) -> None:
        """Keep the logits that the context has just computed for the end of a prompt."""
        self._prompt = tuple(tokens)
        self._whole = len(tokens) // self.context.n_ubatch * self.context.n_ubatch
        self._logits = self.context.logits(-1).copy()


class ConversationCache:
    """The cache of conversations: several at once, each in a sequence of its own.

    The least recently used one is dropped when there is no room.
    """

    def __init__(self, context: NativeContext, model: NativeModel) -> None:
        self.context = context
        self._model = model
        self.slots: dict[str, Slot] = {}
        self._clock = 0

    def plan(self, key: str, tokens: Sequence[int]) -> Plan:
        """Prepare the cache for a conversation's next prompt."""
        self._clock += 1
        slot = self.slots.get(key)
        if slot is None:
            slot = self._new_slot(key, tokens)
        slot.used = self._clock
        keep, rest = self._match(slot.tokens, tokens)
        keep, rest = (keep, rest) if len(rest) else (keep - 1, [slot.tokens[keep - 1]])
        wanted = slot.tokens[:keep] + rest
        if keep < len(slot.tokens) and (keep < slot.floor or not self.context.cut(slot.seq, keep)):
            self.context.drop(slot.seq)
            keep = slot.floor = 0
        del slot.tokens[keep:]
        return Plan(slot, wanted, keep)

    def held(self, key: str, tokens: Sequence[int]) -> tuple[int, int]:
        """Return how many tokens of a prompt's beginning the cache holds for a conversation, and how many are left."""
        slot = self.slots.get(key)
        if slot is None:
            return 0, len(tokens)
        kept, rest = self._match(slot.tokens, tokens)
        return kept, len(rest)

    def put(self, key: str, tokens: Sequence[int], state: memoryview) -> str:
        """Let a conversation begin with a state that was saved; return why that can not be, empty where it can."""
        self.forget(key)
        slot = self._new_slot(key, ())
        while not self.context.put_state(slot.seq, state):
            # Too little room is one reason of several, and no number says which it was.
            taken = sum(len(other.tokens) for other in self.slots.values())
            if taken + len(tokens) <= self.context.n_ctx or not self.evict(key):
                self.forget(key)
                return "llama.cpp does not take it"
        if self.context.last_position(slot.seq) != len(tokens) - 1:
            self.forget(key)
            return "its state does not belong to its tokens"
        self._clock += 1
        slot.tokens, slot.used = list(tokens), self._clock
        slot.floor = len(tokens) if self._model.n_swa else 0
        return ""

    def _new_slot(self, key: str, tokens: Sequence[int]) -> Slot:
        taken = {slot.seq for slot in self.slots.values()}
        free = [seq for seq in range(self.context.settings.n_seq_max) if seq not in taken]
        if not free:
            self.evict(keep=key)
            return self._new_slot(key, tokens)
        slot = Slot(free[0])
        donor = max(self.slots.values(), key=lambda other: _common(other.tokens, tokens), default=None)
        if donor is not None and not self._model.is_recurrent:
            shared = _common(donor.tokens, tokens)
            if shared and shared >= donor.floor:
                self.context.share(donor.seq, slot.seq, shared)
                slot.tokens, slot.floor = donor.tokens[:shared], donor.floor
        self.slots[key] = slot
        return slot

    def _match(self, cached: Sequence[int], wanted: Sequence[int]) -> tuple[int, list[int]]:
        """Return how many cached tokens to keep, and the tokens to process after them.

        A model's answer, put through the tokenizer again, may give other tokens than the model
        chose. So texts are compared: up to where the cached tokens spell what the wanted ones do.
        """
        piece = self._model.piece_with_special
        kept = after = i = j = _common(cached, wanted)
        length_cached = length_wanted = 0
        text_cached, text_wanted = bytearray(), bytearray()
        while True:
            if length_cached <= length_wanted:
                if i == len(cached):
                    break
                data = piece(cached[i])
                text_cached += data
                length_cached += len(data)
                i += 1
            else:
                if j == len(wanted):
                    break
                data = piece(wanted[j])
                text_wanted += data
                length_wanted += len(data)
                j += 1
            shorter = min(length_cached, length_wanted)
            if text_cached[:shorter] != text_wanted[:shorter]:
                break
            if length_cached == length_wanted:
                kept, after = i, j
                text_cached.clear()
                text_wanted.clear()
                length_cached = length_wanted = 0
        return kept, list(wanted[after:])

    def evict(self, keep: str) -> bool:
        """Drop the least recently used conversation but `keep`; False where there is no other."""
        others = [name for name in self.slots if name != keep]
        if not others:
            return False
        self.forget(min(others, key=lambda name: self.slots[name].used))
        return True

    def forget(self, key: str) -> None:
        """Drop one conversation, if it is there."""
        slot = self.slots.pop(key, None)
        if slot is not None:
            self.context.drop(slot.seq)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for one, other in zip(first, second):  # noqa: B905 - the shorter one ends it
        if one != other:
            break
        count += 1
    return count
