"""A program's input and output containers, without their authors' classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Python's built-in containers, as torch serialises their types.
_CONTAINERS = {
    "builtins.tuple": "builtins.tuple",
    "builtins.list": "builtins.list",
    "builtins.dict": "builtins.dict",
    "collections.OrderedDict": "builtins.dict",
}


def plain_treespec(text: str, fields: Mapping[str, Sequence[str]]) -> str:
    """A serialised tree of containers in which custom classes are replaced by dicts of their fields.

    The fields come from the context that torch stores with the type: the class isn't looked up, and none
    of its code runs. Without field names, it becomes a tuple.
    """
    protocol, tree = json.loads(text)
    return json.dumps([protocol, _plain_node(tree, fields)])


def _plain_node(node: Mapping[str, Any], fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    kind, context = node["type"], node["context"]
    children = [_plain_node(child, fields) for child in node["children_spec"]]
    if kind is None:
        return {"type": None, "context": None, "children_spec": children}
    if kind in _CONTAINERS:
        return {"type": _CONTAINERS[kind], "context": context, "children_spec": children}
    named = fields.get(context) if isinstance(context, str) else None  # a named tuple's
    keys = list(named) if named is not None else _keys(_parsed(context), len(children))
    if keys is None or len(keys) != len(children):
        return {"type": "builtins.tuple", "context": "null", "children_spec": children}
    return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": children}


def _parsed(context: Any) -> Any:
    try:
        return json.loads(context)
    except (TypeError, ValueError):
        return None


def _keys(context: Any, count: int) -> list[str] | None:
    """The first list of ``count`` distinct names in a context."""
    if not isinstance(context, list):
        return None
    if len(context) == count and count and all(isinstance(key, str) for key in context):
        return list(context) if len(set(context)) == count else None
    return next((keys for part in context if (keys := _keys(part, count))), None)
