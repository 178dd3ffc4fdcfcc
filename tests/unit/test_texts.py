"""The texts that come with the package: large and varied enough, apart from each other, and in the wheel."""

from __future__ import annotations

import re
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from llama_magic.evaluation.suite import SUITE, with_own
from llama_magic.quantization.imatrix import CALIBRATION
from llama_magic.quantization.texts import TextPart
from tests.conftest import REPOSITORY, skip_or_fail

EVALUATION = REPOSITORY / "src" / "llama_magic" / "evaluation" / "data" / "evaluation.txt"
TEXTS = {"calibration": (CALIBRATION, 60_000), "evaluation": (EVALUATION, 40_000)}
SUITE_FOLDER = EVALUATION.parent / "suite"
SCRIPTS = "LATIN CYRILLIC GREEK ARABIC DEVANAGARI CJK HIRAGANA HANGUL".split()


def eights(path: Path) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", path.read_text("utf-8").lower())
    return Counter(tuple(words[at : at + 8]) for at in range(len(words) - 7))


@pytest.mark.parametrize("name", TEXTS)
def test_size_and_variety(name: str) -> None:
    path, least = TEXTS[name]
    data = path.read_bytes()
    text = data.decode("utf-8")
    assert len(data) >= least
    assert b"\r" not in data
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in text if char.isalpha())
    assert all(scripts[script] > 60 for script in SCRIPTS), scripts
    for language in ("python", "c", "rust", "sql"):
        assert f"```{language}\n" in text
    assert text.count("```") % 2 == 0
    for mark in ("√", r"\frac", "|--", "assistant:"):
        assert mark in text


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_repeats_itself(name: str) -> None:
    found = eights(TEXTS[name][0])
    assert sum(count - 1 for count in found.values()) < 0.001 * found.total()


def test_no_eight_words_in_a_row_are_in_both() -> None:
    assert not set(eights(CALIBRATION)) & set(eights(EVALUATION))


def test_the_suite_is_apart_from_what_an_importance_matrix_reads() -> None:
    seen = set(eights(CALIBRATION)) | set(eights(EVALUATION))
    for one in SUITE:
        path = Path(str(one.text.path))
        found = eights(path)
        assert found.total() > 150
        assert not set(found) & seen, one.kind
    assert len({one.kind for one in SUITE}) == len(SUITE) >= 4


def test_sums_of_the_suite_are_right() -> None:
    text = (SUITE_FOLDER / "arithmetic.txt").read_text("utf-8")
    for a, sign, b, result in re.findall(r"^(\d+) ([+×]) (\d+) = (\d+),", text, re.MULTILINE):
        assert {"+": int(a) + int(b), "×": int(a) * int(b)}[sign] == int(result)
    divided = re.findall(r"(\d+) ÷ (\d+) = (\d+) remainder (\d+)", text)
    assert len(divided) >= 4
    assert all(divmod(int(n), int(d)) == (int(q), int(r)) for n, d, q, r in divided)


def test_a_text_of_ones_own_joins_the_suite() -> None:
    joined = with_own(TextPart("notes/diary.txt", "/tmp/notes/diary.txt"))
    assert [one.kind for one in joined] == [*(one.kind for one in SUITE), "diary.txt"]


def test_all_are_in_the_wheel(tmp_path: Path) -> None:
    try:
        from hatchling.builders.wheel import WheelBuilder
    except ImportError:
        skip_or_fail("hatchling is not installed (extra test)")
    (wheel,) = WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for path in [*(path for path, _ in TEXTS.values()), *SUITE_FOLDER.glob("*.txt")]:
            inside = path.relative_to(REPOSITORY / "src").as_posix()
            assert inside in names
            assert archive.read(inside) == path.read_bytes()
