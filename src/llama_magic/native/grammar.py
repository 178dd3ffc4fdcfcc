"""JSON schema to GBNF, by the converter that comes with llama_cpp."""

from __future__ import annotations

from llama_magic.errors import SchemaError

__all__ = ["grammar_from_schema"]


def grammar_from_schema(schema: str) -> str:
    """Return the GBNF grammar of a JSON schema given as JSON text.

    Raises
    ------
    SchemaError
        The converter does not take it, with its reason.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf  # with the whole package, which takes a while

    try:
        return str(json_schema_to_gbnf(schema))
    except Exception as exc:
        # The converter raises whatever it stumbles over: KeyError, AssertionError, ValueError.
        reason = str(exc) or type(exc).__name__
        raise SchemaError(f"llama.cpp can not make a grammar of this schema: {reason}") from exc
