"""How a `Microscope` is shown, as text and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_magic.markup import Html, bar, details, facts, heading, note, page, table, text_table
from llama_magic.quantization.microscope_svg import histogram_svg, weights_svg

if TYPE_CHECKING:
    from llama_magic.quantization.microscope import BlockGroup, Microscope

__all__ = ["html", "text"]

#: Weights in the text and in the picture.
_IN_TEXT, _IN_PICTURE = 16, 32
_BARS = " ▁▂▃▄▅▆▇█"


def text(seen: Microscope) -> str:
    """Return a plain view: the first weights of the block, and the errors of the tensor."""
    rows = [_weight(seen, place) for place in range(min(len(seen.original), _IN_TEXT))]
    lines = [
        _title(seen),
        _where(seen),
        seen.formula,
        text_table(_heads(seen), rows, "r" * len(_heads(seen))),
    ]
    if len(seen.original) > _IN_TEXT:
        lines.append(f"… and {len(seen.original) - _IN_TEXT} more weights in this block")
    lines += [f"all {seen.n_blocks:,} blocks: {_stats(seen)}", _text_histogram(seen), *seen.notes]
    return "\n".join(line for line in lines if line)


def html(seen: Microscope) -> str:
    """Return the view with pictures."""
    group = seen.groups[0].length
    # Small groups are shown together, up to a picture's width; a large one in part.
    count = min(len(seen.original), _IN_PICTURE if group > _IN_PICTURE else group * (_IN_PICTURE // group))
    part = slice(0, count)
    same = len({(one.scale, one.minimum) for one in _groups_in(seen, count)}) == 1
    picture = weights_svg(seen.original[part], seen.quantized[part], _values(seen) if same else (), 0)
    every = range(len(seen.original))
    parts: list[object] = [
        heading(_title(seen), _where(seen)),
        *(note(line, "warning" if "falls back" in line or "needs an" in line else "info") for line in seen.notes),
        facts(_facts(seen)),
        heading(_caption(seen, count)),
        picture,
        details(f"The first {count} weights as numbers", _weights_table(seen, range(count)), open_=count <= 32),
    ]
    if len(seen.original) > count:
        parts.append(details(f"All {len(seen.original)} weights of the block", _weights_table(seen, every)))
    if len(seen.groups) > 1:
        parts.append(details(f"The {len(seen.groups)} groups: scales and minima", _groups_table(seen)))
    parts += [
        details(f"The block's {sum(field.size for field in seen.fields)} bytes", _bytes_table(seen)),
        heading("Errors of the whole tensor", _stats(seen)),
        histogram_svg(seen.histogram.low, seen.histogram.high, seen.histogram.counts, seen.stats.rmse),
    ]
    if seen.histogram.outside:
        parts.append(note(f"{seen.histogram.outside:,} weights with larger errors are not drawn."))
    return page(*parts)


def _title(seen: Microscope) -> str:
    return f"{seen.tensor}: {seen.source_type} → {seen.type}, {seen.bits_per_weight:.4g} bits per weight"


def _where(seen: Microscope) -> str:
    last = seen.column + len(seen.original) - 1
    return (
        f"block {seen.block:,} of {seen.n_blocks:,} in {Path(seen.path).name}: row {seen.row:,}, "
        f"weights {seen.column:,} to {last:,}"
    )


def _facts(seen: Microscope) -> list[tuple[object, object]]:
    group = seen.groups[0]
    size = sum(field.size for field in seen.fields)
    shared = f"{len(seen.groups)} groups of {group.length}" if len(seen.groups) > 1 else "one group"
    found: list[tuple[object, object]] = [
        ("what is stored", seen.formula),
        ("block", f"{len(seen.original)} weights in {size} bytes, {shared} with a scale of its own"),
        ("codes", _codes_fact(seen)),
    ]
    if len(seen.groups) == 1:
        found.append(("scale", f"{group.scale:.6g}"))
        if group.minimum:
            found.append(("minimum", f"{group.minimum:.6g}"))
    return found


def _codes_fact(seen: Microscope) -> str:
    if seen.codebook > 1:
        return f"an index for {seen.codebook} weights at a time, into a table of {seen.codebook}-vectors in llama.cpp"
    return (
        f"{seen.code_bits} bits for each weight: {2**seen.code_bits if seen.n_codes is None else seen.n_codes} values"
    )


def _caption(seen: Microscope, count: int) -> str:
    return "The block" if count == len(seen.original) else f"The first {count} of its {len(seen.original)} weights"


def _groups_in(seen: Microscope, count: int) -> Sequence[BlockGroup]:
    return [group for group in seen.groups if group.start < count]


def _values(seen: Microscope) -> list[float]:
    group = seen.groups[0]
    return [group.scale * step + group.minimum for step in seen.steps]


def _heads(seen: Microscope) -> tuple[str, ...]:
    code = "index" if seen.codebook > 1 else "code"
    binary = () if seen.codebook > 1 or seen.code_bits > 8 else ("bits",)
    return ("weight", "original", code, *binary, "level", "scale", *_minimum(seen, "minimum"), "quantized", "error")


def _minimum(seen: Microscope, value: str) -> tuple[str, ...]:
    return (value,) if any(group.minimum for group in seen.groups) else ()


def _weight(seen: Microscope, place: int) -> tuple[str, ...]:
    group, code = seen.group_of(place), seen.codes[place]
    binary: tuple[str, ...] = ()
    if seen.codebook == 1 and seen.code_bits <= 8:
        binary = (f"{code % 2**seen.code_bits:0{seen.code_bits}b}",)
    before, after = seen.original[place], seen.quantized[place]
    return (
        str(place), f"{before:.5g}", str(code), *binary, f"{seen.levels[place]:g}", f"{group.scale:.5g}",
        *_minimum(seen, f"{group.minimum:.5g}"), f"{after:.5g}", f"{after - before:+.2g}",
    )  # fmt: skip


def _weights_table(seen: Microscope, places: Sequence[int]) -> Html:
    most = max((abs(error) for error in seen.errors), default=0.0)
    rows = []
    for place in places:
        *cells, error = _weight(seen, place)
        rows.append((*cells, bar(abs(seen.errors[place]) / most if most else 0.0, error)))
    return table(_heads(seen), rows, "r" * len(_heads(seen)))


def _groups_table(seen: Microscope) -> Html:
    minimum = bool(_minimum(seen, "x"))
    head = ("weights", "scale", *(("minimum",) if minimum else ()))
    rows = [
        (
            f"{group.start} to {group.start + group.length - 1}",
            f"{group.scale:.6g}",
            *_minimum(seen, f"{group.minimum:.6g}"),
        )
        for group in seen.groups
    ]
    return table(head, rows, "rrr"[: len(head)])


def _bytes_table(seen: Microscope) -> Html:
    rows = [
        (f"{field.offset} to {field.offset + field.size - 1}", field.name, field.meaning, field.data)
        for field in seen.fields
    ]
    return table(("bytes", "field", "what it holds", "in hexadecimal"), rows, "rlll")


def _stats(seen: Microscope) -> str:
    stats = seen.stats
    return (
        f"relative {100 * stats.relative:.2f} %, RMSE {stats.rmse:.3g}, largest {stats.max:.3g}, "
        f"cosine {stats.cosine:.6f}"
    )


def _text_histogram(seen: Microscope) -> str:
    histogram = seen.histogram
    most = max(histogram.counts, default=0)
    if histogram.high <= histogram.low or not most:
        return ""
    # any count shows, however rare
    marks = "".join(_BARS[-(-8 * count // most)] for count in histogram.counts)
    return f"errors {histogram.low:.2g} |{marks}| {histogram.high:.2g}"
