"""Plugin libraries of TensorRT."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from farm.schemas.base import Answer, Digest, Request


class PluginRequest(Request):
    """A library to be allow-listed."""

    digest: Digest
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]
    signature: Annotated[str, StringConstraints(max_length=100)] = Field(
        description="Ed25519 signature of the library's bytes, in base64"
    )


class PluginView(Answer):
    """A library of TensorRT plugins that builds may name."""

    digest: Digest
    name: str
    bytes: int
    key: str = Field(description="the key in FARM_PLUGIN_KEYS that signed it")
    created_at: datetime
