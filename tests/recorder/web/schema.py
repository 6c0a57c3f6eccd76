"""As much of JSON Schema as the API's description uses; an unknown keyword fails, so that none goes unchecked."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = {"type", "properties", "required", "additionalProperties", "items", "enum", "pattern", "format", "minimum"}


def check(value: Any, schema: Any, schemas: dict[str, Any], at: str = "$") -> None:
    """Raises AssertionError where the value is not the schema's."""
    if "$ref" in schema:
        check(value, schemas[schema["$ref"].rpartition("/")[2]], schemas, at)
        return
    assert not set(schema) - _KNOWN - {"description", "maximum"}, schema
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    fits = any(isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds)
    assert fits, f"{at} is {type(value).__name__}, not {kinds}"
    if value is None:
        return
    assert value in schema.get("enum", [value]), at
    if isinstance(value, str):
        assert re.search(schema.get("pattern", ""), value), at
        if schema.get("format") == "date-time":
            assert datetime.fromisoformat(value).tzinfo is not None, at
    if isinstance(value, int | float):
        assert value >= schema.get("minimum", value), at
    if isinstance(value, list):
        for number, item in enumerate(value):
            check(item, schema.get("items", {"type": list(_KINDS)}), schemas, f"{at}[{number}]")
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert not set(schema.get("required", ())) - set(value), f"{at} lacks {set(schema['required']) - set(value)}"
        others = schema.get("additionalProperties", True)
        for name, member in value.items():
            if name in properties:
                check(member, properties[name], schemas, f"{at}.{name}")
            elif isinstance(others, dict):
                check(member, others, schemas, f"{at}.{name}")
            else:
                assert others, f"{at} has {name}"
