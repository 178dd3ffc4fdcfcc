"""How a converted checkpoint looks, in a terminal and in a notebook. Pure strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_magic.markup import Html, facts, heading, note, page
from llama_magic.quantization import views
from llama_magic.units import format_bytes, format_count, format_seconds

__all__ = ["html_of", "text_of"]

_KINDS = {
    "model": "model",
    "mmproj": "projector for images or sound",
    "vocab": "vocabulary only",
    "adapter": "LoRA adapter",
}


def _rows(result: Any) -> list[tuple[str, str]]:
    rows = [("architecture", result.architecture), ("kind", _KINDS[result.kind])]
    if result.kind != "vocab":
        mix = ", ".join(f"{count} {name}" for name, count in result.types.items())
        weights = f"{format_bytes(result.source_size)} → " if result.source_size else ""
        rows += [
            ("type", f"{result.ftype} ({mix})"),
            ("size", f"{weights}{format_bytes(result.size)}, {format_count(result.n_params)} weights"),
        ]
    else:
        rows.append(("size", format_bytes(result.size)))
    rows.append(("time", format_seconds(result.seconds)))
    rows.append(("file", "temporary; what was made of it is below" if result.quantized else str(result.path)))
    return rows


def _title(result: Any) -> str:
    return Path(result.source).name or result.source


def text_of(result: Any) -> str:
    """Return the result as text."""
    rows = _rows(result)
    width = max(len(label) for label, _ in rows)
    lines = [f"{_title(result)}: converted to GGUF"]
    lines += [f"{label.ljust(width)}  {value}" for label, value in rows]
    lines += [f"warning: {sentence}" for sentence in result.warnings]
    lines += result.notes
    if result.quantized:
        lines += ["", views.text_of(result.quantized)]
    return "\n".join(lines)


def html_of(result: Any) -> str:
    """Return the result as HTML: facts, what is worth knowing, and what was quantized."""
    parts: list[object] = [heading(_title(result), "converted to GGUF"), facts(_rows(result))]
    parts += [note(sentence, "warning") for sentence in result.warnings]
    parts += [note(sentence) for sentence in result.notes]
    if result.quantized:
        parts.append(Html(views.html_of(result.quantized)))
    return page(*parts)
