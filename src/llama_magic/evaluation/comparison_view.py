"""How a comparison looks, in a terminal and in a notebook. Pure strings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llama_magic.evaluation.answers_view import answers_html, answers_text
from llama_magic.evaluation.kinds_view import kinds_html
from llama_magic.evaluation.pareto_svg import NOTEBOOK, Point, Theme, pareto_svg
from llama_magic.evaluation.results import KLDivergence
from llama_magic.evaluation.views import statistics_of
from llama_magic.markup import Html, badge, details, facts, heading, join, note, page, table, text_table
from llama_magic.models.card import clean
from llama_magic.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from llama_magic.evaluation.comparison import Comparison, Figure, LevelResult

__all__ = ["COLUMNS", "Column", "chart", "html_of", "level_table", "shown_columns", "text_of"]

_LINE = "var(--jp-border-color2,#8884)"
_MUTED = "color:var(--jp-ui-font-color2,#6b6b6b)"
_GROUND = "var(--jp-layout-color0,Canvas)"


class Column:
    """One column of the table.

    Attributes
    ----------
    title, explained
        Its head, and what the pointer shows.
    value
        The figure, None where it was not measured.
    text
        How it is written.
    best
        "low" or "high" where there is a best, else empty.
    bar
        Whether its magnitude is drawn; on a logarithmic scale where "log".
    base
        The reference takes part in who is best.
    """

    __slots__ = ("bar", "base", "best", "explained", "text", "title", "value")

    def __init__(
        self,
        title: str,
        explained: str,
        value: Callable[[LevelResult], float | None],
        text: Callable[[LevelResult], str],
        best: str = "",
        bar: str = "",
        *,
        base: bool = True,
    ) -> None:
        self.title, self.explained, self.value, self.text = title, explained, value, text
        self.best, self.bar, self.base = best, bar, base


def _estimate(name: str) -> Callable[[LevelResult], float | None]:
    def value(level: LevelResult) -> float | None:
        found: Figure | None = getattr(level, name)
        return None if found is None or not math.isfinite(found.value) else found.value

    return value


def _told(name: str, digits: int, factor: float = 1.0, unit: str = "") -> Callable[[LevelResult], str]:
    def text(level: LevelResult) -> str:
        found: Figure | None = getattr(level, name)
        if found is None:
            return ""
        error = "" if found.error is None else f" ± {factor * found.error:.{digits}f}"
        return f"{factor * found.value:.{digits}f}{error}{unit}"

    return text


def _rate(name: str) -> tuple[Callable[[LevelResult], float | None], Callable[[LevelResult], str]]:
    def value(level: LevelResult) -> float | None:
        found = getattr(level, name)
        return None if found is None else float(found.mean)

    def text(level: LevelResult) -> str:
        found = getattr(level, name)
        if found is None:
            return ""
        digits = 0 if found.mean >= 100 else 1
        spread = f" ± {found.sd:.{digits}f}" if len(found.runs) > 1 else ""
        return f"{found.mean:.{digits}f}{spread}"

    return value, text


#: Those of the scoreboard in llama.cpp's perplexity README (size, PPL, ΔPPL, KLD, Δp), and what a machine adds.
COLUMNS: tuple[Column, ...] = (
    Column("imatrix", "importance matrix it was made with", lambda _level: None, lambda level: level.imatrix or "none"),
    Column("size", "bytes of the file", lambda level: level.size or None, lambda level: format_bytes(level.size),
           "low", "linear"),
    Column("bits/weight", "real bits per weight: bytes of all tensors by their weights",
           lambda level: level.bits_per_weight or None, lambda level: f"{level.bits_per_weight:.2f}", "low"),
    Column("prompt tok/s", "tokens read a second, mean ± standard deviation of the runs", *_rate("prompt"),
           "high", "linear"),
    Column("generation tok/s", "tokens generated a second, mean ± standard deviation of the runs",
           *_rate("generation"), "high", "linear"),
    Column("PPL", "perplexity of the text; lower is better", _estimate("ppl"), _told("ppl", 3), "low"),
    Column("ΔPPL", "difference to the reference's perplexity", _estimate("ppl_change"), _told("ppl_change", 4),
           base=False),
    Column("KLD", "mean KL divergence from the reference; lower is better (bar: logarithmic)", _estimate("kld"),
           _told("kld", 5), "low", "log", base=False),
    Column("Mean Δp", "mean change of the correct token's probability", _estimate("mean_dp"),
           _told("mean_dp", 3, 100, " %"), base=False),
    Column("RMS Δp", "root mean square of that change; lower is better", _estimate("rms_dp"),
           _told("rms_dp", 3, 100, " %"), "low", base=False),
    Column("same top", "tokens whose likeliest candidate is the reference's", _estimate("same_top"),
           _told("same_top", 2, 100, " %"), "high", base=False),
    Column("load", "time from the file to a model that can compute", lambda level: level.load_s,
           lambda level: "" if level.load_s is None else format_seconds(level.load_s), "low"),
    Column("memory", "bytes by which the worker grew with model, context and first computation",
           lambda level: level.memory, lambda level: "" if level.memory is None else format_bytes(level.memory), "low"),
)  # fmt: skip


def shown_columns(levels: Sequence[LevelResult]) -> list[Column]:
    """Return the columns in which something stands."""
    found = []
    for column in COLUMNS:
        if column.title == "imatrix":
            if any(level.imatrix for level in levels):
                found.append(column)
        elif any(column.value(level) is not None for level in levels):
            found.append(column)
    return found


def _best(column: Column, levels: Sequence[LevelResult]) -> float | None:
    values = [
        value for level in levels if (column.base or not level.base) and (value := column.value(level)) is not None
    ]
    if not column.best or len(values) < 2:
        return None
    return min(values) if column.best == "low" else max(values)


def _bar(column: Column, value: float, levels: Sequence[LevelResult]) -> float:
    values = [found for level in levels if (found := column.value(level)) is not None]
    if column.bar == "log":
        positive = [found for found in values if found > 0]
        if value <= 0 or not positive:
            return 0.0
        low, high = math.log10(min(positive)) - 0.5, math.log10(max(positive))
        return (math.log10(value) - low) / (high - low)
    return value / (max(values) or 1.0)


def level_table(levels: Sequence[LevelResult], chosen: str | None = None) -> Html:
    """Return the table: the best of each column bold and with a star, magnitudes as bars, names that stay in sight."""
    columns = shown_columns(levels)
    cell = "padding:.2em .8em .2em 0;vertical-align:top;background:none;border:0;text-align:right;white-space:nowrap"
    first = (
        f"padding:.2em .8em .2em 0;vertical-align:top;text-align:left;white-space:nowrap;position:sticky;left:0;"
        f"background:{_GROUND};border:0"
    )
    line = f"border-bottom:1px solid {_LINE};{_MUTED};font-weight:600"
    head = f'<th scope="col" style="{first};{line}">level</th>' + "".join(
        f'<th scope="col" title="{column.explained}" style="{cell};{line}">{column.title}</th>' for column in columns
    )
    bests = [_best(column, levels) for column in columns]
    rows = []
    for level in levels:
        name = join(clean(level.name), Html(" "), *_badges(level, chosen))
        cells = "".join(
            f'<td style="{cell};font-variant-numeric:tabular-nums">{_cell(column, level, best, levels)}</td>'
            for column, best in zip(columns, bests, strict=True)
        )
        rows.append(
            f'<tr style="background:none"><th scope="row" style="{first};font-weight:600">{name}</th>{cells}</tr>'
        )
    font = "font-size:var(--jp-ui-font-size1,13px);line-height:1.45"
    return Html(
        f'<div style="overflow-x:auto;max-width:100%;margin:.3em 0"><table style="border-collapse:collapse;margin:0;'
        f'{font};overflow-wrap:normal;color:inherit"><thead><tr style="background:none">{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _badges(level: LevelResult, chosen: str | None) -> list[Html]:
    found = []
    if level.base:
        found.append(badge("reference"))
    if level.name == chosen:
        found.append(badge("recommended", "good"))
    if level.error:
        found.append(badge("failed", "error"))
    return found


def _cell(column: Column, level: LevelResult, best: float | None, levels: Sequence[LevelResult]) -> str:
    value = column.value(level)
    if value is None:
        if column.title == "imatrix":
            return join(clean(column.text(level)))
        return f'<span style="{_MUTED}">—</span>'
    text = _small_error(column.text(level))
    marked = best is not None and value == best and (column.base or not level.base)
    shown = f'<b title="the best of this column">★ {text}</b>' if marked else text
    if not column.bar:
        return shown
    width = 100 * min(max(_bar(column, value, levels), 0.0), 1.0)
    return (
        f'<div>{shown}</div><div style="height:4px;border-radius:2px;background:var(--jp-layout-color3,#8883)">'
        f'<div style="height:4px;border-radius:2px;width:{width:.1f}%;background:var(--jp-brand-color1,#1976d2)">'
        "</div></div>"
    )


def _small_error(text: str) -> str:
    """Set what is behind ± smaller: the table is wide."""
    value, sign, error = text.partition(" ± ")
    return f'{value}<span style="{_MUTED};font-size:.85em;font-weight:400"> ± {error}</span>' if sign else text


# -- the chart --------------------------------------------------------------------------------------------------------


def chart(comparison: Comparison, x: str, theme: Theme = NOTEBOOK, *, sized: bool = False) -> Html | None:
    """Return the chart against "size" or "speed"; None where fewer than two levels have both."""
    points = [
        point
        for level in comparison.levels
        if not level.base and (point := _point(level, x, comparison.recommendation.level)) is not None
    ]
    if not points:
        return None
    base = comparison.base
    return pareto_svg(points, None if base is None else _base_place(base, x), x, theme, sized=sized)


def _base_place(base: LevelResult, x: str) -> tuple[str, float] | None:
    value = base.size if x == "size" else base.generation.mean if base.generation else 0
    return (clean(base.name), float(value)) if value else None


def _point(level: LevelResult, x: str, chosen: str | None) -> Point | None:
    kld = level.kld
    if kld is None or not math.isfinite(kld.value) or (x == "speed" and level.generation is None) or not level.size:
        return None
    place, spread = (float(level.size), 0.0) if x == "size" else (level.generation.mean, level.generation.sd)  # type: ignore[union-attr]
    return Point(clean(level.name), place, kld.value, spread, kld.error or 0.0, level.name == chosen)


# -- everything -------------------------------------------------------------------------------------------------------


def _title(comparison: Comparison) -> str:
    base = comparison.base
    count = len(comparison.levels) - (base is not None)
    against = f" against {base.name}" if base is not None else ""
    return f"{count} level{'' if count == 1 else 's'}{against}"


def _method(comparison: Comparison) -> list[tuple[str, str]]:
    rows: list[tuple[str, Any]] = []
    base = comparison.base
    if comparison.text:
        scored = f", {base.tokens:,} tokens scored" if base is not None and base.tokens else ""
        read = f"{comparison.text}: {comparison.chunks} chunks of {comparison.n_ctx} tokens{scored}"
        how = "perplexity and KL divergence by the method of llama-perplexity, reference and levels in lock step"
        rows.append(("text", f"{read}; {how}"))
    runs = next((level.generation for level in comparison.levels if level.generation), None)
    if runs is not None:
        machine = comparison.machine
        tests = f"{machine.get('n_prompt', 512)} tokens read, {machine.get('n_gen', 128)} generated"
        rows.append(("speed", f"{len(runs.runs)} runs of each level, in turns ({tests}), by llama-bench's method"))
    if comparison.prompt is not None:
        rows.append(("prompt", comparison.prompt if len(comparison.prompt) < 400 else comparison.prompt[:400] + "…"))
    told = [
        f"{key}: {value}" for key, value in comparison.machine.items() if key not in ("n_prompt", "n_gen") and value
    ]
    rows.append(("machine", ", ".join(told)))
    rows.append(("recommended", comparison.recommendation.rule))
    rows.append(("took", format_seconds(comparison.seconds)))
    return [(label, clean(text)) for label, text in rows if text]


def _sentences(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what has to be said, each with its tone."""
    found = [("Stopped: what is here was finished before.", "warning")] if comparison.interrupted else []
    found += [(sentence, "info") for sentence in comparison.notes]
    for level in comparison.levels:
        found += [(f"{level.name}: {level.error}", "error")] if level.error else []
        if level.kld_reason and not level.error:
            found.append((f"{level.name}: no KL divergence, {level.kld_reason}", "warning"))
    said: dict[str, list[str]] = {}
    for level in comparison.levels:
        for sentence in level.notes:
            said.setdefault(sentence, []).append(level.name)
    found += [(f"{', '.join(names)}: {sentence}", "info") for sentence, names in said.items()]
    return [(clean(text, 2000), tone) for text, tone in found]


def _statistics(comparison: Comparison) -> Html | None:
    """Return every statistic that llama-perplexity prints, a column for each level."""
    found = {
        clean(level.name): dict(pair for rows in statistics_of(level.evaluation).values() for pair in rows)
        for level in comparison.levels
        if isinstance(level.evaluation, KLDivergence)
    }
    if not found:
        return None
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    rows = [(name, *(values.get(name, "") for values in found.values())) for name in names]
    return details("all statistics of llama-perplexity", table(("statistic", *found), rows, "l" + "r" * len(found)))


def _judged(comparison: Comparison) -> bool:
    """Tell whether there is a recommendation, or was to be one: not where only answers were asked for."""
    return bool(comparison.text) or comparison.recommendation.level is not None


def html_of(comparison: Comparison) -> str:
    """Return everything as HTML."""
    chosen = comparison.recommendation.level
    callout = (
        "border-left:4px solid var(--jp-brand-color1,#1976d2);padding:.35em .8em;margin:.4em 0;"
        "background:var(--jp-layout-color2,#8881)"
    )
    parts: list[object] = [heading(clean(comparison.model), _title(comparison))]
    if _judged(comparison):
        sentence = clean(comparison.recommendation.sentence, 2000)
        parts.append(join(Html(f'<div style="{callout}">'), sentence, Html("</div>")))
    parts.append(level_table(comparison.levels, chosen))
    parts += [note(text, tone) for text, tone in _sentences(comparison)]
    charts = [found for x in ("size", "speed") if (found := chart(comparison, x)) is not None]
    if charts:
        box = '<div style="display:flex;flex-wrap:wrap;gap:.5em 1.5em;overflow-x:auto">'
        inner = "".join(f'<div style="flex:1 1 300px;max-width:520px">{drawn}</div>' for drawn in charts)
        parts.append(Html(f"{box}{inner}</div>"))
        told = "Filled: on the frontier, no level is better in both. Ringed: recommended."
        parts.append(note(f"{told} Bars: standard error of KLD, spread of the runs."))
    if any(level.answer for level in comparison.levels):
        parts.append(answers_html(comparison.levels))
    if any(level.kinds for level in comparison.levels):
        parts.append(kinds_html(comparison.levels))
    statistics = _statistics(comparison)
    if statistics is not None:
        parts.append(statistics)
    parts.append(details("how it was measured", facts(_method(comparison))))
    return page(*parts)


def text_of(comparison: Comparison) -> str:
    """Return everything as text."""
    columns = shown_columns(comparison.levels)
    bests = [_best(column, comparison.levels) for column in columns]

    def cell(column: Column, level: LevelResult, best: float | None) -> str:
        value = column.value(level)
        if value is None and column.title != "imatrix":
            return "-"
        mark = "*" if best is not None and value == best and (column.base or not level.base) else ""
        return mark + column.text(level)

    rows = [
        (clean(level.name) + (" (reference)" if level.base else ""),
         *(cell(column, level, best) for column, best in zip(columns, bests, strict=True)))
        for level in comparison.levels
    ]  # fmt: skip
    lines = [
        f"{clean(comparison.model)}: {_title(comparison)}",
        *([clean(comparison.recommendation.sentence, 2000)] if _judged(comparison) else []),
        text_table(("level", *(column.title for column in columns)), rows, "l" + "r" * len(columns)),
        "* is the best of its column",
    ]
    lines += [text for text, _ in _sentences(comparison)]
    if any(level.answer for level in comparison.levels):
        lines.append(answers_text(comparison.levels))
    return "\n".join(lines)
