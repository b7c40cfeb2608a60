"""Login: with a key, or by the link that ``farm open`` makes."""

from __future__ import annotations

import re
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from farm.api.access import cookie_name, logged_in
from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, Services, answer, problems
from farm.api.web.render import page
from farm.errors import KeyNeeded
from farm.schemas.logins import LoginLink, LoginRequest
from farm.trust import credentials, logins
from farm.trust.callers import Caller

router = APIRouter()

#: A path of this farm: not `//host`, which is another's.
_PATH = re.compile(r"/(?![/\\])[^\x00-\x20\\]{0,500}")


@router.get("/login", include_in_schema=False)
def login(request: Request, farm: Farm, link: str | None = None, next: str = "/") -> Response:
    to = next if _PATH.fullmatch(next) else "/"
    if link is not None:
        with farm.db.write() as session:
            _, text = logins.follow(session, link)
        farm.ring.forget()
        response: Response = RedirectResponse(to, 303)
        _keep(response, request, farm, text)
        return response
    nobody = Caller(name="", scopes=frozenset())
    return page(request, nobody, "login.html", next=to, is_needed=farm.settings.keys_required)


@router.post(
    "/v1/login",
    status_code=204,
    summary="Log a browser in",
    tags=["keys"],
    response_class=Response,
    responses=problems(),
    openapi_extra=json_body(LoginRequest),
)
def log_in(request: Request, body: Body, farm: Farm) -> Response:
    """Check a key, and answer with a cookie that stands for it for twelve hours."""
    key = parsed(LoginRequest, body).key.strip()
    row = farm.ring.look(key) if credentials.id_of(key) else None
    if row is None:
        raise KeyNeeded(
            "unknown key: it belongs to another farm, has expired, or was revoked",
            hint="`farm up` writes one to the file `key` in its home; an administrator creates others",
        )
    with farm.db.write() as session:
        _, text = logins.begin(session, row.id)
    farm.ring.forget()
    response = Response(status_code=204)
    _keep(response, request, farm, text)
    return response


@router.delete(
    "/v1/login",
    status_code=204,
    summary="Log a browser out",
    tags=["keys"],
    response_class=Response,
)
def log_out(request: Request, farm: Farm) -> Response:
    """Forget the login that the request's cookie holds. Idempotent."""
    text = logged_in({"cookie": request.headers.getlist("cookie")}, farm.settings)
    if text is not None:
        with farm.db.write() as session:
            logins.end(session, text)
        farm.ring.forget()
    response = Response(status_code=204)
    response.delete_cookie(cookie_name(farm.settings))
    return response


@router.post(
    "/v1/login/links",
    status_code=201,
    summary="Make a link that logs a browser in",
    tags=["keys"],
    response_model=LoginLink,
)
def make_link(request: Request, farm: Farm, by: By, next: str = "/") -> Response:
    """A link to the page that works once, within two minutes: for `farm open`."""
    base = str(request.base_url).rstrip("/")
    to = next if _PATH.fullmatch(next) else "/"
    if by.key_id is None:
        return answer(LoginLink(url=f"{base}{to}", expires_at=None), status=201)
    with farm.db.write() as session:
        made, text = logins.begin(session, by.key_id, is_link=True)
    url = f"{base}/login?link={text}&next={quote(to, safe='/')}"
    headers = {"Cache-Control": "no-store"}
    return answer(LoginLink(url=url, expires_at=made.expires_at), status=201, headers=headers)


def _keep(response: Response, request: Request, farm: Services, text: str) -> None:
    is_https = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    response.set_cookie(
        cookie_name(farm.settings),
        text,
        max_age=int(logins.LASTS.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=is_https,
    )
    response.headers["Cache-Control"] = "no-store"
