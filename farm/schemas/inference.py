"""An inference: an engine run once on given inputs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from farm.reports.records import Tensor
from farm.schemas.base import Answer, Digest, Name, Request, Said
from farm.schemas.problems import Failure
from farm.specs.precision import Precision
from farm.specs.references import AliasName
from farm.specs.runtime import Runtime
from farm.specs.states import JobState

INFER_EXAMPLE: dict[str, Any] = {
    "model": "digits",
    "alias": "prod",
    "gpu": "h100",
    "inputs": "sha256:" + "d" * 64,
}


class InferRequest(Request):
    """An engine, by its id or as a pull finds it, and the inputs to run it on."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [INFER_EXAMPLE]})

    engine: Annotated[str, StringConstraints(max_length=100)] | None = Field(
        None, description="an engine's id, instead of all that finds one"
    )
    model: Name | None = None
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    alias: AliasName | None = None
    gpu: Annotated[str, StringConstraints(max_length=100)] | None = Field(
        None, description="by default any that an online worker has, else cpu"
    )
    precision: Precision | None = None
    runtime: Runtime | None = None
    inputs: Digest = Field(
        description="an uploaded .npz, .npy or .safetensors file: one array an input, all of one batch"
    )

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        finds = self.model_dump(exclude={"engine", "inputs"}, exclude_none=True)
        if self.engine is not None and finds:
            raise ValueError(f"an engine's id leaves nothing to choose: omit {', '.join(finds)}")
        if self.engine is None and self.model is None:
            raise ValueError("name an engine, or a model")
        return self


class InferenceView(Answer):
    id: int
    state: JobState
    engine: str | None = Field(None, description="the engine's id, in the answer to the request")
    target: str
    why: str | None = Field(None, description="why this engine, in the answer to the request")
    phase: str | None = None
    worker: Said | None = None
    waits_for: str | None = Field(
        None, description="the worker it waits for, if none that can run it is online any more"
    )
    error: Failure | None = None
    outputs: list[Tensor] = Field([], description="once it has succeeded")
    run_ms: float | None = Field(
        None, description="the time that one run took, cold: not a measurement"
    )
    digest: Digest | None = Field(None, description="of the outputs' .npz file")
    created_at: datetime
    finished_at: datetime | None = None
