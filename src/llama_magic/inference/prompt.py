"""From messages or text to tokens."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from llama_magic.inference.results import Message
from llama_magic.inference.template import ChatTemplate
from llama_magic.native import NativeModel

__all__ = ["Prompt", "PromptBuilder"]

NO_TEMPLATE = "This model has no chat template: it continues the text rather than answering it."


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens of a prompt, how they were made ("chat" or "completion"), and notes for the user."""

    tokens: tuple[int, ...]
    template: str
    notes: tuple[str, ...] = ()


class PromptBuilder:
    """Makes prompts for one model."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        source = model.chat_template
        self._template = (
            ChatTemplate(source, bos_token=model.special("bos"), eos_token=model.special("eos")) if source else None
        )
        self._control: re.Pattern[str] | None = None

    @property
    def has_template(self) -> bool:
        """False for a base model."""
        return self._template is not None

    def text(self, text: str) -> Prompt:
        """Return the prompt that continues `text`; special tokens written in it count as such."""
        return Prompt(tuple(self._model.tokenize(text, add_special=True, parse_special=True)), "completion")

    def chat(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt that answers a chat, or continues its text where the model has no template.

        What users write stays text: ``<|im_end|>`` typed by a person does not end their turn.
        """
        if self._template is None:
            text = "\n".join(message.content for message in messages)
            tokens = self._model.tokenize(text, add_special=True, parse_special=False)
            return Prompt(tuple(tokens), "completion", (NO_TEMPLATE,))
        marked, literals = self._mark(messages)
        rendered = self._template.render(marked)
        return Prompt(tuple(self._tokenize(rendered, literals)), "chat")

    def beginning(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that any next turn begins with.

        They are found by rendering two turns: templates may treat earlier answers otherwise than the last.
        """
        one, other = (self.chat((*messages, Message("user", text))).tokens for text in ("0", "1"))
        count = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
        return list(one[:count])

    def _mark(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Replace control-token texts inside contents by marks that no template knows."""
        if self._control is None:
            texts = self._model.control_texts()
            self._control = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        control, literals = self._control, dict[str, str]()

        def replace(match: re.Match[str]) -> str:
            mark = f"\x02{uuid.uuid4().hex}\x03"
            literals[mark] = match[0]
            return mark

        marked = [Message(message.role, control.sub(replace, message.content)) for message in messages]
        return marked, literals

    def _tokenize(self, rendered: str, literals: dict[str, str]) -> list[int]:
        model = self._model
        bos = model.special("bos")
        add_special = not (bos and rendered.startswith(bos))
        if not literals:
            return model.tokenize(rendered, add_special=add_special, parse_special=True)
        tokens: list[int] = []
        # Odd parts are the marks: their text is tokenized as plain characters.
        for number, part in enumerate(re.split("(" + "|".join(map(re.escape, literals)) + ")", rendered)):
            if number % 2:
                tokens += model.tokenize(literals[part], add_special=False, parse_special=False)
            elif part:
                tokens += model.tokenize(part, add_special=add_special and not tokens, parse_special=True)
        return tokens
