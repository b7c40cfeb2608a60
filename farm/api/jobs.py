"""Jobs: what they used."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import Field

from farm.api.services import Farm, answer, problems
from farm.queue import samples
from farm.schemas.samples import JobSamples

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[int, Path(description="a job's id"), Field(ge=1, le=2**63 - 1)]


@router.get(
    "/{job_id}/samples",
    summary="Show what a job used",
    response_model=JobSamples,
    responses=problems(404),
)
def job_samples(job_id: JobId, farm: Farm) -> Response:
    """What each attempt at a job used over its time: CPU, memory, and on a GPU worker the GPU.

    Sampled at an interval that grows with the attempt's duration; at most 200 samples an attempt.
    """
    with farm.db.read() as session:
        return answer(samples.of_job(session, job_id))
