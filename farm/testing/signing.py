"""What a stub farm signs of its engines, as the real one does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from farm.schemas.engines import EngineView
from farm.schemas.signing import EnginePredicate, SignedBy
from farm.signing import bundles, statements
from farm.signing.signers import Signer
from farm.testing.documents import NOW


def signed_bundle(manifest: Mapping[str, Any], format: str, signer: Signer) -> bytes:
    """A bundle of the engine that a manifest describes.

    Parameters:
        format: as in ``farm.schemas.signing.SignatureFormat``.
    """
    row = manifest["engine"]
    name, digest = EngineView.model_validate(row).file_name(), row["digest"]
    if format == "model-signing":
        return bundles.sealed(statements.of_file(name, digest), signer)
    predicate = EnginePredicate(
        engine=row,
        materials={"source": row["source_digest"]},
        provenance=manifest["provenance"],
        jobs=[],
        load=manifest.get("load", ""),
        signing_key=SignedBy(id=signer.key.id, public_key=signer.key.pem),
    )
    reports = {one: manifest["files"][one] for one in manifest["files"] if one != name}
    statement = statements.of_engine(name, digest, reports, predicate.model_dump(mode="json"))
    return bundles.sealed(statement, signer)


def shown_keys(signers: Sequence[Signer]) -> bytes:
    """The farm's keys, the newest first, each of which answers for those before and after it."""
    items = []
    for place, one in enumerate(signers):
        others = [other for other in signers if other.key.id != one.key.id]
        vouchers = {
            other.key.id: bundles.sealed(statements.of_key(one.key), other).decode()
            for other in others
        }
        items.append(
            {
                "id": one.key.id,
                "public_key": one.key.pem,
                "current": place == 0,
                "created_at": NOW,
                "revoked_at": None,
                "vouchers": vouchers,
            }
        )
    return json.dumps({"items": items}).encode()
