"""Limits on what a JSON body may hold, checked before its values are validated one by one.

Pydantic validates every element of an oversized list and keeps an error for each bad one: a megabyte blocked
the interpreter for seconds. So the lengths that a schema declares are checked first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from farm.api.problems import invalid
from farm.errors import InvalidRequest

Shape = TypeVar("Shape", bound=BaseModel)

#: Values per request, at any depth: three times the largest model configuration.
_MOST_VALUES = 65_536
#: Ten faults are reported; past this many they aren't even formatted.
_MOST_FAULTS = 200
_MOST_UNKNOWN = 16
_EXACT = 2**53  #: up to here a float represents every integer exactly
_HINT = "the request's fields and their limits are described at /docs"

Schema = Mapping[str, Any]


def parsed(shape: type[Shape], body: bytes) -> Shape:
    """A JSON body as its shape. Runs in its own thread, since a large body takes a while.

    Raises:
        InvalidRequest
    """
    try:
        # Strictly: true isn't a number of seconds, nor "8" a batch size.
        return shape.model_validate_json(_bounded(shape, body), strict=True)
    except ValidationError as err:
        if err.error_count() > _MOST_FAULTS:
            detail = f"{err.error_count()} values in the request are invalid"
            raise InvalidRequest(detail, hint=_HINT) from None
        told = err.errors(include_url=False, include_input=False)
        raise invalid(told) from None


def _bounded(shape: type[BaseModel], body: bytes) -> bytes:
    """The body without duplicate names, since the parser would validate each of them, and with whole numbers
    as integers, as JSON makes no difference."""
    # An upper bound on the number of values, without parsing, which makes an object of each.
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise InvalidRequest(f"the request has more than {_MOST_VALUES} values", hint=_HINT)
    try:
        tree = from_json(body)
    except ValueError:
        return body  # validation reports what is wrong with it
    schema = _schema(shape)
    fault = next(_too_long(tree, schema, schema.get("$defs", {}), ""), None)
    if fault is not None:
        raise InvalidRequest(fault, hint=_HINT)
    return to_json(_with_integers(tree))


def _with_integers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, list):
        return [_with_integers(one) for one in value]
    if isinstance(value, dict):
        return {name: _with_integers(one) for name, one in value.items()}
    return value


@cache
def _schema(shape: type[BaseModel]) -> Schema:
    return shape.model_json_schema()


def _too_long(value: Any, schema: Schema, named: Mapping[str, Schema], at: str) -> Iterator[str]:
    """Messages for what is longer than its schema allows, containers before their contents."""
    if not isinstance(value, list | dict):
        return
    if "$ref" in schema:
        schema = named[schema["$ref"].rpartition("/")[2]]
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _too_long(value, choice, named, at)
    if isinstance(value, list) and schema.get("type") == "array":
        if len(value) > schema.get("maxItems", _MOST_VALUES):
            yield f"{at or 'the request'}: {len(value)} items; the limit is {schema['maxItems']}"
        for number, item in enumerate(value):
            yield from _too_long(item, schema.get("items", {}), named, f"{at}.{number}".lstrip("."))
    if isinstance(value, dict) and schema.get("type") == "object":
        yield from _of_object(value, schema, named, at)


def _of_object(
    value: Mapping[str, Any], schema: Schema, named: Mapping[str, Schema], at: str
) -> Iterator[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if len(value) > schema.get("maxProperties", _MOST_VALUES):
        yield f"{at}: {len(value)} names; the limit is {schema['maxProperties']}"
    unknown = [name for name in value if name not in known] if others is False else []
    if len(unknown) > _MOST_UNKNOWN:
        yield f"{at or 'the request'}: {len(unknown)} unknown fields, such as {unknown[0][:100]!r}"
    for name, item in value.items():
        inner = known.get(name, others if isinstance(others, dict) else {})
        yield from _too_long(item, inner, named, f"{at}.{name[:100]}".lstrip("."))
