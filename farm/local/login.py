"""Flower's login: a key of the farm, by a header from programs, by a form and a cookie from browsers."""

from __future__ import annotations

import hashlib
import html
import secrets
import time
from collections import OrderedDict
from urllib.parse import quote, urlsplit

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from farm.errors import FarmError, KeyNeeded
from farm.trust import credentials
from farm.trust.ring import Ring

PATH = "/login"
_COOKIE = "farm_flower"
_LASTS_S = 12 * 3600.0
_SESSIONS = 1000
_FORM_BYTES = 4096
#: Only the form: no scripts, no styles, nothing from other sites.
_POLICY = "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Engine farm: log in</title>
</head>
<body>
<h1>Engine farm</h1>
<p>{told}</p>
<form method="post" action="/login">
<input type="hidden" name="next" value="{next}">
<label>Key
<input type="password" name="key" size="80" autocomplete="current-password" autofocus required></label>
<button>Log in</button>
</form>
<p>The key of <code>farm up</code> is in the file <code>key</code> in its home; create others with
<code>farm keys create --scope read</code>.</p>
</body>
</html>
"""


class Login:
    """Logged-in sessions. A browser never stores the key itself: cookies go to every port of a machine."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        #: sha256 of a cookie's value → the key's id, and the expiry time.
        self._sessions: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def check(self, request: HTTPServerRequest) -> None:
        """Refuse requests without a valid key.

        Raises:
            KeyNeeded
            FarmError: the database can't be asked.
        """
        said = request.headers.get_list("Authorization")
        if said:
            if len(said) > 1 or self._key_id(_sent(said[0])) is None:
                raise KeyNeeded("the farm doesn't know this key")
        elif not self._has_session(request):
            raise KeyNeeded("this farm requires a key")

    def enter(self, key: str) -> str:
        """Begin a session; return its cookie's value.

        Raises:
            KeyNeeded
        """
        key_id = self._key_id(key.strip())
        if key_id is None:
            raise KeyNeeded("the farm doesn't know this key")
        token = secrets.token_urlsafe(32)
        self._sessions[_digest(token)] = key_id, time.monotonic() + _LASTS_S
        while len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        return token

    def leave(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(token), None)

    def _key_id(self, key: str) -> str | None:
        row = self._ring.known(key) or self._ring.look(key)
        return None if row is None else row.id

    def _has_session(self, request: HTTPServerRequest) -> bool:
        cookie = request.cookies.get(_COOKIE)
        found = self._sessions.get(_digest(cookie.value)) if cookie else None
        # The key may have been revoked since.
        return found is not None and time.monotonic() < found[1] and self._ring.opens(found[0])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _sent(authorization: str) -> str:
    """The key in a header: as a bearer, or as the password that ``curl -u :KEY`` sends."""
    scheme, _, said = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return said.strip()
    return credentials.password(said) if scheme.lower() == "basic" else ""


def is_browser(request: HTTPServerRequest) -> bool:
    """Whether a browser requests a page."""
    wanted = request.headers.get("Accept", "")
    return request.method == "GET" and "text/html" in wanted


class Form(RequestHandler):
    """The login form for browsers."""

    def initialize(self, login: Login) -> None:
        self._login = login

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """Pages of other sites don't come as far as this: `farm.trust.hosts`."""

    def get(self) -> None:
        self._show("Flower shows what the farm's workers do.")

    def post(self) -> None:
        if len(self.request.body) > _FORM_BYTES:
            self.set_status(413)
            self._show("That isn't a key.")
            return
        try:
            token = self._login.enter(self.get_body_argument("key", ""))
        except FarmError as err:
            self.set_status(err.status)
            self._show(f"{err.detail}.")
            return
        self.set_cookie(
            _COOKIE,
            token,
            httponly=True,
            samesite="Strict",
            secure=self.request.protocol == "https",
        )
        self.redirect(_local(self.get_body_argument("next", "/")), status=303)

    def _show(self, told: str) -> None:
        where = _local(self.get_argument("next", "/"))
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(_PAGE.format(told=html.escape(told), next=html.escape(where)))


class Away(RequestHandler):
    """Logs browsers out."""

    def initialize(self, login: Login) -> None:
        self._login = login

    def check_xsrf_cookie(self) -> None:
        """Pages of other sites don't come as far as this: `farm.trust.hosts`."""

    def post(self) -> None:
        self._login.leave(self.get_cookie(_COOKIE) or "")
        self.clear_cookie(_COOKIE)
        self.redirect(PATH, status=303)


class ToForm(RequestHandler):
    """Redirects a browser without a session to the login form."""

    def get(self) -> None:
        self.redirect(f"{PATH}?next={quote(_local(self.request.uri or '/'), safe='')}", status=303)


def _local(where: str) -> str:
    """Restrict a path to Flower's own: no redirects to other sites after login."""
    try:
        found = urlsplit(where)
    except ValueError:
        return "/"
    is_ours = where.startswith("/") and not where.startswith("//") and "\\" not in where
    clean = all(character.isprintable() for character in where)
    return where if is_ours and clean and not (found.scheme or found.netloc) else "/"
