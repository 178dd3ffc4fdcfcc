"""Subcommands about memory."""

from __future__ import annotations

from dataclasses import dataclass

from llama_magic.api.fit import fit_options
from llama_magic.markup import note, page, table, text_table
from llama_magic.models.options import LoadOptions, ModelInfo
from llama_magic.notebook.commands import Context
from llama_magic.notebook.parsers import Arguments
from llama_magic.units import format_bytes


def fit(context: Context, arguments: Arguments) -> object:
    """``%llama fit [model] [flags]``."""
    session = context.session
    ref = arguments.get("ref", arguments.word) or (session.model.ref if session.model else session.default_model)
    keywords = {**session.options.to_dict(), **arguments.group("loading")}
    whole = keywords["n_ctx"] == 0  # llama-cli's "as long as the model was trained for"
    if whole:
        keywords["n_ctx"] = None
    return fit_options(ref, LoadOptions.from_keywords(**keywords), context.on_progress, whole=whole)


@dataclass(frozen=True, slots=True, repr=False)
class LoadedModels:
    """The loaded models, the one used last at the end."""

    models: tuple[ModelInfo, ...]
    current: str | None

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                "*" if info.path == self.current else "",
                info.name,
                info.ftype,
                f"{info.n_ctx:,}",
                format_bytes(info.memory),
                ", ".join(info.devices),
            )
            for info in self.models
        ]

    def __repr__(self) -> str:
        if not self.models:
            return "No model is loaded."
        return text_table(_HEAD, self._rows(), "lllrrl") + f"\n{_EXPLAINED}"

    def _repr_html_(self) -> str:
        if not self.models:
            return page(note("No model is loaded."))
        return page(table(_HEAD, self._rows(), "lllrrl"), note(_EXPLAINED))


_HEAD = ("", "model", "ftype", "context", "memory", "devices")
_EXPLAINED = "* is the current model; the last one was used last. Where memory runs short, the first goes first."


def loaded(context: Context, _arguments: Arguments) -> object:
    """``%llama loaded``: starts no worker."""
    model = context.session.model
    return LoadedModels(context.session.loaded(), model.path if model else None)
