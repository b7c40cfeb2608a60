"""What is wrong with a value, in the farm's words instead of its validator's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from farm.specs.counted import counted

Context = Mapping[str, Any]

_WHOLE, _NUMBER, _FLAG = "takes a whole number", "takes a number", "takes true or false"
_TEXT, _LIST, _OBJECT = "takes a string", "takes a list", "takes an object"
_TIME = "takes a time: 2026-11-01T08:00:00Z"
#: Type of Pydantic's error → what is wrong.
_PLAIN: dict[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "there is no such field",
    "unexpected_keyword_argument": "there is no such field",
    "none_required": "takes null",
    "finite_number": "takes a finite number",
    "string_unicode": "isn't valid UTF-8",
    "invalid_key": "takes strings as names",
    "recursion_loop": "contains itself",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing", "decimal_type", "decimal_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), _FLAG),
    **dict.fromkeys(("string_type", "string_sub_type", "bytes_type"), _TEXT),
    **dict.fromkeys(
        ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"), _LIST
    ),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"),
        _OBJECT,
    ),
    **dict.fromkeys(
        (
            "datetime_type",
            "datetime_parsing",
            "datetime_from_date_parsing",
            "datetime_object_invalid",
            "timezone_aware",
        ),
        _TIME,
    ),
    **dict.fromkeys(("date_type", "date_parsing", "date_from_datetime_parsing"), "takes a day"),
    **dict.fromkeys(("path_type",), "takes a path"),
}


def _choice(of: Context) -> str:
    return "takes " + str(of["expected"]).replace("'", "")


def _short(number: Any) -> Any:
    """A bound as people write it: 1, not 1.0."""
    return f"{number:g}" if isinstance(number, float) else number


def _too_short(of: Context) -> str:
    least = of["min_length"]
    return "is empty" if least == 1 else f"takes at least {counted(least, 'item')}"


def _short_text(of: Context) -> str:
    least = of["min_length"]
    return "is empty" if least == 1 else f"takes at least {counted(least, 'character')}"


_OF_CONTEXT: dict[str, Callable[[Context], str]] = {
    "literal_error": _choice,
    "enum": _choice,
    "greater_than": lambda of: f"takes more than {_short(of['gt'])}",
    "greater_than_equal": lambda of: f"takes at least {_short(of['ge'])}",
    "less_than": lambda of: f"takes less than {_short(of['lt'])}",
    "less_than_equal": lambda of: f"takes at most {_short(of['le'])}",
    "multiple_of": lambda of: f"takes a multiple of {of['multiple_of']}",
    "too_short": _too_short,
    "too_long": lambda of: f"takes at most {counted(of['max_length'], 'item')}",
    "string_too_short": _short_text,
    "string_too_long": lambda of: f"takes at most {counted(of['max_length'], 'character')}",
    "string_pattern_mismatch": lambda of: f"must match {of['pattern']}",
    "json_invalid": lambda of: f"isn't JSON: {of['error']}",
    "union_tag_invalid": lambda of: f"its {of['discriminator']} is one of {of['expected_tags']}",
    "union_tag_not_found": lambda of: f"needs a {of['discriminator']}",
    # A validator of the farm's own.
    "value_error": lambda of: str(of["error"]),
    "assertion_error": lambda of: str(of["error"]),
}


def told(error: Mapping[str, Any]) -> str:
    """One of Pydantic's errors, with its context: ``takes a whole number``."""
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind in _PLAIN:
        return _PLAIN[kind]
    try:
        return _OF_CONTEXT[kind](context)
    except KeyError:
        return str(error["msg"]).removeprefix("Value error, ")


def is_own(error: Mapping[str, Any]) -> bool:
    """Whether one of the farm's own validators refused the value, whose message quotes it."""
    return error["type"] in ("value_error", "assertion_error")
