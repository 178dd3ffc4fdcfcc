"""How plans and results of quantizing look, in a terminal and in a notebook. Pure strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llama_magic.markup import Html, badge, bar, details, facts, heading, note, page, table, tensor_map, text_table
from llama_magic.units import format_bytes, format_count, format_rate, format_seconds

__all__ = ["figures", "html_of", "text_of"]

_MOST_MAPS = 12


def _made(item: Any) -> bool:
    """Tell a result from a plan."""
    return hasattr(item, "seconds")


def figures(item: Any) -> dict[str, Any]:
    """Return the figures of one row of the table, unrounded."""
    row = {
        "ftype": item.ftype,
        "size": item.size,
        "of_source": item.size / item.source_size if item.source_size else 0.0,
        "bits_per_weight": item.bits_per_weight,
        "fallbacks": len(item.fallbacks),
        "tensors": len(item.tensors),
    }
    if _made(item):
        row |= {"seconds": item.seconds, "path": str(item.path)}
    else:
        row |= {"needs_imatrix": item.needs_imatrix, "requantizes": item.requantizes}
    return row


def _mix(item: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in item.types.items())


def _demands(plan: Any) -> list[str]:
    found = ["importance matrix"] if plan.needs_imatrix else []
    return [*found, *(["--allow-requantize"] if plan.requantizes else [])]


def _last(item: Any) -> str:
    return format_seconds(item.seconds) if _made(item) else ", ".join(_demands(item)) or "nothing"


def _head(made: bool) -> tuple[str, ...]:
    return ("type", "size", "of source", "bits/weight", "fell back", "tensors", "time" if made else "needs")


def _fallen(item: Any) -> str:
    return f"{len(item.fallbacks)} of {len(item.tensors)}" if item.fallbacks else "none"


def _row(item: Any) -> tuple[str, ...]:
    share = f"{100 * item.size / item.source_size:.0f} %" if item.source_size else ""
    bits = f"{item.bits_per_weight:.2f}"
    return (item.ftype, format_bytes(item.size), share, bits, _fallen(item), _mix(item), _last(item))


def _once(items: Sequence[Any], name: str) -> list[str]:
    """Return the sentences of all items, each once; what is not said of all begins with the type."""
    said: dict[str, list[str]] = {}
    for item in items:
        for sentence in getattr(item, name):
            said.setdefault(sentence, []).append(item.ftype)
    return [text if len(of) == len(items) else f"{', '.join(of)}: {text}" for text, of in said.items()]


def _kinds(items: Iterable[Any]) -> list[tuple[str, str, str, int]]:
    """Return what fell back, grouped: type, wanted and given type with the reason, how many tensors."""
    groups: dict[tuple[str, str, str], int] = {}
    for item in items:
        for tensor in item.fallbacks:
            key = (item.ftype, f"{tensor.wanted} → {tensor.type}", tensor.reason)
            groups[key] = groups.get(key, 0) + 1
    return [(*key, count) for key, count in groups.items()]


def text_of(items: Sequence[Any]) -> str:
    """Return plans or results as text."""
    if not items:
        return "nothing was made"
    first = items[0]
    title = f"{Path(first.source).name}: {format_bytes(first.source_size)}, {format_count(first.n_params)} weights"
    lines = [title, text_table(_head(_made(first)), map(_row, items), "lrrrlll")]
    lines += [
        f"{ftype}: {count} tensor{'' if count == 1 else 's'} {change} ({reason})"
        for ftype, change, reason, count in _kinds(items)
    ]
    lines += [f"warning: {sentence}" for sentence in _once(items, "warnings")]
    lines += _once(items, "notes")
    if _made(first):
        lines += [str(item.path) for item in items]
    return "\n".join(lines)


def _html_row(item: Any, largest: float) -> tuple[object, ...]:
    name, size, share, bits, fallen, mix, last = _row(item)
    marked = badge(fallen, "warning") if item.fallbacks else fallen
    demands = last if _made(item) or not _demands(item) else badge(last, "warning")
    return (name, bar(item.size / largest, size), share, bits, marked, mix, demands)


def _map(item: Any) -> Html:
    marks = {tensor.name: f"fell back from {tensor.wanted}: {tensor.reason}" for tensor in item.fallbacks}
    drawn = tensor_map(((tensor.name, tensor.type) for tensor in item.tensors), marks)
    return details(f"{item.ftype}: type of every tensor, by layer", drawn)


def html_of(items: Sequence[Any]) -> str:
    """Return plans or results as HTML: a table, what fell back and why, and a map of the tensors for each."""
    if not items:
        return page(note("nothing was made"))
    first = items[0]
    more = f"{format_bytes(first.source_size)}, {format_count(first.n_params)} weights"
    parts: list[object] = [heading(Path(first.source).name, f"{'quantized' if _made(first) else 'plan'} · {more}")]
    largest = max(1, first.source_size, *(item.size for item in items))
    parts.append(table(_head(_made(first)), [_html_row(item, largest) for item in items], "lrrrlll"))
    parts += [note(sentence, "warning") for sentence in _once(items, "warnings")]
    parts += [note(sentence) for sentence in _once(items, "notes")]
    if _made(first):
        parts.append(facts([(item.ftype, str(item.path)) for item in items]))
    kinds = _kinds(items)
    if kinds:
        inner = table(("type", "wanted → got", "why", "tensors"), kinds, "lllr")
        parts.append(details("What fell back, and why", inner, open_=len(kinds) <= 6))
    parts += map(_map, items[:_MOST_MAPS])
    if _made(first):
        parts.append(details("How it was made", *(facts(_making(item)) for item in items)))
    return page(*parts)


def _making(item: Any) -> list[tuple[object, object]]:
    rate = f", {format_rate(item.source_size / item.seconds)} of the source" if item.seconds else ""
    threads = f"{item.n_threads} thread{'' if item.n_threads == 1 else 's'}"
    rows: list[tuple[object, object]] = [(item.ftype, f"{format_seconds(item.seconds)} on {threads}{rate}")]
    rows += [(key, str(value)) for key, value in item.provenance.items()]
    return rows
