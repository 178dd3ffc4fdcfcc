"""A comparison as Markdown, CSV, JSON, a page, SVG and PNG."""

from __future__ import annotations

import csv
import io
import json
import math
import secrets
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_magic._version import __version__
from llama_magic.errors import InvalidRequestError, MissingDependencyError
from llama_magic.evaluation.pareto_svg import PAPER

if TYPE_CHECKING:
    from llama_magic.evaluation.comparison import Comparison, LevelResult

__all__ = [
    "SUFFIXES",
    "figures",
    "receipt",
    "save",
    "to_csv",
    "to_html",
    "to_json",
    "to_markdown",
    "to_pandas",
    "to_png",
    "to_svg",
]

SUFFIXES = (".md", ".csv", ".json", ".html", ".svg", ".png")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 14px/1.5 system-ui, sans-serif; max-width: 75em; margin: 1.5em auto; padding: 0 1em }}
</style></head><body>
{body}
</body></html>
"""


def figures(level: LevelResult) -> dict[str, Any]:
    """Return the figures of one level, flat and unrounded."""
    row: dict[str, Any] = {
        "level": level.name, "ftype": level.ftype, "imatrix": level.imatrix, "reference": level.base,
        "size": level.size, "bits_per_weight": level.bits_per_weight,
    }  # fmt: skip
    for name in ("ppl", "ppl_change", "kld", "mean_dp", "rms_dp", "same_top"):
        found = getattr(level, name)
        row[name] = None if found is None else found.value
        row[f"{name}_error"] = None if found is None else found.error
    for name in ("prompt", "generation"):
        rate = getattr(level, name)
        row[f"{name}_tps"] = None if rate is None else rate.mean
        row[f"{name}_tps_sd"] = None if rate is None else rate.sd
    row |= {"load_s": level.load_s, "memory": level.memory, "where": level.where, "path": level.path}
    row |= {f"kld_{kind}": estimate.value for kind, estimate in level.kinds.items()}
    return row | {"answer": level.answer.text if level.answer else None, "error": level.error or None}


def _rows(comparison: Comparison) -> tuple[list[str], list[dict[str, Any]]]:
    rows = [figures(level) for level in comparison.levels]
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def to_pandas(comparison: Comparison) -> Any:
    """Return a `pandas.DataFrame`."""
    import pandas as pd

    names, rows = _rows(comparison)
    return pd.DataFrame(rows, columns=names)


def to_csv(comparison: Comparison) -> str:
    """Return CSV with a head; empty where nothing was measured."""
    names, rows = _rows(comparison)
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_json(comparison: Comparison) -> str:
    """Return JSON; numbers that are none become null, which JSON needs."""
    return json.dumps(_plain(comparison.to_dict()), ensure_ascii=False, indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def receipt(comparison: Comparison) -> dict[str, Any]:
    """Return what is needed to know how the figures came about, without paths: notebooks get published."""
    facts = {name: getattr(comparison, name) for name in ("model", "prompt", "seed", "text", "n_ctx", "chunks")}
    levels = [
        {name: value for name, value in figures(level).items() if name not in ("path", "answer") and value is not None}
        for level in comparison.levels
    ]
    known: dict[str, Any] = _plain({**facts, "machine": dict(comparison.machine), "levels": levels})
    return {**known, "llama_magic": __version__}


def to_markdown(comparison: Comparison) -> str:
    """Return a table of the form of llama.cpp's scoreboard, with the recommendation above it."""
    from llama_magic.evaluation.comparison_view import shown_columns

    columns = shown_columns(comparison.levels)
    head = ["Quantization", *(column.title for column in columns)]
    lines = [
        f"**{_cell(comparison.model)}**: {_cell(comparison.recommendation.sentence)}",
        "",
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for level in comparison.levels:
        name = _cell(level.name) + (" (reference)" if level.base else "")
        cells = [
            "" if column.value(level) is None and column.title != "imatrix" else _cell(column.text(level))
            for column in columns
        ]
        lines.append(f"| {' | '.join([name, *cells])} |")
    lines += ["", *(f"- {_cell(level.name)}: {_cell(level.error)}" for level in comparison.levels if level.error)]
    lines += [f"- {_cell(sentence)}" for sentence in comparison.notes]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    from llama_magic.models.card import clean

    return clean(text, 2000).replace("|", "\\|").replace("<", "&lt;")


def to_html(comparison: Comparison) -> str:
    """Return a page of its own, light or dark as the reader's system is."""
    from llama_magic.evaluation.comparison_view import html_of

    return _PAGE.format(title=escape(f"{comparison.model}: quantization levels"), body=html_of(comparison))


def to_svg(comparison: Comparison, x: str) -> str:
    """Return the chart as a file's text, dark on white."""
    from llama_magic.evaluation.comparison_view import chart

    if x not in ("size", "speed"):
        raise InvalidRequestError(f'the chart shows "size" or "speed" against quality; got {x!r}')
    drawn = chart(comparison, x, PAPER, sized=True)
    if drawn is None:
        raise InvalidRequestError(f"there is nothing to draw: no level has both a KL divergence and a {x}")
    return str(drawn) + "\n"


def to_png(comparison: Comparison, x: str, scale: float) -> bytes:
    """Return the chart as PNG."""
    drawn = to_svg(comparison, x)
    try:
        import resvg_py
    except ImportError:
        raise MissingDependencyError(
            "PNG needs the package resvg_py: pip install 'llama-magic[png]'; SVG works without it"
        ) from None
    return bytes(resvg_py.svg_to_bytes(svg_string=drawn, zoom=max(1, round(scale))))


def save(comparison: Comparison, path: Path) -> Path:
    """Write a file in the form that its ending names: as a whole, or not at all."""
    path = path.expanduser()
    makers: dict[str, Any] = {
        ".md": to_markdown, ".csv": to_csv, ".json": to_json, ".html": to_html,
        ".svg": lambda found: to_svg(found, "size"), ".png": lambda found: to_png(found, "size", 2.0),
    }  # fmt: skip
    make = makers.get(path.suffix.lower())
    if make is None:
        raise InvalidRequestError(f"{path.name!r} has to end in one of {', '.join(SUFFIXES)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidRequestError(
            f"{path} can not be written: {'it is a folder' if path.is_dir() else 'no such folder'}"
        )
    made = make(comparison)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(made if isinstance(made, bytes) else made.encode("utf-8"))
        part.replace(path)
    except OSError as error:
        raise InvalidRequestError(f"{path} can not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return path
