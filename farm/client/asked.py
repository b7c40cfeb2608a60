"""What was asked for, and what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farm.errors import DigestMismatch
from farm.schemas.base import Answer
from farm.specs.names import folded


def check_is(found: Answer, asked: Mapping[str, Any], what: str = "an engine") -> None:
    """Whether this is what was asked for: any engine that the farm ever signed has a valid signature.

    Raises:
        DigestMismatch
    """
    for name, wanted in asked.items():
        said = getattr(found, name)
        if folded(str(said)) != folded(str(wanted)):
            raise DigestMismatch(
                f"the farm answers with {what} whose {name} is {said}, not {wanted}; nothing was kept",
                hint="don't use this farm, and alert its operator: somebody may be answering in its place",
            )
