"""What the farm signs of an engine, and the keys it signs with."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from farm.schemas.base import Answer, Digest
from farm.specs.words import Folded


class SignatureFormat(Folded):
    """Which of an engine's signatures."""

    ENGINE = "engine"  #: an in-toto statement of the engine, its reports and how it was made
    MODEL_SIGNING = "model-signing"  #: OpenSSF Model Signing v1.0, of the engine's file alone


class JobRecord(Answer):
    """A job that had a part in an engine."""

    kind: str
    key: Digest = Field(description="identifies what it did: inputs, parameters, tools, target")
    worker: str | None
    tools: dict[str, str] = Field(description="package → version")
    inputs: dict[str, str] = Field(
        description="role → digest of what was uploaded, or key#role of the job that made it"
    )
    outputs: dict[str, Digest] = Field(description="role → digest")


class SignedBy(Answer):
    """The key that signs, so that its fingerprint is enough to verify."""

    id: str = Field(description="sha256 of its SubjectPublicKeyInfo")
    public_key: str = Field(description="PEM")


class EnginePredicate(Answer):
    """What is signed of an engine: the predicate `https://engine-farm/engine/v1` of an in-toto statement.

    Its subjects are the engine's file and its reports. It never changes: what may (yanks, aliases,
    comparisons, other judgements) isn't in it.
    """

    engine: dict[str, Any] = Field(description="an EngineView, without what may change")
    materials: dict[str, Digest] = Field(
        description="what it was made from and judged on: source, calibration, evaluation, typed ONNX"
    )
    provenance: dict[str, Any] = Field(
        description="the build and the measurement, with everything their keys cover"
    )
    jobs: list[JobRecord] = Field(description="every job it comes from, the last first")
    load: str = Field(description="Python source that loads the engine and runs it")
    signing_key: SignedBy


class SigningKeyView(Answer):
    """A key that the farm signs with, or has signed with."""

    id: str = Field(description="sha256 of its SubjectPublicKeyInfo; the fingerprint is sha256:ID")
    public_key: str = Field(description="PEM")
    current: bool = Field(description="whether engines are signed with it now")
    created_at: datetime
    revoked_at: datetime | None = Field(
        None, description="when it was called compromised: nothing it signed is to be trusted"
    )
    vouchers: dict[str, str] = Field(
        description="id of another of the farm's keys → its signed statement that this one is the farm's"
    )


class SigningKeys(Answer):
    items: list[SigningKeyView]
