"""Pieces of HTML and text: escaped, aligned, and complete."""

from __future__ import annotations

import re

import pytest

from llama_magic import markup
from llama_magic.units import format_bytes, format_count, format_rate, format_seconds

EVIL = '<img src=x onerror="alert(1)">'


@pytest.mark.parametrize(
    "made",
    [
        markup.page(EVIL),
        markup.heading(EVIL, EVIL),
        markup.note(EVIL, "warning"),
        markup.badge(EVIL, "error"),
        markup.details(EVIL, EVIL),
        markup.facts([(EVIL, EVIL)]),
        markup.bar(0.5, EVIL),
        markup.table([EVIL], [[EVIL]], caption=EVIL),
        markup.tensor_map([(EVIL, EVIL), (f"blk.0.{EVIL}", EVIL)], {EVIL: EVIL}),
        markup.join(EVIL, EVIL),
    ],
)
def test_everything_is_escaped(made: str) -> None:
    assert "<img" not in made
    assert "&lt;img" in made
    assert not re.search(r'title="[^"]*<', made)


def test_html_stays_html() -> None:
    assert "<b>x</b>" in markup.table(["a"], [[markup.Html("<b>x</b>")]])


def test_a_row_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        markup.table(["a", "b"], [["1"]])


def test_text_table_aligns_wide_characters_too() -> None:
    made = markup.text_table(["name", "size"], [["模型", 1], ["x", 1000]], "lr").split("\n")
    assert made == ["name  size", "----  ----", "模型     1", "x     1000"]


def test_the_map_has_a_cell_for_each_tensor_and_a_letter_for_each_type() -> None:
    tensors = [(f"blk.{layer}.{kind}.weight", "Q4_K" if layer else "Q6_K") for layer in range(7) for kind in ("a", "b")]
    made = markup.tensor_map([*tensors, ("output.weight", "F16")], {"blk.3.a.weight": "rows of 576"})
    assert made.count("<td title=") == 15
    assert made.count("underline") == 2  # the cell and the line that explains it
    for type_name, count in (("Q4_K", 12), ("Q6_K", 2), ("F16", 1)):
        assert f"{type_name}: {count}" in made
    assert "rows of 576" in made


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1024, "1.00 KiB"), (98_100_000, "93.6 MiB"), (4_920_739_232, "4.58 GiB"), (-2048, "-2.00 KiB")],
)  # fmt: skip
def test_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text
    assert format_rate(size) == f"{text}/s"


def test_counts_and_seconds() -> None:
    assert [format_count(n) for n in (7, 9_999, 134_515_008, 8_030_261_312)] == ["7", "9,999", "134.5 M", "8.0 B"]
    assert [format_seconds(s) for s in (0.004, 0.42, 12.2, 125, 4200)] == [
        "4 ms",
        "0.4 s",
        "12 s",
        "2 min 5 s",
        "1 h 10 min",
    ]
