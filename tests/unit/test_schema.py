from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_magic.api.schema import load_schema
from llama_magic.errors import SchemaError

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name", "age"],
    "$defs": {"age": {"type": ["integer", "null"], "minimum": 0}},
}


def test_dict_keeps_the_order_of_its_keys() -> None:
    assert load_schema(PERSON).text == json.dumps(PERSON)


def test_text_and_files(tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON), "utf-8")
    for source in (json.dumps(PERSON), f"  {json.dumps(PERSON)}\n", file, str(file)):
        assert json.loads(load_schema(source).text) == PERSON


def test_parsing_validates() -> None:
    schema = load_schema(PERSON)
    assert schema.parse('{"name": "Ö", "age": 3}') == {"name": "Ö", "age": 3}
    for text in ('{"name": "Ö"', '{"name": "Ö", "age": -3}', "[]", ""):
        with pytest.raises(ValueError):
            schema.parse(text)


def test_pydantic() -> None:
    pydantic = pytest.importorskip("pydantic")
    person = pydantic.create_model("Person", name=(str, ...), age=(int, ...))
    schema = load_schema(person)
    assert json.loads(schema.text)["properties"].keys() == {"name", "age"}
    assert schema.parse('{"name": "a", "age": 1}') == person(name="a", age=1)
    with pytest.raises(ValueError):
        schema.parse('{"name": "a"}')
    adapter = load_schema(pydantic.TypeAdapter(list[int]))
    assert adapter.parse("[1]") == [1]
    broken = pydantic.create_model("Broken", f=(type(print), ...), __config__={"arbitrary_types_allowed": True})
    with pytest.raises(SchemaError, match="Broken has no JSON schema"):
        load_schema(broken)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("[1, 2]", "is an object"),
        ("[", "not valid JSON"),
        ('{"type": "object"', "not valid JSON"),
        ("nowhere.json", "no schema file"),
        ("", "can not be read"),
        (3, "a schema is"),
        (None, "a schema is"),
        (int, "int is no schema"),
        ({"name": "string", "age": "int"}, "looks like an example"),
        ({"type": "strin"}, "Did you mean string"),
        ({"type": "int"}, "Did you mean integer"),
        ({"type": None}, "unknown type None"),
        ({"type": {}}, "unknown type"),
        ({"type": ["string", "nul"]}, "Did you mean null"),
        ({"enum": []}, "enum"),
        ({"enum": "a"}, "enum"),
        ({"type": "object", "properties": []}, "properties"),
        ({"type": "object", "properties": {"a": "string"}}, "properties.a must be a schema"),
        ({"type": "object", "required": "a"}, "required"),
        ({"type": "array", "items": "string"}, "items must be a schema"),
        ({"anyOf": []}, "anyOf"),
        ({"anyOf": {}}, "anyOf"),
        ({"$ref": "#/$defs/nothing"}, "not in the schema"),
        ({"$ref": "https://example.com/x.json"}, "only references into"),
        ({"$ref": 3}, "only references into"),
        ({"const": {1, 2}}, "can not be written"),
    ],
)
def test_what_is_no_schema(source: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SchemaError) as caught:
        load_schema(source)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_schema(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="can not be read"):
        load_schema(tmp_path)


def test_deep_nesting_is_no_crash() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    assert load_schema(schema).text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["type", "properties", "items", "enum", "anyOf", "$ref", "required", "$defs", "a"]), inner
    ),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_anything_is_a_schema_or_a_schema_error(value: Any) -> None:
    with contextlib.suppress(SchemaError):
        assert load_schema(value if isinstance(value, dict) else json.dumps(value)).text


def test_importing_it_imports_no_validator() -> None:
    code = "import sys, llama_magic.api.schema; print({'pydantic', 'jsonschema'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
