"""How a `BenchResult` looks, as text and as HTML with a bar chart."""

from __future__ import annotations

from pathlib import Path

from llama_magic.evaluation.bench import BenchResult, BenchRow
from llama_magic.evaluation.bench_formats import varying
from llama_magic.evaluation.bench_svg import Bar, bars_svg
from llama_magic.markup import Html, details, facts, heading, note, page, table, text_table
from llama_magic.models.card import clean
from llama_magic.units import format_bytes, format_count, format_seconds

__all__ = ["html", "labels", "text"]

_METHOD = (
    "As llama-bench measures: random tokens, a warm-up first, no tokenizing and no sampling, what is in the cache "
    "before is not timed. The repetitions of all rows take turns, forwards and backwards, so that a machine that "
    "becomes slower or faster meanwhile does so for all; each backend has a worker of its own, which is asked in turn. "
    "± is the standard deviation of the repetitions."
)


def labels(rows: list[BenchRow]) -> list[str]:
    """Return what tells each row from the others, apart from its test; empty where nothing does."""
    columns: dict[str, list[str]] = {}
    if len({row.path for row in rows}) > 1:
        names = [clean(_short(row.ref)) for row in rows]
        columns[""] = names if len(set(names)) == len({row.path for row in rows}) else [clean(r.ref) for r in rows]
    if len({row.backend for row in rows}) > 1:
        columns["backend"] = [clean(row.backend) or "as built" for row in rows]
    if len({row.n_threads for row in rows}) > 1:
        columns["-t"] = [str(row.n_threads) for row in rows]
    if len({row.options.n_gpu_layers for row in rows}) > 1:
        columns["-ngl"] = [str(row.options.n_gpu_layers) for row in rows]
    for name, values in varying(rows).items():
        if len(set(map(str, values))) > 1:
            shown = {"fa": {-1: "auto", 0: "off", 1: "on"}}.get(name, {})
            columns[_FLAGS.get(name, name)] = [str(shown.get(value, value)) for value in values]
    return [" ".join(f"{name} {cells[at]}".strip() for name, cells in columns.items()) for at in range(len(rows))]


_FLAGS = {
    "n_cpu_moe": "-ncmoe", "n_batch": "-b", "n_ubatch": "-ub", "type_k": "-ctk", "type_v": "-ctv", "sm": "-sm",
    "nkvo": "-nkvo", "fa": "-fa", "dev": "-dev", "lm": "-lm",
}  # fmt: skip


def _short(ref: str) -> str:
    return Path(ref).name.removesuffix(".gguf") if ref.endswith(".gguf") else ref


def _shared(result: BenchResult) -> list[tuple[str, str]]:
    """Return what is the same for all rows."""
    known = [row.facts for row in result.rows if row.facts is not None]
    if not known:
        return []
    first, pairs = known[0], list[tuple[str, str]]()
    if len({row.path for row in result.rows}) == 1:
        size = f"{format_bytes(first.model_size)}, {format_count(first.model_n_params)} parameters"
        pairs.append(("model", f"{clean(result.rows[0].ref)}: {clean(first.model_type)}, {size}"))
    parts = (part for facts in known for part in f"{facts.cpu_info}, {facts.gpu_info}".split(", ") if part)
    pairs.append(("machine", clean(", ".join(dict.fromkeys(parts)))))
    threads = sorted({facts.n_threads for facts in known})
    if len(threads) == 1:
        pairs.append(("threads", str(threads[0])))
    devices = dict.fromkeys(name for facts in known for name in facts.devices)
    pairs.append(("weights on", clean(", ".join(devices))))
    pairs.append(("llama.cpp", first.build_commit))
    return pairs


def _cells(row: BenchRow, label: str) -> tuple[str, str, str, str, str]:
    if row.error:
        return label, row.test.name, "not measured", "", clean(row.error)
    if not row.samples_ns:
        return label, row.test.name, "", "", "not yet"
    spread = f"± {row.stddev_ts:,.2f}" if len(row.samples_ns) > 1 else ""
    least, most = min(row.samples_ts), max(row.samples_ts)
    ran = f"{len(row.samples_ns)}: {least:,.1f} to {most:,.1f}" if len(row.samples_ns) > 1 else "1"
    return label, row.test.name, f"{row.avg_ts:,.2f}", spread, ran


def _table(result: BenchResult) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    named = labels(list(result.rows))
    rows: list[tuple[str, ...]] = [_cells(row, label) for row, label in zip(result.rows, named, strict=True)]
    head: tuple[str, ...] = ("", "test", "tok/s", "", "repetitions")
    if not any(named):
        return head[1:], [row[1:] for row in rows], "lrll"
    return head, rows, "llrll"


def _state(result: BenchResult) -> str:
    if result.stopped:
        done = sum(len(row.samples_ns) for row in result.rows)
        wanted = result.repetitions * sum(not row.error for row in result.rows)
        return f"stopped after {done} of {wanted} repetitions"
    return f"{result.repetitions} repetition{'' if result.repetitions == 1 else 's'} each"


def text(result: BenchResult) -> str:
    """Return the result as plain text."""
    lines = [text_table(*_table(result))]
    lines.append(f"{_state(result)}, {format_seconds(result.seconds)}")
    lines += [f"{name}: {value}" for name, value in _shared(result)]
    lines += [clean(line) for line in result.notes]
    return "\n".join(lines)


def html(result: BenchResult) -> str:
    """Return the result as HTML: a chart, the table behind it, and how it was measured."""
    parts: list[object] = [heading("tokens per second", f"{_state(result)} · {format_seconds(result.seconds)}")]
    if result.stopped:
        parts.append(note("stopped before its end: rows may have fewer repetitions", "warning"))
    parts.append(_chart(result))
    parts.append(table(*_table(result)))
    parts += [note(line) for line in result.notes]
    parts += [note(f"{row.test.name}: {clean(row.error)}", "error") for row in result.rows if row.error]
    parts.append(facts(_shared(result)))
    parts.append(details("How it was measured", note(_METHOD)))
    return page(*parts)


def _chart(result: BenchResult) -> Html:
    named = labels(list(result.rows))
    groups: dict[str, list[Bar]] = {}
    for row, label in zip(result.rows, named, strict=True):
        if row.samples_ns:
            groups.setdefault(row.test.name, []).append(
                Bar(label or clean(_short(row.ref)), row.avg_ts, row.stddev_ts, len(row.samples_ns))
            )
    return bars_svg(groups) if groups else Html("")
