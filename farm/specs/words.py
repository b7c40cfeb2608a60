"""Words of a fixed set, which users write in any case."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import BeforeValidator


class Folded(StrEnum):
    """A member is found by its value in any case: ``FP16`` is ``fp16``."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        wanted = lowered(value)
        return next((one for one in cls if one.value == wanted), None)


def lowered(value: Any) -> Any:
    """A text in lower case; anything else as it is."""
    return value.strip().lower() if isinstance(value, str) else value


#: For a ``Literal`` of lower-case words.
AnyCase = BeforeValidator(lowered)
