"""Signatures of engines, and the keys that verify them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from farm.api.services import EngineId, Farm, answer, problems
from farm.schemas.signing import SignatureFormat, SigningKeys
from farm.signing.bundles import MEDIA_TYPE

router = APIRouter(prefix="/v1", tags=["registry"])


@router.get(
    "/engines/{engine_id}/signature",
    summary="Show an engine's signature",
    response_class=Response,
    responses=problems(404)
    | {200: {"content": {MEDIA_TYPE: {}}, "description": "a Sigstore bundle"}}
    | problems(503),
)
def signature(
    engine_id: EngineId,
    farm: Farm,
    format: Annotated[
        SignatureFormat,
        Query(
            description="`engine`: an in-toto statement of the engine, its reports and how it was made; "
            "`model-signing`: OpenSSF Model Signing v1.0, of the file alone"
        ),
    ] = SignatureFormat.ENGINE,
) -> Response:
    """The engine's Sigstore bundle: a signed in-toto statement in a DSSE envelope.

    404 `unsigned` if the farm has no signing key.
    """
    return Response(farm.signatory.bundle_of(engine_id, format), media_type=MEDIA_TYPE)


@router.get(
    "/signing-keys",
    summary="List signing keys",
    response_model=SigningKeys,
    responses=problems(503),
)
def signing_keys(farm: Farm) -> Response:
    """The keys that the farm signs with, or has signed with, newest first. None if it doesn't sign."""
    return answer(SigningKeys(items=farm.signatory.keys()))
