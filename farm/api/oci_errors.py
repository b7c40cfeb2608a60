"""Errors below ``/v2/``, as distribution-spec 1.1 has them: ``{"errors": [{code, message, detail}]}``."""

from __future__ import annotations

from http import HTTPStatus

from fastapi.responses import JSONResponse

from farm import errors
from farm.errors import FarmError, KeyNeeded

ROOT = "/v2"
_CODES: dict[type[FarmError], str] = {
    errors.BlobUnknown: "BLOB_UNKNOWN",
    errors.ManifestUnknown: "MANIFEST_UNKNOWN",
    errors.RepositoryUnknown: "NAME_UNKNOWN",
    errors.UploadUnknown: "BLOB_UPLOAD_UNKNOWN",
    errors.RepositoryNameInvalid: "NAME_INVALID",
    errors.DigestInvalid: "DIGEST_INVALID",
    errors.DigestMismatch: "DIGEST_INVALID",
    errors.ManifestBlobUnknown: "MANIFEST_BLOB_UNKNOWN",
    errors.ManifestInvalid: "MANIFEST_INVALID",
    errors.ChunkOutOfOrder: "BLOB_UPLOAD_INVALID",
    errors.TooLarge: "SIZE_INVALID",
    errors.TagTaken: "DENIED",
    errors.UploadsUnused: "DENIED",
    errors.StillReferred: "UNSUPPORTED",
    errors.KeyNeeded: "UNAUTHORIZED",
    errors.ScopeMissing: "DENIED",
    errors.QuotaExceeded: "DENIED",
    errors.CrossSite: "DENIED",
    errors.WrongHost: "DENIED",
    errors.TooMany: "TOOMANYREQUESTS",
    errors.Unavailable: "UNAVAILABLE",
    errors.BlobDamaged: "UNAVAILABLE",
}
_OF_STATUS = {
    HTTPStatus.NOT_FOUND: "NAME_UNKNOWN",
    HTTPStatus.INTERNAL_SERVER_ERROR: "UNKNOWN",
}


def is_oci(path: str) -> bool:
    """Whether a path is of OCI's protocol."""
    return path == ROOT or path.startswith(f"{ROOT}/")


def answer(err: FarmError, status: int, headers: dict[str, str]) -> JSONResponse:
    """An error as OCI clients read it."""
    if isinstance(err, KeyNeeded):
        # What skopeo, oras and containerd answer with a user name and a password: the password is the key.
        headers = headers | {"WWW-Authenticate": 'Basic realm="engine farm"'}
    told = {
        "code": _code(err, status),
        "message": err.detail,
        "detail": {"hint": err.hint, "code": err.code},
    }
    return JSONResponse({"errors": [told]}, status, headers)


def _code(err: FarmError, status: int) -> str:
    for cls in type(err).__mro__:
        if cls in _CODES:
            return _CODES[cls]
    return _OF_STATUS.get(HTTPStatus(status), "UNSUPPORTED")
