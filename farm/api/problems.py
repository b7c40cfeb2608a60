"""Every error is rendered here, as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from farm.errors import FarmError, HttpError, InternalError, InvalidRequest, Unavailable

log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    app.add_exception_handler(FarmError, _farm_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _broken_off)
    app.add_exception_handler(Exception, _bug)


def problem(err: FarmError, status: int | None = None) -> JSONResponse:
    """An error as the API's answer, by default with its class's status."""
    status = status or err.status
    headers = {"Retry-After": "2"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": err.code,
        "detail": err.detail,
        "hint": err.hint,
    }
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _farm_error(request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, FarmError)
    if isinstance(err, Unavailable):
        log.warning("%s %s: %s", request.method, request.url.path, err.detail)
    return problem(err)


async def _invalid(request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, RequestValidationError)
    detail = "; ".join(_explain(one) for one in err.errors())
    hint = f"the request's fields are described at {request.base_url}docs"
    return problem(InvalidRequest(detail, hint=hint))


def _explain(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "body")
    return f"{where}: {error['msg']}" if where else str(error["msg"])


async def _http(_request: Request, err: Exception) -> JSONResponse:
    assert isinstance(err, HTTPException)
    hint = "the calls are listed at /docs" if err.status_code == HTTPStatus.NOT_FOUND else None
    return problem(HttpError(str(err.detail), hint=hint), err.status_code)


async def _broken_off(request: Request, _err: Exception) -> JSONResponse:
    log.info("%s %s broke off", request.method, request.url.path)
    detail = "the request broke off, or its chunks are malformed; nothing was kept"
    return problem(HttpError(detail, hint="send it again, whole"))


async def _bug(request: Request, err: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=err)
    return problem(InternalError("the farm has a bug here; the API's log has the traceback"))
