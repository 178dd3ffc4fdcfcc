"""Chat templates from GGUF files, run in jinja2's immutable sandbox: they are code from strangers."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama_magic.errors import ChatTemplateError
from llama_magic.inference.results import Message

__all__ = ["ChatTemplate"]


class _TemplateRefused(Exception):  # noqa: N818 - the template's own `raise_exception`
    """The template called `raise_exception`."""


def _raise_exception(message: str) -> None:
    raise _TemplateRefused(message)


def _to_json(value: Any, indent: int | None = None, **_ignored: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML; templates of language models want plain JSON.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(pattern: str) -> str:
    return dt.datetime.now().astimezone().strftime(pattern)


class ChatTemplate:
    """A chat template.

    Parameters
    ----------
    source
        Jinja source.
    bos_token, eos_token
        Texts that templates may use.

    Raises
    ------
    ChatTemplateError
        The source is no template.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # the result is a prompt, not a page
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as exc:
            raise ChatTemplateError(
                f"the model's chat template has an error: {exc}. --raw sends the prompt as it is."
            ) from exc

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt for a chat. Where a template knows no system role, its text goes before the first message.

        Raises
        ------
        ChatTemplateError
            The template fails on these messages.
        """
        try:
            return self._render(messages, add_generation_prompt)
        except _TemplateRefused as exc:
            if messages and messages[0].role == "system" and len(messages) > 1:
                first = Message(messages[1].role, f"{messages[0].content}\n\n{messages[1].content}")
                return self._guarded([first, *messages[2:]], add_generation_prompt)
            raise ChatTemplateError(f"the model's chat template refuses these messages: {exc}") from exc
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as exc:
            raise ChatTemplateError(
                f"the model's chat template failed: {exc}. --raw sends the prompt as it is."
            ) from exc

    def _guarded(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return self._render(messages, add_generation_prompt)
        except _TemplateRefused as exc:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {exc}") from exc

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return self._template.render(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=add_generation_prompt,
            **self._special,
        )
