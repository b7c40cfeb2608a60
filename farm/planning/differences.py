"""Describes the differences between two recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from farm.planning.recipe import Made, Recipe, named
from farm.specs.roles import Role

#: The fields of a target, which is told as one.
_TARGET = {"runtime", "gpu"}


def differences(old: Recipe, new: Recipe, samples: str = "") -> Iterator[str]:
    """Describe the differences between two recipes.

    Parameters:
        samples: appended where the calibration data differ.
    """
    for tool in sorted(old.tools.keys() | new.tools.keys()):
        before, after = old.tools.get(tool, "none"), new.tools.get(tool, "none")
        if before != after:
            yield f"{tool} {before} → {after}"
    if old.stage != new.stage:
        yield f"the farm's {new.kind} stage {old.stage} → {new.stage}"
    for role in sorted(old.inputs.keys() | new.inputs.keys()):
        given = old.inputs.get(role), new.inputs.get(role)
        if given[0] != given[1]:
            pruned = role == Role.SOURCE and any(isinstance(one, Made) for one in given)
            what = "the pruning of the source" if pruned else _in_words(role)
            yield f"{what} differs{samples if role == Role.CALIBRATION else ''}"
    yield from _fields(old.params, new.params)


def _in_words(role: str) -> str:
    return Role(role).in_words if role in set(Role) else role


def _fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "options" and before and after:
            yield from _fields(before, after)
        elif _is_group(before) and _is_group(after):
            yield from (f"{name}: {one}" for one in _fields(before, after))
        else:
            yield f"{name} {_short(before)} → {_short(after)}"


def _is_group(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, dict) and value.keys() != _TARGET and not named(value)


def _short(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict) and value.keys() == _TARGET:
        return f"{value['runtime']}:{value['gpu']}"
    text = named(value) or str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
