"""Versions of other farms, registered here once they are pushed."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, ModelName, Services, answer, problems
from farm.builds import mirrored
from farm.builds.vouched import Vouched, vouched
from farm.errors import Conflict
from farm.registry.oci import mirrored as copies
from farm.registry.oci.manifests import Document
from farm.registry.oci.mirrored import Blob
from farm.schemas.mirrors import MirrorRequest, Registered
from farm.signing import keys
from farm.signing.bundles import MAX_BUNDLE_BYTES
from farm.trust import audit

router = APIRouter(prefix="/v1", tags=["registry"])

_RACES = 10  #: how often a registration that raced another for the same work is retried


@router.post(
    "/models/{model}/mirror",
    summary="Register another farm's version",
    response_model=Registered,
    responses=problems(404, 409),
    openapi_extra=json_body(MirrorRequest),
)
def mirror(model: ModelName, body: Body, farm: Farm, by: By) -> Response:
    """Have a version of another farm, which was pushed to a repository of this one, in the registry.

    Its engines are pulled, and its work is reused by submissions, as this farm's own. So each engine needs a
    signature by a key that the caller vouches for. Aliases and yanks stay behind. Idempotent.
    """
    asked = parsed(MirrorRequest, body)
    with farm.one_of(farm.planning, "other builds are being planned"):
        said = _said(farm, asked)
        request = mirrored.source_of(model, said, new_inputs=asked.new_inputs)
        look = farm.looks.at(request.source.digest, request.source.format)

        def work(session: Session) -> Registered:
            made = mirrored.register(
                session, request, said, farm=asked.farm, look=look, client=by.client
            )
            new = [one.id for one in made.engines if one.is_new]
            if new:
                keys = {one.key.fingerprint for one in said if one.key is not None}
                details = asked.model_dump(include={"farm", "repository", "digest"})
                details |= {"signing_keys": sorted(keys), "engines": new}
                audit.record(session, by, "mirror", f"{made.model}@{made.version}", **details)
            return made

        for _ in range(_RACES):
            try:
                with farm.db.write() as session:
                    made = work(session)
                return answer(made)
            except IntegrityError:
                continue
    raise Conflict("too many concurrent submissions of the same work", hint="mirror it again")


def _said(farm: Services, asked: MirrorRequest) -> list[Vouched]:
    """What the other farm says of the version's engines, verified."""
    known = [keys.read(pem.encode()) for pem in asked.signing_keys]
    with farm.db.read() as session:
        found = copies.version(session, asked.repository, asked.digest)
    read = partial(_read, farm)
    return [vouched(one, found.source, known, read) for one in found.engines]


def _read(farm: Services, blob: Blob) -> bytes:
    if isinstance(blob, Document):
        return blob.body
    # One more, so that a larger one is noticed.
    return b"".join(farm.store.read(blob.digest, 0, MAX_BUNDLE_BYTES + 1))
