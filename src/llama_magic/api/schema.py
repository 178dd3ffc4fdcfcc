"""JSON schemas, however they are given, and the objects that come back.

Nothing is imported for it until it is used: a pydantic model is recognised by its methods,
and `jsonschema` checks the parsed value where it is installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llama_magic.errors import SchemaError
from llama_magic.suggest import did_you_mean

__all__ = ["Schema", "load_schema"]

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

#: Keywords that show that a mapping is meant as a schema (JSON Schema 2020-12 and its predecessors).
_KEYWORDS = frozenset(
    "$schema $id $ref $defs definitions $comment title description default examples type enum const properties "
    "required additionalProperties patternProperties propertyNames minProperties maxProperties items prefixItems "
    "additionalItems contains minItems maxItems uniqueItems minLength maxLength pattern format minimum maximum "
    "exclusiveMinimum exclusiveMaximum multipleOf anyOf oneOf allOf not if then else dependentRequired "
    "dependentSchemas readOnly writeOnly deprecated nullable discriminator".split()
)

_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMAS = ("additionalProperties", "propertyNames", "additionalItems", "contains", "not", "if", "then", "else")


class Schema(NamedTuple):
    """A checked schema.

    Attributes
    ----------
    text
        The schema as JSON text, its keys in the order they were given.
    parse
        Turns an answer into the object; raises `ValueError` when the answer does not validate.
    """

    text: str
    parse: Callable[[str], Any]


def load_schema(source: Any) -> Schema:
    """Read a JSON schema and check that it is one.

    Parameters
    ----------
    source
        A mapping, JSON text, the name of a JSON file, a `Path`, a pydantic model class, or
        anything with pydantic's ``TypeAdapter`` methods.

    Raises
    ------
    SchemaError
        It is no schema, or refers to what is not in it.
    """
    if hasattr(source, "model_json_schema") and hasattr(source, "model_validate_json"):
        return _checked(_call(source.model_json_schema, source), source.model_validate_json)
    if hasattr(source, "json_schema") and hasattr(source, "validate_json"):
        return _checked(_call(source.json_schema, source), source.validate_json)
    if isinstance(source, Mapping):
        return _checked(source, None)
    if isinstance(source, os.PathLike):
        return _from_file(Path(source))
    if isinstance(source, str):
        text = source.strip()
        if text[:1] in ("{", "["):
            return _checked(_from_json(text, "the schema"), None)
        return _from_file(Path(text).expanduser())
    if isinstance(source, type):
        raise SchemaError(f"{source.__name__} is no schema: give a pydantic model, a dict, JSON text or a file")
    raise SchemaError(f"a schema is a dict, JSON text, a file or a pydantic model class; got {type(source).__name__}")


def _call(make: Callable[[], Any], source: Any) -> Any:
    try:
        return make()
    except Exception as error:  # pydantic raises several kinds for fields without a JSON form
        name = getattr(source, "__name__", type(source).__name__)
        raise SchemaError(f"{name} has no JSON schema: {_first_line(error)}") from error


def _from_file(path: Path) -> Schema:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise SchemaError(f"no schema file {str(path)!r}; a schema given as text starts with {{") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SchemaError(f"the schema file {str(path)!r} can not be read: {_first_line(error)}") from error
    return _checked(_from_json(text, str(path)), None)


def _from_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SchemaError(f"{what} is not valid JSON: {_first_line(error)}") from error


def _checked(schema: Any, parse: Callable[[str], Any] | None) -> Schema:
    if not isinstance(schema, Mapping):
        raise SchemaError(f"a JSON schema is an object ({{…}}); got {_kind(schema)}")
    if schema and not any(key in _KEYWORDS for key in schema):
        fields = ", ".join(map(str, list(schema)[:3]))
        raise SchemaError(
            f"this looks like an example ({fields}), not a JSON schema: "
            'write {"type": "object", "properties": {…}, "required": […]}'
        )
    _check_all(schema)
    try:
        text = json.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"the schema can not be written as JSON: {_first_line(error)}") from error
    return Schema(text, parse or _validator(json.loads(text)))


def _check_all(root: Mapping[str, Any]) -> None:
    """Check every subschema once, without recursion, so that deep nesting is no error of its own."""
    todo: list[tuple[Any, str]] = [(root, "the schema")]
    while todo:
        schema, where = todo.pop()
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, Mapping):
            raise SchemaError(f"{where} must be a schema ({{…}}); got {_kind(schema)}")
        _check_one(schema, where, root)
        todo += _children(schema, where)


def _check_one(schema: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> None:
    kind = schema.get("type")
    for name in kind if isinstance(kind, list) else [kind] if "type" in schema else []:
        if not isinstance(name, str) or name not in _TYPES:
            hint = did_you_mean(str(name), _TYPES) or f" Known: {', '.join(_TYPES)}."
            raise SchemaError(f"{where} has the unknown type {name!r}.{_ALIASES.get(str(name), hint)}")
    if "enum" in schema and not (isinstance(schema["enum"], list | tuple) and schema["enum"]):
        raise SchemaError(f"{where}: enum takes a list with at least one value")
    required = schema.get("required", [])
    if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in required):
        raise SchemaError(f"{where}: required takes a list of property names; got {_kind(required)}")
    if "$ref" in schema:
        _check_ref(schema["$ref"], where, root)


_ALIASES = {
    "int": " Did you mean integer?", "str": " Did you mean string?", "float": " Did you mean number?",
    "bool": " Did you mean boolean?", "list": " Did you mean array?", "dict": " Did you mean object?",
    "None": " Did you mean null?",
}  # fmt: skip


def _check_ref(ref: Any, where: str, root: Mapping[str, Any]) -> None:
    if not isinstance(ref, str) or not ref.startswith("#"):
        raise SchemaError(f'{where} refers to {ref!r}; only references into the schema itself ("#/$defs/…") work')
    target: Any = root
    for part in ref[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, Mapping) and part in target:
            target = target[part]
        elif isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        else:
            raise SchemaError(f"{where} refers to {ref!r}, which is not in the schema")


def _children(schema: Mapping[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    for keyword in _SCHEMA_MAPS:
        if keyword in schema:
            children = schema[keyword]
            if not isinstance(children, Mapping):
                raise SchemaError(f"{where}: {keyword} takes an object of schemas; got {_kind(children)}")
            yield from ((child, f"{keyword}.{name}") for name, child in children.items())
    for keyword in _SCHEMA_LISTS:
        if keyword in schema:
            children = schema[keyword]
            if not isinstance(children, list | tuple) or not children:
                raise SchemaError(f"{where}: {keyword} takes a list of schemas; got {_kind(children)}")
            yield from ((child, f"{keyword}[{i}]") for i, child in enumerate(children))
    yield from ((schema[keyword], keyword) for keyword in _SUBSCHEMAS if keyword in schema)
    items = schema.get("items", True)
    yield from ((child, "items") for child in (items if isinstance(items, list | tuple) else [items]))


def _validator(schema: Any) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = json.loads(text)
        try:
            import jsonschema
        except ImportError:
            return value
        validator = jsonschema.validators.validator_for(schema)(schema)
        error = next(iter(validator.iter_errors(value)), None)
        if error is not None:
            raise ValueError(f"{error.json_path}: {error.message}")
        return value

    return parse


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "a string", list: "a list", tuple: "a list", int: "a number", float: "a number", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
