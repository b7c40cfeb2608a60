"""Names of models."""

from __future__ import annotations


def folded(name: str) -> str:
    """What names that differ in case alone have in common."""
    return name.lower()
