"""Labels and notes, which may be changed at any time."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from farm.schemas.base import Request
from farm.specs import texts

MOST_LABELS = 32
LABEL_KEY = r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
_VALUE = f"{texts.LINE}{{0,200}}"


def _key(key: str) -> str:
    if not re.fullmatch(LABEL_KEY, key):
        raise ValueError(
            f"{key[:100]!r} can't be a label's key: use up to 63 letters, digits, '.', '_', '/' and '-', "
            "with a letter or a digit at both ends"
        )
    return key


LabelKey = Annotated[str, AfterValidator(_key)]
#: The schema of a key with a pattern would allow any other key, too.
_KEYS: dict[str, Any] = {"propertyNames": {"pattern": f"^{LABEL_KEY}$"}}
LabelValue = Annotated[
    str, StringConstraints(pattern=f"^{_VALUE}$"), BeforeValidator(texts.checked)
]
Labels = Annotated[
    dict[LabelKey, LabelValue], Field(max_length=MOST_LABELS, json_schema_extra=_KEYS)
]
#: A filter: ``team=vision``, or ``team`` for any value.
LabelFilter = Annotated[
    str,
    StringConstraints(pattern=f"^{LABEL_KEY}(={_VALUE})?$"),
    Field(examples=["team=vision"]),
]
Note = Annotated[
    str,
    StringConstraints(max_length=1000, pattern=f"^{texts.LINE}*$"),
    BeforeValidator(texts.checked),
]


class DescriptionChanges(Request):
    """What isn't given stays as it is."""

    labels: Annotated[
        dict[LabelKey, LabelValue | None],
        Field(max_length=MOST_LABELS, json_schema_extra=_KEYS),
    ] = Field(
        {}, description="to set; null removes one", examples=[{"team": "vision", "stage": None}]
    )
    note: Note | None = Field(None, description="null, if given, removes it")
