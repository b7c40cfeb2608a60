"""What a stage recorded, as names and values. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from farm.reports import shown

_MOST_ROWS, _MOST_ITEMS = 120, 16
#: Said with the value instead.
_UNIT = re.compile(r"(?<=.)_(bytes|s|ms)$")


Rows = list[tuple[str, str]]


def groups(facts: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Facts by the record that they are in, first those in none, whose group has no name."""
    records = {name: one for name, one in facts.items() if isinstance(one, Mapping)}
    plain = {name: one for name, one in facts.items() if name not in records}
    found = [("", rows(plain)), *((_name(name), rows(one)) for name, one in records.items())]
    return [(name, told) for name, told in found if told]


def rows(facts: Mapping[str, Any]) -> Rows:
    """Names and values, those of records in records too; without what nobody recorded."""
    return list(islice(_rows(facts, ""), _MOST_ROWS))


def _name(key: str) -> str:
    return _UNIT.sub("", key).replace("_", " ")


def _rows(facts: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{above}{_name(str(key))}"
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name} · ")
        elif isinstance(value, list):
            yield from _items(name, value)
        elif value is not None:
            yield name, _value(str(key), value)


def _items(name: str, values: Sequence[Any]) -> Iterator[tuple[str, str]]:
    told = [_item(one) for one in values[:_MOST_ITEMS]]
    more = len(values) - len(told)
    if told:
        yield name, ", ".join(told) + (f", and {more} more" if more > 0 else "")


def _item(value: Any) -> str:
    if isinstance(value, Mapping):
        if {"name", "dtype", "shape"} <= value.keys():  # a tensor
            return f"{value['name']}: {value['dtype']} {_shape(value['shape'])}"
        pairs = ((name, one) for name, one in value.items() if one is not None)
        return " ".join(f"{name}={_item(one)}" for name, one in pairs)
    if isinstance(value, list):
        return _shape(value)
    return _value("", value)


def _shape(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if key.endswith("bytes"):
        return shown.size(int(value))
    if key.endswith("_s"):
        return shown.duration(value)
    if key.endswith("_ms"):
        return shown.milliseconds(value)
    if key in ("share", "sparsity"):
        return shown.share(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
