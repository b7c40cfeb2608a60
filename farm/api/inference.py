"""Inferences: an engine run once on a worker, as a quick check."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy.exc import IntegrityError

from farm.api import contents
from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, Services, answer, problems
from farm.builds import inference
from farm.errors import Conflict, NotFound
from farm.quotas.admission import Work, admit
from farm.quotas.use import Holder
from farm.schemas.engines import Match
from farm.schemas.inference import InferenceView, InferRequest
from farm.trust import audit
from farm.trust.callers import Caller

router = APIRouter(prefix="/v1/infer", tags=["inferences"])

InferenceId = Annotated[int, Path(ge=1, le=2**63 - 1)]
_RACES = 10  #: how often an inference that raced another for the same work is retried


@router.post(
    "",
    status_code=202,
    summary="Run an engine",
    response_model=InferenceView,
    responses=problems(404, 409),
    openapi_extra=json_body(InferRequest),
)
def infer(body: Body, farm: Farm, by: By) -> Response:
    """Run an engine once on a worker that can. Upload the inputs first, then ask for its state until it ends.

    The inputs are checked before anything is queued. An equal inference is run once, and its result kept.
    """
    request = parsed(InferRequest, body)
    with farm.db.read() as session:
        match = inference.found(session, request, farm.fleet(session))
    if not farm.store.has(request.inputs):
        raise NotFound(
            f"the inputs {request.inputs} aren't here", hint="upload them first: POST /v1/blobs"
        )
    with (
        farm.one_of(farm.planning, "other requests are being planned"),
        farm.store.local(request.inputs) as file,
    ):
        inference.check(file, match.engine)
    view = _started(farm, request, match, by)
    return answer(view, status=202, headers={"Location": f"/v1/infer/{view.id}"})


def _started(farm: Services, request: InferRequest, match: Match, by: Caller) -> InferenceView:
    for _ in range(_RACES):
        try:
            with farm.db.write() as session:
                fleet = farm.fleet(session)
                job_id, bell = inference.start(
                    session, match.engine, request.inputs, fleet, client=by.client
                )
                if bell is not None:
                    admit(session, Holder.of(by), Work(queues=[bell.queue]), farm.expected_s)
                    audit.record(session, by, "infer", str(job_id), engine=match.engine.id)
                session.flush()
                view = inference.view(session, job_id, fleet, match)
        except IntegrityError:
            continue
        if bell is not None:
            farm.sweeper.ring([bell])
        return view
    raise Conflict("too many concurrent requests for the same work", hint="send it again")


@router.get(
    "/{inference_id}",
    summary="Show an inference",
    response_model=InferenceView,
    responses=problems(404),
)
def show(inference_id: InferenceId, farm: Farm) -> Response:
    """Its state, and once it has succeeded its outputs' names, types and shapes."""
    with farm.db.read() as session:
        return answer(inference.view(session, inference_id, farm.fleet(session)))


@router.get(
    "/{inference_id}/outputs",
    summary="Download what an engine gave",
    response_class=Response,
    responses=problems(404, 409, 416)
    | {
        200: {
            "content": {"application/octet-stream": {}},
            "description": "an .npz file, one array an output",
        },
        206: {
            "content": {"application/octet-stream": {}, "multipart/byteranges": {}},
            "description": "the requested range or ranges",
        },
    },
)
def outputs(inference_id: InferenceId, farm: Farm) -> Response:
    """The outputs of an inference that has succeeded. `ETag` is their digest."""
    with farm.db.read() as session:
        digest = inference.outputs(session, inference_id)
    found = farm.store.find(digest)
    if found is None:
        raise NotFound(f"the outputs of inference {inference_id} were deleted", hint="run it again")
    what = f"inference {inference_id}'s outputs"
    return contents.sent(farm, digest, found.bytes, what=what, etag=f'"{digest}"')


@router.delete(
    "/{inference_id}",
    summary="Cancel an inference",
    response_model=InferenceView,
    responses=problems(404),
)
def cancel(inference_id: InferenceId, farm: Farm, by: By) -> Response:
    """Cancel it if it hasn't ended. Idempotent."""
    with farm.db.write() as session:
        if inference.cancel(session, inference_id):
            audit.record(session, by, "infer.cancel", str(inference_id))
        session.flush()
        return answer(inference.view(session, inference_id, farm.fleet(session)))
