"""Where a browser gives its key, or follows the link that ``farm open`` makes."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from farm.api import cookies
from farm.api.services import By, Farm
from farm.api.web.render import page
from farm.specs.paths import local
from farm.trust import logins
from farm.trust.callers import Caller

router = APIRouter(include_in_schema=False)

_NOBODY = Caller(name="", scopes=frozenset())


@router.get("/login")
def login(
    request: Request, farm: Farm, by: By, link: str | None = None, next: str = "/"
) -> Response:
    to = local(next)
    if link is None:
        needed = farm.settings.keys_required
        return page(request, _NOBODY, "login.html", next=to, is_needed=needed)
    with farm.db.write() as session:
        _, text = logins.follow(session, link, address=by.address)
    farm.ring.forget()
    response = RedirectResponse(to, HTTPStatus.SEE_OTHER)
    cookies.keep(response, request, farm.settings, text)
    return response
