"""Labels and notes, which may be changed at any time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from farm.schemas.base import Request

MOST_LABELS = 32
LABEL_KEY = r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
_NO_CONTROLS = r"[^\x00-\x1f\x7f]{0,200}"
LabelKey = Annotated[str, StringConstraints(pattern=f"^{LABEL_KEY}$")]
LabelValue = Annotated[str, StringConstraints(pattern=f"^{_NO_CONTROLS}$")]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=MOST_LABELS)]
#: A filter: ``team=vision``, or ``team`` for any value.
LabelFilter = Annotated[
    str,
    StringConstraints(pattern=f"^{LABEL_KEY}(={_NO_CONTROLS})?$"),
    Field(examples=["team=vision"]),
]
Note = Annotated[str, StringConstraints(max_length=1000, strip_whitespace=True)]


class DescriptionChanges(Request):
    """What isn't given stays as it is."""

    labels: Annotated[dict[LabelKey, LabelValue | None], Field(max_length=MOST_LABELS)] = Field(
        {}, description="to set; null removes one", examples=[{"team": "vision", "stage": None}]
    )
    note: Note | None = Field(None, description="null, if given, removes it")
