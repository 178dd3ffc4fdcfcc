"""Subcommands about model files."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from llama_magic.api.inspect import inspect as inspect_model
from llama_magic.api.workers import prepare_soon
from llama_magic.errors import InvalidRequestError
from llama_magic.markup import Html, heading, note, page
from llama_magic.models.card import TensorTable, card, clean, clean_block
from llama_magic.models.metadata import ModelMetadata
from llama_magic.notebook.commands import Context
from llama_magic.notebook.highlight import code_block
from llama_magic.notebook.parsers import Arguments

_VIEWS = ("tensors", "template", "json")


class Inspected(ModelMetadata):
    """The metadata, shown with a coloured chat template."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return card(self, highlight=lambda source: Html(code_block(source, "jinja")))


@dataclass(frozen=True, slots=True, repr=False)
class ChatTemplate:
    """A model's chat template; `source` is its Jinja text, None where it has none."""

    model: str
    source: str | None

    def __repr__(self) -> str:
        return "It has no chat template." if self.source is None else clean_block(self.source)

    def _repr_html_(self) -> str:
        title = heading("chat template", clean(self.model))
        if self.source is None:
            return page(title, note("It has none: prompts are continued, not answered."))
        return page(title, Html(code_block(self.source, "jinja")))


def inspect(context: Context, arguments: Arguments) -> object:
    """``%llama inspect [model]``."""
    chosen = [name for name in _VIEWS if arguments.get(name)]
    if len(chosen) > 1:
        raise InvalidRequestError(f"inspect takes one of --tensors, --template and --json, not {len(chosen)}")
    metadata = inspect_model(_ref(context, arguments), progress=context.on_progress)
    prepare_soon()  # what was looked at is often quantized next
    if chosen == ["tensors"]:
        return TensorTable(metadata)
    if chosen == ["template"]:
        return ChatTemplate(metadata.name, metadata.chat_template)
    if chosen == ["json"]:
        return json.dumps(metadata.to_dict(), indent=1)
    return Inspected(*(getattr(metadata, field.name) for field in fields(metadata)))


def _ref(context: Context, arguments: Arguments) -> str:
    """Return the model to inspect: the one named, else the current one, else the default."""
    named = arguments.get("ref", arguments.word)
    if named is None:
        current = context.session.model
        return context.session.default_model if current is None else current.path
    return str(named)
