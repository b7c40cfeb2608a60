"""What differs between two recipes, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from farm.planning import parameters
from farm.specs.roles import Role


def differences(old: Mapping[str, Any], new: Mapping[str, Any], samples: str = "") -> Iterator[str]:
    """What differs between two recipes, in words.

    Parameters:
        samples: what to add where the calibration data differ.
    """
    for tool in sorted(old["tools"].keys() | new["tools"].keys()):
        before, after = old["tools"].get(tool, "none"), new["tools"].get(tool, "none")
        if before != after:
            yield f"{tool} {before} → {after}"
    if old["stage"] != new["stage"]:
        yield f"the farm's {new['kind']} stage {old['stage']} → {new['stage']}"
    for role in sorted(old["inputs"].keys() | new["inputs"].keys()):
        if old["inputs"].get(role) != new["inputs"].get(role):
            made_here = any("#" in recipe["inputs"].get(role, "") for recipe in (old, new))
            what = (
                "the pruning of the source"
                if role == Role.SOURCE and made_here
                else Role(role).in_words
                if role in set(Role)
                else role
            )
            yield f"{what} differs{samples if role == 'calibration' else ''}"
    yield from _fields(old["params"], new["params"])


def _fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if name == "options" and before and after:
            yield from _fields(before, after)
        elif before != after:
            yield f"{name} {_short(before)} → {_short(after)}"


def _short(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"runtime", "gpu"}:
        return f"{value['runtime']}:{value['gpu']}"
    text = parameters.named(value) or str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
