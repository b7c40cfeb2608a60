"""The span of a request, named by the route that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http import HTTPMethod, HTTPStatus

from starlette.types import Scope

from farm.tracing import spans
from farm.trust.hosts import Headers

Seen = Callable[[int], None]
_METHODS = frozenset(method.value for method in HTTPMethod)
#: Asked all the time by machines, and never of a build.
_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})


def unseen(_status: int) -> None:
    """What is told the status of a response that isn't traced."""


_NOTHING = nullcontext(unseen)


def request(scope: Scope, headers: Headers, request_id: str) -> AbstractContextManager[Seen]:
    """The span of a request; gives what is told the response's status."""
    if not spans.is_on() or scope["path"] in _UNTRACED:
        return _NOTHING
    return _traced(scope, headers, request_id)


@contextmanager
def _traced(scope: Scope, headers: Headers, request_id: str) -> Iterator[Seen]:
    # As OpenTelemetry has it: a method is any word.
    known = scope["method"] in _METHODS
    method = scope["method"] if known else "HTTP"
    attributes = {
        "http.request.method": method if known else "_OTHER",
        "url.scheme": scope.get("scheme"),
        "farm.request.id": request_id,
    }
    with spans.span(
        method, "server", parent=spans.incoming(headers), attributes=attributes
    ) as span:

        def seen(status: int) -> None:
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.rename(f"{method} {route}")
            span.set({"http.route": route, "http.response.status_code": status})
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                span.fail(str(status), HTTPStatus(status).phrase)

        yield seen
