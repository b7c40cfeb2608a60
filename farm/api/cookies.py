"""The cookie in which a browser keeps its login."""

from __future__ import annotations

import hashlib
from http.cookies import CookieError, SimpleCookie

from starlette.requests import Request
from starlette.responses import Response

from farm.settings import Settings
from farm.trust import credentials, logins
from farm.trust.hosts import Headers


def keep(response: Response, request: Request, settings: Settings, login: str) -> None:
    """Have the browser send this login from now on."""
    is_https = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    response.set_cookie(
        _name(settings),
        login,
        max_age=int(logins.LASTS.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=is_https,
    )
    response.headers["Cache-Control"] = "no-store"


def drop(response: Response, settings: Settings) -> None:
    """Have the browser forget its login."""
    response.delete_cookie(_name(settings), httponly=True, samesite="strict")


def _name(settings: Settings) -> str:
    """A farm's own: browsers share cookies among the ports of a host, and so among farms."""
    return f"farm_login_{hashlib.sha256(settings.database.encode()).hexdigest()[:8]}"


def logged_in(headers: Headers, settings: Settings) -> str | None:
    """The login that a browser sends, if it does."""
    name = _name(settings)
    for said in headers.get("cookie", ()):
        try:
            found = SimpleCookie(said).get(name)
        except CookieError:
            continue
        if found is not None and credentials.login_id_of(found.value):
            return found.value
    return None
