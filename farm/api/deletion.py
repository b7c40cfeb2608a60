"""Deletion of engines, versions, models, intermediates and uploads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy.orm import Session

from farm.api.services import By, Farm, ModelName, Services, WholeEngineId, answer, problems
from farm.api.yanks import Number
from farm.daemon import keeper
from farm.keeping import deletion
from farm.keeping.deletion import Deleted
from farm.schemas.base import Digest
from farm.schemas.deletion import Deletion, UploadDeleted
from farm.trust.callers import Caller

router = APIRouter(prefix="/v1", tags=["registry"])

DryRun = Annotated[
    bool,
    Query(description="only say what would go, what stays for whom, and why it would be refused"),
]


@router.delete(
    "/engines/{engine_id}",
    summary="Delete an engine",
    response_model=Deletion,
    responses=problems(404, 409),
)
def delete_engine(
    engine_id: WholeEngineId, farm: Farm, by: By, dry_run: DryRun = False
) -> Response:
    """Delete an engine, by its whole id, with all its judgements. Submitted again, it is built again.

    Refused with 409 while an alias names its version or a build that wants it is running.
    """

    def work(session: Session) -> Deleted:
        return deletion.engine(session, engine_id, dry_run=dry_run)

    return _delete(farm, by, work)


@router.delete(
    "/models/{model}/versions/{version}",
    summary="Delete a version",
    response_model=Deletion,
    responses=problems(404, 409),
)
def delete_version(
    model: ModelName, version: Number, farm: Farm, by: By, dry_run: DryRun = False
) -> Response:
    """Delete a version with its engines, and the files that nothing else refers to.

    Its builds and their logs can still be read, and its number is never given again. Refused with 409 while
    an alias names it or a build of it is running.
    """

    def work(session: Session) -> Deleted:
        return deletion.version(session, model, version, dry_run=dry_run)

    return _delete(farm, by, work)


@router.delete(
    "/models/{model}/versions/{version}/intermediates",
    summary="Delete a version's intermediates",
    response_model=Deletion,
    responses=problems(404, 409),
)
def delete_intermediates(
    model: ModelName, version: Number, farm: Farm, by: By, dry_run: DryRun = False
) -> Response:
    """Delete what was made between a version's source and its engines, such as typed ONNX.

    Its engines stay. What a later build lacks is made again. Refused with 409 while a build is running.
    """

    def work(session: Session) -> Deleted:
        return deletion.intermediates(session, model, version, dry_run=dry_run)

    return _delete(farm, by, work)


@router.delete(
    "/models/{model}/intermediates",
    summary="Delete a model's intermediates",
    response_model=Deletion,
    responses=problems(404, 409),
)
def delete_all_intermediates(
    model: ModelName, farm: Farm, by: By, dry_run: DryRun = False
) -> Response:
    """Delete what was made between the sources and the engines of all versions."""

    def work(session: Session) -> Deleted:
        return deletion.intermediates(session, model, dry_run=dry_run)

    return _delete(farm, by, work)


@router.delete(
    "/models/{model}",
    summary="Delete a model",
    response_model=Deletion,
    responses=problems(404, 409),
)
def delete_model(model: ModelName, farm: Farm, by: By, dry_run: DryRun = False) -> Response:
    """Delete all versions of a model. If it is submitted again, the numbers go on."""

    def work(session: Session) -> Deleted:
        return deletion.model(session, model, dry_run=dry_run)

    return _delete(farm, by, work)


@router.delete(
    "/blobs/{digest}",
    summary="Delete an upload",
    tags=["blobs"],
    response_model=UploadDeleted,
    responses=problems(403, 404, 409),
)
def delete_upload(digest: Annotated[Digest, Path()], farm: Farm, by: By) -> Response:
    """Delete an upload that nothing refers to. What somebody else uploaded takes the scope `admin`.

    Refused with 409, naming what refers to it.
    """
    return answer(keeper.delete_upload(farm.db, farm.store, digest, by))


def _delete(farm: Services, by: Caller, work: Callable[[Session], Deleted]) -> Response:
    return answer(keeper.delete(farm.db, farm.store, work, by))
