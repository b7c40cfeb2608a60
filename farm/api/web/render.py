"""Renders templates: everything in them is escaped, whoever typed it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.responses import HTMLResponse, RedirectResponse, Response

from farm import __version__
from farm.errors import FarmError, KeyNeeded
from farm.registry.verdicts import verdict
from farm.reports import shown
from farm.specs import texts
from farm.specs.scopes import Scope
from farm.trust.callers import Caller, allows

STATIC = Path(__file__).parent / "static"
#: Where a browser is rather than a client of the API.
_PAGES = re.compile(r"/|/(builds|jobs|models|engines|fleet|search|audit|keys|login)(/.*)?")
_NAVIGATION = (
    ("/", "Now", Scope.READ),
    ("/builds", "Builds", Scope.READ),
    ("/models", "Models", Scope.READ),
    ("/fleet", "Fleet", Scope.READ),
    ("/search", "Search", Scope.READ),
    ("/audit", "Audit", Scope.ADMIN),
    ("/keys", "Keys", Scope.ADMIN),
)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def is_page(path: str) -> bool:
    """Whether a path is one of the page's, whose errors are shown as HTML."""
    return _PAGES.fullmatch(path) is not None


def page(
    request: Request, by: Caller, template: str, *, status: int = 200, **values: Any
) -> Response:
    """A page, or 304 if the browser has it already.

    Parameters:
        values: what the template shows.
    """
    text = environment().get_template(template).render(**_common(request.url.path, by), **values)
    content = text.encode()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Cache-Control": "private, no-cache", "ETag": tag, "Vary": "Cookie"}
    if status == HTTPStatus.OK and request.headers.get("if-none-match") == tag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return HTMLResponse(content, status, headers)


def failed(err: FarmError, path: str, status: int, headers: dict[str, str]) -> Response:
    """An error as a page; whoever needs a key is led to where to give it."""
    if isinstance(err, KeyNeeded) and path != "/login":
        return RedirectResponse(f"/login?next={quote(path, safe='/')}", HTTPStatus.SEE_OTHER)
    nobody = Caller(name="", scopes=frozenset())
    text = (
        environment()
        .get_template("error.html")
        .render(**_common(path, nobody), error=err, status=HTTPStatus(status))
    )
    return HTMLResponse(text, status, {**headers, "Cache-Control": "no-store"})


def _common(path: str, by: Caller) -> dict[str, Any]:
    def may(scope: str) -> bool:
        return allows(by.scopes, Scope(scope))

    return {
        "path": path,
        "by": by,
        "may": may,
        "navigation": [(to, name) for to, name, scope in _NAVIGATION if may(scope)],
        "version": __version__,
    }


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("farm.api.web"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "ago": shown.ago,
        "duration": shown.duration,
        "elapsed": shown.elapsed,
        "ms": shown.milliseconds,
        "share": shown.share,
        "size": shown.size,
        "judged_on": shown.judged_on,
        "task": shown.task,
        "drop_interval": shown.drop_interval,
        "agrees": shown.agrees,
        "compute_types": shown.compute_types,
        "verdict": verdict,
        "told": texts.escaped,
        "json": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        "segment": lambda value: quote(str(value), safe=""),
    }
    made.filters |= filters
    made.globals |= {"asset": asset, "NONE": shown.NONE}
    return made


@cache
def asset(name: str) -> str:
    """The URL of a static file, which changes with its content."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{Path(name).name}?v={digest[:12]}"
