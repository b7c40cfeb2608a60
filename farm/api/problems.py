"""Every error is rendered here, as RFC 9457 ``application/problem+json``, or below ``/v2/`` as OCI has it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

from farm import logs
from farm.api import oci_errors
from farm.api.web import render
from farm.errors import (
    Conflict,
    FarmError,
    HttpError,
    InternalError,
    InvalidRequest,
    KeyNeeded,
    ScopeMissing,
    Unavailable,
)
from farm.schemas.problems import field_of
from farm.specs import faults, texts

log = logging.getLogger(__name__)

_MOST_TOLD, _MOST_CHARS = 10, 500
_LATER = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)


def install(app: FastAPI) -> None:
    app.add_exception_handler(FarmError, _farm_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _broken_off)
    app.add_exception_handler(IntegrityError, _raced)
    app.add_exception_handler(StaleDataError, _raced)
    app.add_exception_handler(Exception, _bug)


def rendered(err: FarmError, path: str, status: int | None = None) -> Response:
    """An error as the response to a request for this path, by default with its class's status."""
    if oci_errors.is_oci(path):
        status = status or err.status
        return oci_errors.answer(err, status, _later(err, status))
    if render.is_page(path):
        status = status or err.status
        return render.failed(err, path, status, _later(err, status))
    return problem(err, status)


def problem(err: FarmError, status: int | None = None) -> JSONResponse:
    """An error as a problem document, by default with its class's status."""
    status = status or err.status
    headers = _later(err, status)
    if isinstance(err, KeyNeeded | ScopeMissing):
        headers["WWW-Authenticate"] = _challenge(err)
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": err.code,
        "detail": err.detail,
        "hint": err.hint,
    }
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _later(err: FarmError, status: int) -> dict[str, str]:
    wait_s = math.ceil(err.retry_after_s) or 2
    return {"Retry-After": str(wait_s)} if status in _LATER else {}


def _challenge(err: KeyNeeded | ScopeMissing) -> str:
    """The WWW-Authenticate header that RFC 6750 prescribes for a client that needs another key."""
    if isinstance(err, ScopeMissing):
        return f'Bearer realm="engine farm", error="insufficient_scope", scope="{err.scope}"'
    return 'Bearer realm="engine farm"' + (', error="invalid_token"' if err.was_given else "")


async def _farm_error(request: Request, err: Exception) -> Response:
    assert isinstance(err, FarmError)
    if isinstance(err, Unavailable):
        log.warning("%s %s: %s", request.method, request.url.path, err.detail)
    request.app.state.services.requests.refused(err)
    return rendered(err, request.url.path)


async def _invalid(request: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    return rendered(invalid(err.errors()), request.url.path)


def invalid(errors: Sequence[Any]) -> InvalidRequest:
    """What is wrong with a request, from Pydantic's errors."""
    told = [_explain(one) for one in errors[:_MOST_TOLD]]
    more = len(errors) - len(told)
    detail = "; ".join(told) + (f"; and {more} more" if more else "")
    return InvalidRequest(detail, hint="the request's fields are described at /docs")


def _explain(error: dict[str, Any]) -> str:
    where = field_of(error["loc"])
    said = faults.told(error)
    if where:
        said = f"{where}: {said}"
    elif not faults.is_own(error):
        said = f"the request {said}"
    told: str = texts.escaped(said)
    return told if len(told) <= _MOST_CHARS else f"{told[:_MOST_CHARS]}…"


async def _http(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    hint = "the calls are listed at /docs" if err.status_code == HTTPStatus.NOT_FOUND else None
    answer = rendered(HttpError(str(err.detail), hint=hint), request.url.path, err.status_code)
    answer.headers.update(err.headers or {})
    if err.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        answer.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return answer


def _methods(request: Request) -> set[str]:
    """The allowed methods of all calls at a path: Starlette reports only the first call's."""
    found: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if route.path and compile_path(route.path)[0].match(request.url.path):
            found |= route.methods or set()
    return found


async def _broken_off(request: Request, _err: Exception) -> Response:
    log.info("%s %s was aborted", request.method, request.url.path)
    detail = "the request was aborted, or its chunks are malformed; nothing was stored"
    return rendered(HttpError(detail, hint="send it again in full"), request.url.path)


async def _raced(request: Request, err: Exception) -> Response:
    """A row that another request made, changed or deleted meanwhile: nothing of this one was kept."""
    log.warning("%s %s lost a race", request.method, request.url.path, exc_info=err)
    told = Conflict(
        "another request changed what this one needs at the same moment; nothing was done",
        hint="look at it again, and send the request again",
    )
    return rendered(told, request.url.path)


async def _bug(request: Request, err: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=err)
    request_id = logs.handled().get("request_id")
    told = InternalError(
        "this is a bug in the farm; the API's log has the traceback"
        + (f" under request {request_id}" if request_id else "")
    )
    return rendered(told, request.url.path)
