"""Logins of browsers, by a key or for one."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from farm.api import cookies
from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, answer, problems
from farm.errors import KeyNeeded
from farm.schemas.logins import LoginLink, LoginRequest
from farm.specs.paths import local
from farm.trust import credentials, logins, tokens

router = APIRouter(prefix="/v1/login", tags=["keys"])


@router.post(
    "",
    status_code=204,
    summary="Log a browser in",
    response_class=Response,
    responses=problems(401),
    openapi_extra=json_body(LoginRequest),
)
def log_in(request: Request, body: Body, farm: Farm, by: By) -> Response:
    """Check a key or a token, and answer with a cookie that stands for it for twelve hours at most."""
    key = parsed(LoginRequest, body).key.strip()
    row, who = farm.ring.look(key) if credentials.id_of(key) else None, by
    if farm.subjects is not None and tokens.is_one(key):
        row, identity = farm.subjects.look(key)
        who = replace(by, scopes=identity.scopes, until=identity.expires_at)
    if row is None:
        raise KeyNeeded(
            "unknown key: it belongs to another farm, has expired, or was revoked",
            hint="`farm up` writes one to the file `key` in its home; an administrator creates others",
        )
    with farm.db.write() as session:
        _, text = logins.begin(session, replace(who, key_id=row.id, name=row.name))
    farm.ring.forget()
    response = Response(status_code=204)
    cookies.keep(response, request, farm.settings, text)
    return response


@router.delete("", status_code=204, summary="Log a browser out", response_class=Response)
def log_out(request: Request, farm: Farm) -> Response:
    """Forget the login that the request's cookie holds. Idempotent."""
    text = cookies.logged_in({"cookie": request.headers.getlist("cookie")}, farm.settings)
    if text is not None:
        with farm.db.write() as session:
            logins.end(session, text)
        farm.ring.forget()
    response = Response(status_code=204)
    cookies.drop(response, farm.settings)
    return response


@router.post(
    "/links",
    status_code=201,
    summary="Make a link that logs a browser in",
    response_model=LoginLink,
)
def make_link(request: Request, farm: Farm, by: By, next: str = "/") -> Response:
    """A link to the page that works once, within two minutes: for `farm open`."""
    base, to = str(request.base_url).rstrip("/"), local(next)
    headers = {"Cache-Control": "no-store"}
    if by.key_id is None:
        link = LoginLink(url=f"{base}{to}", expires_at=None)
        return answer(link, status=201, headers=headers)
    with farm.db.write() as session:
        made, text = logins.begin(session, by, is_link=True)
    url = f"{base}/login?link={text}&next={quote(to, safe='/')}"
    return answer(LoginLink(url=url, expires_at=made.expires_at), status=201, headers=headers)
