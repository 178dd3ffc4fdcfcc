"""How results of evaluations look, in a terminal and in a notebook. Pure strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_magic.evaluation.requests import distinct_names, short_name
from llama_magic.evaluation.running_plot import running_plot
from llama_magic.markup import bar, details, heading, note, page, table, text_table
from llama_magic.units import format_seconds

__all__ = ["figures", "html_of", "statistics_of", "text_of"]


def _compared(item: Any) -> bool:
    """Tell a comparison with a base from a perplexity."""
    return hasattr(item, "base")


def _with_error(value: float, error: float, digits: int, unit: str = "") -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}{unit}"


def _percent(value: float, error: float | None = None, digits: int = 3) -> str:
    if error is None:
        return f"{100 * value:.{digits}f} %"
    return _with_error(100 * value, 100 * error, digits, " %")


# -- text --------------------------------------------------------------------------------------------------------------


def statistics_of(item: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the statistics of a comparison as llama-perplexity prints them: by heading, name and value."""
    kld = [("Mean KLD", _with_error(item.kld, item.kld_error, 6))]
    kld += [(f"{name} KLD", f"{value:.6f}") for name, value in item.kld_percentiles.items()]
    token = [("Mean Δp", _percent(item.dp, item.dp_error))]
    token += [(f"{name} Δp", _percent(value)) for name, value in item.dp_percentiles.items()]
    token += [
        ("RMS Δp", _percent(item.rms_dp, item.rms_dp_error)),
        ("Same top p", _percent(item.same_top, item.same_top_error)),
    ]
    return {
        "Perplexity statistics": [
            ("Mean PPL(Q)", _with_error(item.ppl, item.ppl_error, 6)),
            ("Mean PPL(base)", _with_error(item.ppl_base, item.ppl_base_error, 6)),
            ("Cor(ln(PPL(Q)), ln(PPL(base)))", _percent(item.correlation, digits=2)),
            ("Mean ln(PPL(Q)/PPL(base))", _with_error(item.ln_ratio, item.ln_ratio_error, 6)),
            ("Mean PPL(Q)/PPL(base)", _with_error(item.ratio, item.ratio_error, 6)),
            ("Mean PPL(Q)-PPL(base)", _with_error(item.difference, item.difference_error, 6)),
        ],
        "KL divergence statistics": kld,
        "Token probability statistics": token,
    }


def _how(item: Any) -> str:
    """Say what was read."""
    of = "" if item.complete else f" of {item.chunks_total:,}"
    moved = f", a window of {item.n_ctx:,} tokens moved by {item.stride:,}" if getattr(item, "stride", 0) else ""
    chunks = f"{item.chunks:,}{of} chunks" + ("" if moved else f" of {item.n_ctx:,} tokens")
    return f"{item.text}: {chunks}{moved}, {item.tokens:,} tokens scored, {format_seconds(item.seconds)}"


def _notes(items: Sequence[Any]) -> list[str]:
    said = list(dict.fromkeys(text for item in items for text in item.notes))
    if any(not item.complete for item in items):
        said.insert(0, "stopped before the end of the text: the figures are of what was read")
    return said


def text_of(items: Sequence[Any]) -> str:
    """Return results as text: one in llama-perplexity's words, several as a table."""
    if not items:
        return "nothing was evaluated"
    first = items[0]
    if len(items) > 1:
        against = f" against {short_name(first.base)}" if _compared(first) else ""
        lines = [f"{len(items)} models{against}", _how(first)]
        lines.append(text_table(_head(items), _rows(items), "l" + "r" * 9))
        return "\n".join([*lines, *_notes(items)])
    if not _compared(first):
        lines = [
            short_name(first.model),
            _how(first),
            f"Final estimate: PPL = {first.ppl:.4f} +/- {first.ppl_error:.5f}",
        ]
        return "\n".join([*lines, *_notes(items)])
    lines = [f"{short_name(first.model)} against {short_name(first.base)}", _how(first)]
    for title, rows in statistics_of(first).items():
        width = max(len(name) for name, _ in rows)
        lines += ["", f"====== {title} ======", *(f"{name:<{width}}: {value:>12}" for name, value in rows)]
    return "\n".join([*lines, *_notes(items)])


# -- tables ------------------------------------------------------------------------------------------------------------

_COMPARED = ("model", "Mean PPL(Q)", "ln(PPL(Q)/PPL(base))", "PPL(Q)-PPL(base)", "Mean KLD", "99.9% KLD", "RMS Δp",
             "Same top p")  # fmt: skip
_ALONE = ("model", "PPL", "95 % interval")


def _head(items: Sequence[Any]) -> tuple[str, ...]:
    return _COMPARED if _compared(items[0]) else _ALONE


def _rows(items: Sequence[Any]) -> list[tuple[str, ...]]:
    names = distinct_names([item.model for item in items])
    return [_row(item, name) for item, name in zip(items, names, strict=True)]


def _row(item: Any, name: str) -> tuple[str, ...]:
    if not _compared(item):
        low, high = item.running[-1].ppl_interval if item.running else (item.ppl, item.ppl)
        return (name, _with_error(item.ppl, item.ppl_error, 4), f"{low:.4f} to {high:.4f}")
    return (
        name,
        _with_error(item.ppl, item.ppl_error, 3),
        _with_error(item.ln_ratio, item.ln_ratio_error, 4),
        _with_error(item.difference, item.difference_error, 3),
        _with_error(item.kld, item.kld_error, 5),
        f"{item.kld_percentiles['99.9%']:.4f}",
        _percent(item.rms_dp, item.rms_dp_error, 2),
        _percent(item.same_top, item.same_top_error, 2),
    )


def figures(item: Any) -> dict[str, Any]:
    """Return the figures of a model as one flat row, unrounded."""
    row: dict[str, Any] = item.to_dict()
    for name in ("running", "notes"):
        row.pop(name)
    for name in ("kld_percentiles", "dp_percentiles"):
        if name in row:
            short = name.removesuffix("_percentiles")
            row |= {f"{short} {place}": value for place, value in row.pop(name).items()}
    return row


def html_of(items: Sequence[Any]) -> str:
    """Return results as HTML: a table, how the figures settled, and every statistic in a fold."""
    if not items:
        return page(note("nothing was evaluated"))
    first = items[0]
    title = "KL divergence" if _compared(first) else "Perplexity"
    against = f"against {short_name(first.base)} · " if _compared(first) else ""
    parts: list[object] = [heading(title, f"{against}{_how(first)}")]
    rows: list[tuple[object, ...]] = [tuple(cell.replace(" ", "\u00a0") for cell in row) for row in _rows(items)]
    if _compared(first):
        most = max(item.kld for item in items) or 1.0
        rows = [
            (*row[:4], bar(item.kld / most, row[4]), *row[5:]) if len(items) > 1 else row
            for item, row in zip(items, rows, strict=True)
        ]
    parts.append(table(_head(items), rows, "lrrrrrrr"[: len(_head(items))]))
    parts += [note(text, "warning" if text.startswith("stopped") else "info") for text in _notes(items)]
    if first.chunks > 1:
        parts.append(running_plot(items))
    if _compared(first):
        parts += [_all_statistics(item, open_=len(items) == 1) for item in items]
    parts.append(
        note("± is one standard error, as llama-perplexity prints it; shaded are 95 % confidence intervals.")
        if first.chunks > 1
        else note("± is one standard error, as llama-perplexity prints it.")
    )
    return page(*parts)


def _all_statistics(item: Any, *, open_: bool) -> object:
    tables = [table((title, ""), rows, "lr") for title, rows in statistics_of(item).items()]
    return details(f"All statistics of {short_name(item.model)}", *tables, open_=open_)
