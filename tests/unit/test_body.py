from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_magic.notebook.body import cell_text, fill_in

NAMES = {"name": "llama", "größe": 3, "x": object, "inner": "{name}"}


@pytest.mark.parametrize(
    "text",
    [
        "{missing}", "{{name}}", "{{{name}}}", "{name!r}", "{name:>5}", "{name.attr}", "{name[0]}", "{ name }", "{}",
        "{0}", '{"name": 1}', "{'name'}", "{name", "name}", "{na me}", "$name ${name.x} $HOME", "%time {", "!ls",
        "f'{missing}'", "[a-z]{1,3}", r"\{missing\}", "\\frac{1}{2}", "{name()}", "{__import__('os')}", "{name=}",
    ],
)  # fmt: skip
def test_stays_as_typed(text: str) -> None:
    assert fill_in(text, NAMES) == text


def test_plain_names_are_replaced_once() -> None:
    assert fill_in("a {name} of {größe} m, {name}", NAMES) == "a llama of 3 m, llama"
    assert fill_in("{inner}", NAMES) == "{name}"
    assert fill_in("f'{name}' ${name}", NAMES) == "f'llama' $llama"


@given(st.text())
def test_every_text_arrives_where_nothing_is_named(text: str) -> None:
    assert fill_in(text, {}) == text


@given(st.text(alphabet=st.sampled_from("{}xy!. :\"'\n")), st.text())
def test_only_x_changes(text: str, value: str) -> None:
    filled = fill_in(text, {"x": value})
    if "{x}" not in text:
        assert filled == text


@given(st.text(), st.text(), st.text())
def test_a_value_arrives_as_it_is(before: str, value: str, after: str) -> None:
    before, after = before.replace("{", ""), after.replace("}", "").replace("{", "")
    assert fill_in(before + "{x}" + after, {"x": value}) == before + value + after


@given(st.text())
def test_only_the_line_end_of_the_cell_is_cut(text: str) -> None:
    assert cell_text(text + "\n") == text
