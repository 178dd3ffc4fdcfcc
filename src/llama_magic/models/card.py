"""What a model's metadata look like: a page for the notebook and lines for a terminal.

All texts come from the file, so from strangers: they are cleaned of control characters and escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_magic.markup import (
    Html,
    badge,
    bar,
    details,
    facts,
    heading,
    join,
    note,
    page,
    table,
    tensor_map,
    text_table,
)
from llama_magic.models.metadata import ModelMetadata, TensorInfo
from llama_magic.units import format_bytes, format_count

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TensorTable", "card", "clean", "clean_block", "file_name", "rows", "summary"]

#: Rows of a tensor table and cells of a map that are shown; the data hold all.
MAX_ROWS = 2000
MAX_CELLS = 6000

#: Roles whose tokens are named first, and what they are called.
_ROLES = {"bos": "BOS", "eos": "EOS", "eot": "EOT", "padding": "padding", "unknown": "unknown"}
_PRE = "white-space:pre-wrap;overflow-wrap:anywhere;margin:.3em 0;max-height:24em;overflow:auto"


def clean(text: object, limit: int = 300) -> str:
    """Return a text from a file on one line, without control characters and changes of direction."""
    line = "".join(
        char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in str(text)[: limit + 1]
    )
    return line if len(line) <= limit else line[:limit] + "…"


def clean_block(text: str) -> str:
    """Return a text of several lines, made harmless in the same way."""
    return "\n".join(clean(line.expandtabs(), 20_000) for line in text.replace("\r\n", "\n").split("\n"))


@dataclass(frozen=True, slots=True, repr=False)
class TensorTable:
    """The tensors of a model, to be shown as a table; iterate over it, or take `to_pandas`."""

    metadata: ModelMetadata

    def __repr__(self) -> str:
        tensors = self.metadata.tensors
        text = text_table(("tensor", "type", "shape", "size"), map(_row, tensors[:MAX_ROWS]), "llrr")
        return text + (f"\n{_more(len(tensors))}" if len(tensors) > MAX_ROWS else "")

    def _repr_html_(self) -> str:
        tensors = self.metadata.tensors
        more = note(_more(len(tensors))) if len(tensors) > MAX_ROWS else ""
        caption = f"{len(tensors):,} tensors of {clean(self.metadata.name)}"
        return page(table(("tensor", "type", "shape", "size"), map(_row, tensors[:MAX_ROWS]), "llrr", caption), more)

    def __len__(self) -> int:
        return len(self.metadata.tensors)

    def __iter__(self) -> Any:
        return iter(self.metadata.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return the tensors as plain values."""
        return {"tensors": [tensor.to_dict() for tensor in self.metadata.tensors]}

    def to_pandas(self) -> pd.DataFrame:
        """Return them as a `pandas.DataFrame`."""
        return self.metadata.to_pandas()


def _row(tensor: TensorInfo) -> tuple[str, ...]:
    shape = " x ".join(f"{length:,}" for length in tensor.shape) or "1"
    return clean(tensor.name), tensor.type, shape, format_bytes(tensor.size)


def _more(count: int) -> str:
    return f"… and {count - MAX_ROWS:,} more; .tensors and to_pandas() hold all {count:,}."


def rows(metadata: ModelMetadata) -> list[tuple[str, str]]:
    """Return what is to be told of a model, as labels and values."""
    found = [
        ("architecture", _architecture(metadata)),
        ("parameters", f"{format_count(metadata.n_params)} ({metadata.n_params:,})"),
        ("file", f"{format_bytes(metadata.file_size)}{_files(metadata)}"),
        ("quantization", f"{metadata.ftype}, really {metadata.bits_per_weight:.2f} bits per weight"),
        ("context", f"{metadata.n_ctx_train:,} tokens" if metadata.n_ctx_train else ""),
        ("layers", f"{metadata.n_layer:,}" if metadata.n_layer else ""),
        ("embedding", f"{metadata.n_embd:,}" if metadata.n_embd else ""),
        ("attention", _attention(metadata)),
        ("KV cache", _kv(metadata)),
        ("vocabulary", _vocabulary(metadata)),
        ("special tokens", _special(metadata)),
        ("licence", clean(metadata.license or "the file names none")),
        *((label, clean(value)) for label, value in metadata.provenance.items()),
    ]
    if metadata.transferred:
        found.append(("read from the Hub", format_bytes(metadata.transferred)))
    return [(label, value) for label, value in found if value]


def summary(metadata: ModelMetadata) -> str:
    """Return the card for a terminal."""
    listed = rows(metadata)
    width = max(len(label) for label, _ in listed)
    lines = [
        f"{clean(metadata.name)} ({file_name(metadata)})",
        *(f"  {label:<{width}}  {value}" for label, value in listed),
    ]
    mix = ((share.type, share.count, format_bytes(share.size), f"{100 * share.share:.1f} %") for share in metadata.mix)
    if metadata.tensors:
        lines += ["", text_table(("type", "tensors", "size", "share"), mix, "lrrr")]
    template = metadata.chat_template
    if template is not None:
        lines += ["", f"chat template: {len(template):,} characters"]
    return "\n".join([*lines, *(f"! {clean(text)}" for text in metadata.warnings)])


def card(metadata: ModelMetadata, highlight: Callable[[str], Html] | None = None) -> str:
    """Return the card for a notebook.

    Parameters
    ----------
    highlight
        Makes escaped, coloured HTML of the chat template.
    """
    mix = [
        (share.type, f"{share.count:,}", format_bytes(share.size), bar(share.share, f"{100 * share.share:.1f} %"))
        for share in metadata.mix
    ]
    parts: list[object] = [
        heading(clean(metadata.name), join(badge(metadata.ftype), " ", file_name(metadata))),
        *(note(clean(text), "warning") for text in metadata.warnings),
        facts(rows(metadata)),
    ]
    if mix:
        parts += [table(("type", "tensors", "size", "share"), mix, "lrrl"), _map(metadata)]
    template = metadata.chat_template
    if template is not None:
        shown = (
            highlight(template)
            if highlight
            else join(Html(f'<pre style="{_PRE}">'), clean_block(template), Html("</pre>"))
        )
        parts.append(details(f"chat template, {len(template):,} characters", shown))
    return page(*parts)


def _map(metadata: ModelMetadata) -> Html:
    if len(metadata.tensors) > MAX_CELLS:
        return note(f"{len(metadata.tensors):,} tensors are too many for a map; .tensors and to_pandas() hold them.")
    cells = ((clean(tensor.name), tensor.type) for tensor in metadata.tensors)
    return details("tensors by layer and type", tensor_map(cells), open_=len(metadata.tensors) <= MAX_ROWS)


def file_name(metadata: ModelMetadata) -> str:
    """Return the file's name without its folder, or its reference on the Hub."""
    path = metadata.path
    return clean(path if path.startswith("hf:") else Path(path).name)


def _architecture(metadata: ModelMetadata) -> str:
    experts = metadata.n_expert
    text = clean(metadata.architecture)
    return f"{text}, {metadata.n_expert_used:,} of {experts:,} experts a token" if experts > 1 else text


def _files(metadata: ModelMetadata) -> str:
    return f" in {len(metadata.parts):,} parts" if metadata.parts else ""


def _attention(metadata: ModelMetadata) -> str:
    if not metadata.n_head:
        return ""
    return f"{metadata.n_head:,} heads, {metadata.n_head_kv:,} for keys and values"


def _kv(metadata: ModelMetadata) -> str:
    cache = metadata.kv_cache
    if not cache.known:
        return f"not known: {clean(cache.reason)}"
    types = [name for name in ("f16", "q8_0") if cache.allows(name)]
    parts = []
    if cache.layers:
        sizes = ", ".join(f"{format_bytes(1000 * cache.per_token(name))} as {name}" for name in types)
        parts.append(f"{sizes} for each 1,000 tokens")
    if cache.window_layers:
        sizes = ", ".join(f"{format_bytes(cache.window_size(name))} as {name}" for name in types)
        who = "1 layer sees" if cache.window_layers == 1 else f"{cache.window_layers:,} layers see"
        parts.append(f"{who} {cache.window:,} tokens, at most {sizes}")
    if cache.state:
        parts.append(f"a state of {format_bytes(cache.state)} that does not grow")
    return "; ".join(parts) or "none"


def _vocabulary(metadata: ModelMetadata) -> str:
    kind = clean(metadata.vocab_type)
    if not metadata.n_vocab:
        return kind
    return f"{metadata.n_vocab:,} tokens, {kind}" if kind else f"{metadata.n_vocab:,} tokens"


def _special(metadata: ModelMetadata) -> str:
    named = metadata.special_tokens
    return ", ".join(f"{label} {clean(named[role], 60)}" for role, label in _ROLES.items() if role in named)
