"""Comparisons: the rule of the recommendation, the pictures, the exports, and what of a running one is kept."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import resvg_py

from llama_magic.errors import InvalidRequestError
from llama_magic.evaluation.board import Board
from llama_magic.evaluation.choice import Choice, Search, Trial
from llama_magic.evaluation.comparison import Answer, Comparison, Figure, LevelResult, Rate
from llama_magic.evaluation.differences import changed, parting, words_of
from llama_magic.evaluation.levels import LevelUpdate, QuantizationLevel
from llama_magic.evaluation.pareto_svg import Point, frontier, pareto_svg
from llama_magic.evaluation.recommend import recommend, short
from llama_magic.notebook.compare_view import TAIL_WORDS, CompareView

MIB = 2**20


def level(name: str, size: float, kld: float | None = None, error: float = 0.001, tps: float = 0.0, **more: Any) -> Any:
    found = None if kld is None else Figure(kld, error)
    rate = Rate.of((tps - 0.1, tps, tps + 0.1)) if tps else None
    return LevelResult(name, path=f"{name}.gguf", ftype=name, size=int(size * MIB), kld=found, generation=rate, **more)


def base(size: float = 270, tps: float = 10.0) -> Any:
    return level("F16", size, tps=tps, base=True)


def comparison(*levels: LevelResult, **facts: Any) -> Comparison:
    return Comparison("model", levels, recommend(levels), **facts)


# -- the rule ---------------------------------------------------------------------------------------------------------


def test_the_smallest_that_is_close_is_recommended_with_its_reason() -> None:
    found = recommend([base(), level("Q8_0", 140, 0.002, tps=13), level("Q4_K_M", 100, 0.03, tps=16),
                       level("Q2_K", 67.6, 0.12, tps=18)])  # fmt: skip
    assert found.level == "Q4_K_M"
    assert found.sentence == (
        "Q4_K_M: 2.7 times smaller than F16, 1.6 times faster, KLD 0.03 ± 0.001; "
        "Q2_K saves 12 % more and loses 4.0 times as much."
    )
    assert not found.ties


def test_none_that_is_close() -> None:
    found = recommend([base(), level("Q4_0", 100, 0.2), level("Q2_K", 80, 0.6)])
    assert found.level == "Q4_0"
    assert "No level stays at or below KLD 0.05" in found.sentence


def test_ties_are_told_and_the_faster_goes_first() -> None:
    same = [base(), level("Q4_0", 100, 0.031, 0.004, tps=14), level("Q4_1", 101, 0.030, 0.004, tps=14.05)]
    found = recommend(same)
    assert (found.level, found.ties) == ("Q4_0", ("Q4_1",))
    assert "Q4_1 is as good within the error." in found.sentence
    faster = [*same[:2], level("Q4_1", 101, 0.030, 0.004, tps=20)]
    assert (recommend(faster).level, recommend(faster).ties) == ("Q4_1", ())


def test_what_the_error_leaves_open_is_told() -> None:
    unsure = recommend([base(), level("Q4_0", 100, 0.049, 0.004)])
    assert "not surely below 0.05" in unsure.sentence
    open_end = recommend([base(), level("Q8_0", 140, 0.002), level("Q4_0", 100, 0.052, 0.004)])
    assert open_end.level == "Q8_0"
    assert "Q4_0 may be below 0.05 too" in open_end.sentence
    surely = recommend([base(), level("Q8_0", 140, 0.002), level("Q4_0", 100, 0.052, 0.0004)])
    assert "may be below" not in surely.sentence


def test_slower_larger_and_equal_are_said_so() -> None:
    slower = recommend([base(tps=20), level("Q4_0", 100, 0.01, tps=10)]).sentence
    assert "2.0 times slower" in slower
    assert "as fast within the spread" in recommend([base(tps=10), level("Q4_0", 100, 0.01, tps=10.05)]).sentence
    assert "2.0 times larger than F16" in recommend([base(50), level("Q8_0", 100, 0.01)]).sentence
    no_speed = recommend([level("F16", 270, base=True), level("Q4_0", 100, 0.01)]).sentence
    assert "fast" not in no_speed
    assert "slow" not in no_speed


@pytest.mark.parametrize("levels", [[], [base()], [level("Q4_0", 100, 0.1)], [base(), level("Q4_0", 100)]])
def test_without_divergences_there_is_no_recommendation(levels: list[LevelResult]) -> None:
    found = recommend(levels)
    assert found.level is None
    assert found.sentence.startswith("No recommendation")


def test_numbers_that_are_none_do_not_win() -> None:
    found = recommend([base(), level("Q4_0", 100, float("nan")), level("Q2_K", 80, 0.3)])
    assert found.level == "Q2_K"


# -- answers ----------------------------------------------------------------------------------------------------------


def test_words_and_where_they_part() -> None:
    reference = words_of("A quick fox jumps over the dog.")
    assert "".join(words_of("  two\n\nlines ")) == "  two\n\nlines"
    assert parting(reference, reference) is None
    assert parting(reference, words_of("A slow fox jumps over the dog.")) == 1
    assert parting(reference, reference[:3]) == 3
    assert parting(reference[:3], reference) == 3
    marks = changed(reference, words_of("A slow fox jumps over a lazy dog."))
    assert marks == [False, True, False, False, False, True, True, False]
    assert len(words_of("犬が走る。")) == 5, "scripts without spaces are compared character by character"


# -- the chart --------------------------------------------------------------------------------------------------------


def test_the_frontier_is_what_no_other_beats() -> None:
    points = [Point("a", 1, 0.5), Point("b", 2, 0.1), Point("c", 3, 0.2), Point("d", 4, 0.01), Point("e", 4.5, 0.01)]
    assert {point.name for point in frontier(points, more_is_better=False)} == {"a", "b", "d"}
    assert {point.name for point in frontier(points, more_is_better=True)} == {"e"}

    def beaten(one: Point, sign: int) -> bool:
        return any(
            other.kld <= one.kld and sign * other.x <= sign * one.x and other is not one
            and (other.kld < one.kld or sign * other.x < sign * one.x) for other in points
        )  # fmt: skip

    for sign in (1, -1):
        expected = {point.name for point in points if not beaten(point, sign)}
        assert {point.name for point in frontier(points, more_is_better=sign < 0)} == expected


def test_the_chart_is_well_formed_and_says_what_it_shows() -> None:
    from xml.etree import ElementTree as ET

    points = [
        Point("Q8_0 <&>", 140 * MIB, 0.002, 0, 0.0002), Point("Q4_0", 100 * MIB, 0.08, 0, 0.004, chosen=True),
        Point("zero", 120 * MIB, 0.0), Point("wide", 90 * MIB, 0.3, 0, 0.4),
    ]  # fmt: skip
    drawn = ET.fromstring(pareto_svg(points, ("F16", 270 * MIB), "size", sized=True))
    kinds = [element.tag.rsplit("}")[-1] for element in drawn.iter()]
    assert kinds.count("circle") == len(points) + 1  # one is ringed
    assert kinds.count("polyline") == 1
    numbers = [
        float(value) for value in re.findall(r'(?:[xy][12]?|c[xy])="([-\d.]+)"', pareto_svg(points, None, "size"))
    ]
    assert all(-1 <= number <= 521 for number in numbers)
    said = "".join(element.text or "" for element in drawn.iter())
    for words in ("Q8_0 <&>", "★ Q4_0", "F16 (KLD 0)", "size of the file", "mean KL divergence"):
        assert words in said


# -- the result -------------------------------------------------------------------------------------------------------


def full() -> Comparison:
    rows = (
        level("F16", 270, tps=10, base=True, ppl=Figure(12.5, 0.4), answer=Answer("A fine day.", (1, 2, 3), 10.0, "stop")),
        level("Q4_0", 100, 0.03, tps=16, ppl=Figure(12.9, 0.41), ppl_change=Figure(0.4, 0.05), imatrix="m.gguf",
              mean_dp=Figure(-0.012, 0.001), rms_dp=Figure(0.05, 0.002), same_top=Figure(0.91, 0.01), memory=120 * MIB,
              load_s=0.4, bits_per_weight=5.3, prompt=Rate.of((100.0, 110.0)),
              answer=Answer("A <b>dull</b> day.", (1, 4, 3), 16.0, "stop"), parting=1),
        LevelResult("IQ1_S", size=60 * MIB, error="it needs | a matrix"),
    )  # fmt: skip
    return comparison(*rows, prompt="How is the day?", text="a text", n_ctx=512, chunks=4, notes=("a note",))


def test_the_table_has_the_columns_of_the_scoreboard() -> None:
    head = next(line for line in full().to_markdown().splitlines() if line.startswith("| Quant"))
    names = [name.strip() for name in head.strip("|").split("|")]
    # tools/perplexity/README.md: Quantization | imatrix | Model size [GiB] | PPL | ΔPPL | KLD | Mean Δp | RMS Δp
    board = ["Quantization", "imatrix", "size", "PPL", "ΔPPL", "KLD", "Mean Δp", "RMS Δp"]
    assert [name for name in names if name in board] == board
    assert {"bits/weight", "same top", "prompt tok/s", "generation tok/s", "load", "memory"} <= set(names)
    rows = [line for line in full().to_markdown().splitlines() if line.startswith("| ")]
    assert all(line.count("|") - line.count("\\|") == len(names) + 1 for line in rows)
    assert "-1.200 ± 0.100 %" in full().to_markdown()


def test_exports_hold_the_figures() -> None:
    found = full()
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["level"] for row in rows] == ["F16", "Q4_0", "IQ1_S"]
    assert float(rows[1]["kld"]) == 0.03
    assert float(rows[1]["prompt_tps_sd"]) == pytest.approx(50**0.5)
    assert rows[2]["error"] == "it needs | a matrix"
    data = json.loads(found.to_json())
    assert data["levels"][1]["kld"] == {"value": 0.03, "error": 0.001}
    assert data["recommendation"]["level"] == "Q4_0"
    frame = found.to_pandas().set_index("level")
    assert frame.loc["Q4_0", "same_top"] == 0.91
    assert found["q4_0"].memory == 120 * MIB
    nan = comparison(base(), level("Q4_0", 100, float("nan")))
    assert json.loads(nan.to_json())["levels"][1]["kld"]["value"] is None


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    found = full()
    for name in ("a.md", "a.csv", "a.json", "a.html", "a.svg"):
        assert found.save(tmp_path / name).stat().st_size > 100
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    png = found.to_png()
    assert png.startswith(b"\x89PNG")
    bare = re.sub("<text.*?</text>", "", found.to_svg())
    assert png != bytes(resvg_py.svg_to_bytes(svg_string=bare, zoom=2)), "its labels are there"
    for name, words in {"a.txt": "has to end in one of", "none/a.md": "no such folder"}.items():
        with pytest.raises(InvalidRequestError, match=words):
            found.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.html", "a.json", "a.md", "a.svg"]
    with pytest.raises(InvalidRequestError, match="nothing to draw"):
        comparison(base()).to_svg()
    with pytest.raises(InvalidRequestError, match='"size" or "speed"'):
        found.to_svg("weight")


def test_a_missing_renderer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from llama_magic.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingDependencyError, match=r"llama-magic\[png\]"):
        full().to_png()


def test_the_page_marks_what_is_best_and_what_differs_and_runs_nothing() -> None:
    page = full()._repr_html_()
    assert "<script" not in page
    assert "<b>dull" not in page
    assert html.escape("<b>dull</b>") in page
    row = next(part for part in page.split("<tr") if "IQ1_S" in part)
    assert "✗ failed" in row
    assert page.count("★ ") >= 3
    assert "▸" in page
    assert re.search(r"<mark[^>]*text-decoration:underline[^>]*>&lt;b&gt;dull", page)
    assert "leaves F16 at word 2" in page
    assert "it needs | a matrix" in page
    assert "leaves F16 at word 2" in repr(full())


# -- while it runs ----------------------------------------------------------------------------------------------------


def board() -> Board:
    return Board([QuantizationLevel("F16", size=2), QuantizationLevel("Q2_K", size=1)], "F16", model="m")


def test_a_board_keeps_what_was_told() -> None:
    found = board()
    found.apply(LevelUpdate("load", level="F16", values={"memory": 5, "notes": ("x",)}))
    found.apply(LevelUpdate("answer", level="F16", text="one ", count=1, tps=3.0))
    found.apply(LevelUpdate("answer", level="F16", text="two", count=2, tps=4.0, values={"notes": ("x", "y")}))
    found.apply(LevelUpdate("answer", level="unknown", text="lost"))
    partial = found.comparison(interrupted=True)
    assert partial.interrupted
    assert partial["F16"].memory == 5
    assert partial["F16"].notes == ("x", "y")
    assert partial["F16"].answer is not None
    assert partial["F16"].answer.text == "one two"
    assert partial["F16"].answer.finish_reason == "interrupted"
    assert found.pace["F16"] == (2, 4.0)
    found.forget_answer("F16")
    assert found.comparison()["F16"].answer is None


class _Publisher:
    def __init__(self) -> None:
        self.sent: list[int] = []
        self.shown: dict[str, str] = {}

    def publish(
        self, data: dict[str, Any], metadata: Any = None, *, transient: Any = None, update: bool = False
    ) -> None:
        self.sent.append(len(data["text/html"].encode()))
        assert update == (transient["display_id"] in self.shown)
        self.shown[transient["display_id"]] = data["text/html"]

    def clear_output(self, wait: bool = False) -> None:
        self.shown.clear()


class _Shell:
    def __init__(self) -> None:
        self.kernel = object()
        self.display_pub = _Publisher()


def _race(words: int) -> _Publisher:
    from llama_magic.api.comparing import BoardUpdate

    shell, now, found = _Shell(), [0.0], board()
    view = CompareView(shell, lambda _event: None, clock=lambda: now[0])
    for number in range(words):
        for name in ("F16", "Q2_K"):
            update = LevelUpdate("answer", 0.5, "", level=name, text=f" word{number % 7}", count=number + 1, tps=9.0)
            found.apply(update)
            now[0] += 0.1
            view.progress(BoardUpdate("answer", 0.5, "", board=found, update=update))
    assert len(shell.display_pub.shown) == 2, "the race and the table"
    view.close()
    assert not shell.display_pub.shown
    return shell.display_pub


def test_the_race_sends_bytes_in_line_with_its_length() -> None:
    short, long = sum(_race(400).sent), sum(_race(800).sent)
    assert long < 2.2 * short
    assert max(_race(800).sent) < 2 * (TAIL_WORDS * 40 + 3000)


def test_the_live_view_marks_only_what_is_sure() -> None:
    from llama_magic.api.comparing import BoardUpdate

    shell, found = _Shell(), board()
    view = CompareView(shell, lambda _event: None, clock=iter(range(10_000)).__next__)

    def say(name: str, text: str) -> str:
        update = LevelUpdate("answer", 0.5, "", level=name, text=text, count=1, tps=9.0)
        found.apply(update)
        view.progress(BoardUpdate("answer", 0.5, "", board=found, update=update))
        return next(iter(shell.display_pub.shown.values()))

    say("F16", "The quick")
    assert "<mark" not in say("Q2_K", "The quick brown dog"), "the reference has not come so far"
    shown = say("F16", " brown fox runs")
    assert "▸" in shown
    assert "leaves F16 at word 4" not in shown, "its last word may still grow"
    assert "leaves F16 at word 4" in say("Q2_K", " now")
    assert "9.0 tok/s" in shown


def test_a_terminal_gets_plain_progress() -> None:
    told: list[Any] = []
    view = CompareView(None, told.append)
    view.progress(LevelUpdate("load", level="F16"))
    view.close()
    assert len(told) == 1


# -- choosing ---------------------------------------------------------------------------------------------------------


def search(values: list[float | None], most: float = 0.05, error: float = 0.001) -> tuple[int | None, Search]:
    def measure(number: int) -> tuple[float, float] | None:
        value = values[number]
        return None if value is None else (value, error)

    found = Search(len(values), measure, most)
    return found.smallest(), found


@pytest.mark.parametrize("first", range(13))
def test_the_search_finds_the_smallest_that_is_good_with_few_measurements(first: int) -> None:
    values = [0.5 - 0.01 * number if number < first else 0.04 - 0.001 * number for number in range(12)]
    best, found = search(list(values))
    assert best == (first if first < 12 else None)
    assert len(found.found) <= 4
    assert found.monotonic


def test_an_order_that_does_not_hold_is_noticed() -> None:
    best, found = search([0.2, 0.03, 0.3, 0.1, 0.3, 0.2])
    assert best == 1
    assert not found.monotonic
    inside, noticed = search([0.2, 0.09, 0.0901, 0.02, 0.01], error=0.01)
    assert (inside, noticed.monotonic) == (3, True)
    missing, _ = search([0.2, 0.03, None, 0.02])
    assert missing == 1


def test_a_choice_shows_what_was_tried() -> None:
    trials = (
        Trial("Q2_K", 60, 80, 0.4, 0.01, 20.0, "KLD above 0.05"),
        Trial("Q4_0", 100, 120, 0.03, 0.001, 15.0, "chosen", chosen=True),
    )
    found = Choice("/models/x.gguf", "Q4_0", "the smallest", trials, ("a note",))
    for shown in (repr(found), found._repr_html_()):
        for words in ("Q2_K", "KLD above 0.05", "★ Q4_0", "/models/x.gguf", "a note"):
            assert words in shown
    import os

    assert os.fspath(found) == "/models/x.gguf"


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.0312, "0.031"), (1.26, "1.3"), (0.00012, "0.00012"), (0.000087, "0.00009"), (2.2e-9, "2e-09")],
)
def test_divergences_are_told_without_exponents_where_a_person_can_read_them(value: float, words: str) -> None:
    assert short(value) == words
