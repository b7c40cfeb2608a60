"""Requests to the farm: retried where a repeat is harmless, errors turned into the farm's own."""

from __future__ import annotations

import getpass
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from farm import __version__
from farm.client import answers
from farm.client.key import find as find_key
from farm.client.plain import plain, plain_json, plain_value
from farm.errors import FarmError, InvalidRequest, KeyNeeded, NotFound, Unavailable, from_code

T = TypeVar("T")

_BUSY = frozenset({429, 502, 503, 504})
_START_HINT = "is the farm running? start one with: farm up; or set FARM_URL (--url) to where it is"
_LONGEST_RETRY_AFTER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How often a repeatable request is tried, and how long is waited in between."""

    attempts: int = 4
    first_s: float = 0.2
    longest_s: float = 5.0

    def delay_s(self, failures: int) -> float:
        """What to wait after so many failures in a row: doubled each time."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 16))


def _who() -> str:
    """Who asks, for the farm's audit: ``user@host``, in what a header can hold."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}".encode("ascii", "replace").decode()[:100]


class Http:
    """One farm's address, spoken to over kept-alive connections."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        backoff: Backoff,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.backoff = backoff
        try:
            is_local = _is_local(self.url)
            self._key = find_key(key, is_local=is_local)
            headers = {
                "User-Agent": f"engine-farm/{__version__}",
                "Farm-Client": _who(),
                "Accept-Encoding": "identity",
            }
            if self._key.key:
                _check_key(self._key.key)
                headers["Authorization"] = f"Bearer {self._key.key}"
            self._client = httpx.Client(
                base_url=self.url,
                timeout=timeout_s,
                transport=transport,
                headers=headers,
                # A proxy meant for the internet can't reach this machine's own ports.
                trust_env=not is_local,
            )
        except (httpx.InvalidURL, ValueError) as err:
            raise InvalidRequest(f"{url!r} isn't an address: {err}", hint=_START_HINT) from err

    def close(self) -> None:
        self._client.close()

    def read(
        self,
        shape: type[T] | TypeAdapter[T],
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        **options: Any,
    ) -> T:
        """The answer to a request, as this shape.

        Raises:
            FarmError: the farm's own error, or Unavailable.
        """
        response = self.request(method, path, repeatable=repeatable, **options)
        adapter = shape if isinstance(shape, TypeAdapter) else TypeAdapter(shape)
        return self.understand(adapter, response.content, f"the answer to {method} {path}")

    def understand(self, adapter: TypeAdapter[T], content: bytes, what: str) -> T:
        """JSON of the farm as its shape.

        Raises:
            FarmError: it is another shape.
        """
        with suppress(ValueError):  # which the validation tells of
            content = plain_json(content)
        try:
            return adapter.validate_json(content)
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FarmError(
                f"this client doesn't understand {what}: {where} {first['msg']}",
                hint=f"is there an engine farm at {self.url}, and this client ({__version__}) "
                "as new as it?",
            ) from err

    def request(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        body: Callable[[], Iterable[bytes]] | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """Send a request; wait and repeat it while the farm can't be reached.

        Parameters:
            repeatable: whether sending it twice does what sending it once does.
            body: makes the streamed body, afresh for each attempt.

        Raises:
            FarmError
        """
        failures = 0
        while True:
            try:
                content = body() if body else None
                with self._client.stream(
                    method, path, content=content, headers=headers, **options
                ) as streamed:
                    response = answers.whole(streamed)
                if not response.is_error:
                    return response
                error, pause_s = self.error_of(response), _retry_after_s(response)
            except httpx.TransportError as err:
                error, pause_s = self.unreachable(err), 0.0
            except httpx.InvalidURL as err:
                raise InvalidRequest(f"{path!r} isn't a valid address: {err}") from err
            failures += 1
            if not (repeatable and isinstance(error, Unavailable) and error.status in _BUSY):
                raise error
            if failures >= self.backoff.attempts:
                raise error
            self.pause(failures, at_least_s=pause_s)

    def pause(self, failures: int, *, at_least_s: float = 0.0) -> None:
        """Wait before the next attempt."""
        # Scaled to nothing in tests, whose backoff is zero.
        wanted = self.backoff.delay_s(failures)
        time.sleep(max(wanted, at_least_s) if wanted else 0.0)

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], read_timeout_s: float
    ) -> Iterator[httpx.Response]:
        """One attempt at a streamed GET, to be read by ``answers``; what goes wrong then is httpx's error.

        Raises:
            FarmError: the farm's answer is an error, other than 416.
        """
        timeout = httpx.Timeout(self._client.timeout.connect, read=read_timeout_s)
        with self._client.stream("GET", path, headers=headers, timeout=timeout) as response:
            if (
                response.is_error
                and response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            ):
                raise self.error_of(answers.whole(response))
            yield response

    def error_of(self, response: httpx.Response) -> FarmError:
        """The farm's error that an answer tells of; of a key that it won't have, with what to do here."""
        error = error_of(response)
        if isinstance(error, KeyNeeded):
            error.hint = self._key.hint
        return error

    def unreachable(self, err: httpx.TransportError) -> Unavailable:
        """What a lost or refused connection means to a user."""
        if isinstance(err, httpx.UnsupportedProtocol):
            return Unavailable(
                f"{self.url!r} isn't an http:// or https:// address", hint=_START_HINT
            )
        if isinstance(err, httpx.ConnectError | httpx.ConnectTimeout):
            return Unavailable(f"no farm answers at {self.url}: {_said(err)}", hint=_START_HINT)
        if isinstance(err, httpx.TimeoutException):
            return Unavailable(f"the farm at {self.url} didn't answer in time ({_said(err)})")
        return Unavailable(f"the connection to {self.url} was lost: {_said(err)}")


def _check_key(key: str) -> None:
    """Raise InvalidRequest unless a header can hold it."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest(
            "what is given as a key to the farm isn't one",
            hint="a key is one word, farm_…: look at FARM_KEY",
        )


def error_of(response: httpx.Response) -> FarmError:
    """The farm's error that an answer tells of: of the same class, status, detail and hint."""
    status = response.status_code
    problem = _problem(response)
    if problem is None:
        return _foreign(response)
    hint = problem.get("hint")
    error = from_code(str(problem["code"]), str(problem["detail"]), hint and str(hint))
    # What a client may try again, or look for elsewhere, follows from the status; the code stays.
    kind = {404: NotFound}.get(status, Unavailable if status in _BUSY else FarmError)
    if not isinstance(error, kind):
        error = kind(error.detail, hint=hint and str(hint))
        error.code = str(problem["code"])
    error.status = status
    return error


def _problem(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    if not isinstance(body, dict) or not {"code", "detail"} <= body.keys():
        return None
    problem: dict[str, Any] = plain_value(body)
    return problem


def _foreign(response: httpx.Response) -> FarmError:
    """The error of an answer that isn't the farm's: a proxy's, or one without a body."""
    request, status = response.request, response.status_code
    phrase = response.reason_phrase or "an error"
    detail = plain(f"{request.method} {request.url} answered {status} {phrase}")
    kinds: dict[int, type[FarmError]] = {404: NotFound} | dict.fromkeys(_BUSY, Unavailable)
    error = kinds.get(status, FarmError)(detail, hint="is this an engine farm's address?")
    error.status = status
    return error


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("Retry-After", 0)), _LONGEST_RETRY_AFTER_S)
    except ValueError:
        return 0.0  # a date: our own backoff will do


def _said(err: Exception) -> str:
    return str(err) or type(err).__name__


def _is_local(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
