"""Error responses and lost connections as the farm's own errors."""

from __future__ import annotations

import ssl
from typing import Any, TypeGuard

import httpx2

from farm.client.plain import plain, plain_value
from farm.errors import FarmError, KeyNeeded, NotFound, Unavailable, from_code

#: Temporary: the farm is overloaded, or a part of it is unreachable.
_BUSY = frozenset({429, 502, 503, 504})
_CHALLENGE = 'Bearer realm="engine farm"'
_LONGEST_RETRY_AFTER_S = 10.0


def is_passing(err: Exception) -> TypeGuard[Unavailable]:
    """Whether a retry a little later may succeed."""
    return isinstance(err, Unavailable) and err.status in _BUSY


def unreachable(url: str, err: httpx2.TransportError, *, hint: str) -> Unavailable:
    """The user-facing error for a lost or refused connection.

    Parameters:
        hint: if nothing answers there.
    """
    if isinstance(err, httpx2.UnsupportedProtocol):
        scheme = f"write the scheme, too: http://{url}"
        return Unavailable(f"{url!r} isn't an http:// or https:// address", hint=scheme)
    tls = _tls_fault(err)
    if tls is not None:
        return _untrusted(url, tls)
    if isinstance(err, httpx2.ConnectError | httpx2.ConnectTimeout):
        return Unavailable(f"no farm answers at {url}: {_said(err)}", hint=hint)
    if isinstance(err, httpx2.TimeoutException):
        return Unavailable(f"the farm at {url} didn't answer in time ({_said(err)})")
    return Unavailable(f"the connection to {url} was lost: {_said(err)}")


def _tls_fault(err: BaseException) -> ssl.SSLError | None:
    """What went wrong with TLS, if that is why there is no connection."""
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _untrusted(url: str, err: ssl.SSLError) -> Unavailable:
    if isinstance(err, ssl.SSLCertVerificationError):
        return Unavailable(
            f"the certificate of {url} isn't trusted here: {err.verify_message or _said(err)}",
            hint="if it is of a CA of your own, set SSL_CERT_FILE to that CA's certificate; otherwise check "
            "the address, and this machine's clock",
        )
    return Unavailable(
        f"no TLS connection to {url}: {err.reason or _said(err)}",
        hint="does it speak TLS there? if not, write http://",
    )


def error_of(response: httpx2.Response) -> FarmError:
    """The farm's error that a response reports, with the same class, status, detail and hint."""
    status = response.status_code
    problem = _problem(response)
    if problem is None:
        return _keyless(response) or _foreign(response)
    hint = problem.get("hint")
    error = from_code(str(problem["code"]), str(problem["detail"]), hint and str(hint))
    # The status decides whether a client may retry; the unknown code is kept.
    kind = {404: NotFound}.get(status, Unavailable if status in _BUSY else FarmError)
    if not isinstance(error, kind):
        error = kind(error.detail, hint=hint and str(hint))
        error.code = str(problem["code"])
    error.status = status
    error.retry_after_s = _asked_s(response)
    return error


def _problem(response: httpx2.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    if isinstance(body, dict) and "errors" in body:
        body = _of_oci(body)
    if not isinstance(body, dict) or not {"code", "detail"} <= body.keys():
        return None
    problem: dict[str, Any] = plain_value(body)
    return problem


def _of_oci(body: dict[str, Any]) -> dict[str, Any] | None:
    """The problem that the farm's OCI errors tell of."""
    try:
        [error] = body["errors"]
        more: dict[str, Any] = error["detail"]
        return {"detail": error["message"]} | more
    except (TypeError, ValueError, KeyError):
        return None


def _keyless(response: httpx2.Response) -> FarmError | None:
    """The farm's error for a key that it doesn't accept, from the headers: an answer to HEAD has no body."""
    challenge = response.headers.get("WWW-Authenticate", "")
    if response.status_code != KeyNeeded.status or not challenge.startswith(_CHALLENGE):
        return None
    was_given = "invalid_token" in challenge
    return KeyNeeded("the farm doesn't know this key" if was_given else "this farm requires a key")


def _foreign(response: httpx2.Response) -> FarmError:
    """The error for a response that isn't the farm's: a proxy's, or one without a body."""
    request, status = response.request, response.status_code
    phrase = response.reason_phrase or "an error"
    detail = plain(f"{request.method} {request.url} answered {status} {phrase}")
    kinds: dict[int, type[FarmError]] = {404: NotFound} | dict.fromkeys(_BUSY, Unavailable)
    error = kinds.get(status, FarmError)(detail, hint="is this an engine farm's address?")
    error.status = status
    error.retry_after_s = _asked_s(response)
    return error


def _asked_s(response: httpx2.Response) -> float:
    try:
        asked_s = float(response.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0  # an HTTP date: our own backoff applies
    return min(asked_s, _LONGEST_RETRY_AFTER_S) if asked_s > 0 else 0.0


def _said(err: Exception) -> str:
    return str(err) or type(err).__name__
