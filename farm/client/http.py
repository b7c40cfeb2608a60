"""Requests to the farm: retried if repeatable, with errors converted to the farm's own."""

from __future__ import annotations

import getpass
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from pydantic import TypeAdapter, ValidationError

from farm import __version__
from farm.client import answers, linked, problems
from farm.client.key import check_listener, home_of_user
from farm.client.key import find as find_key
from farm.client.meant import Meant
from farm.client.pins import Pins
from farm.client.plain import plain_json
from farm.client.retries import Backoff
from farm.client.seen import Seen
from farm.client.trust import Signing, Trust
from farm.errors import (
    FarmError,
    InvalidRequest,
    KeyNeeded,
    NotFound,
    TokenRefused,
    Unavailable,
)
from farm.schemas.signing import SigningKeys, SigningKeyView
from farm.specs import faults
from farm.tracing import spans

T = TypeVar("T")


def _who() -> str:
    """Who is calling, for the farm's audit: ``user@host``, in characters that a header allows."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}".encode("ascii", "replace").decode()[:100]


class Http:
    """One farm's address, reached over keep-alive connections."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        backoff: Backoff,
        key: str | None = None,
        token: str | None = None,
        transport: httpx2.BaseTransport | None = None,
        home: Path | None = None,
        signing: Signing = Signing(),
        meant: Meant = Meant(),
    ) -> None:
        self.url = url.rstrip("/")
        self.backoff = backoff
        self._meant = meant
        try:
            is_local = reaches_this_machine(self.url)
            self._key = find_key(key, is_local=is_local, home=home, token=token)
            pins = Pins.of_user(home or home_of_user())
            self.seen = Seen.of_user(home or home_of_user(), self.url)
            self.trust = Trust(
                self.url,
                is_local=is_local,
                pins=pins,
                signing=signing,
                offered=self.signing_keys,
            )
            headers = {
                "User-Agent": f"engine-farm/{__version__}",
                "Farm-Client": _who(),
                "Accept-Encoding": "identity",
            }
            if self._key.key:
                _check_key(self._key.key)
                headers["Authorization"] = f"Bearer {self._key.key}"
            hooks = [_carry_trace] if transport else [_carry_trace, self._check_listener]
            self._client = httpx2.Client(
                base_url=self.url,
                timeout=timeout_s,
                transport=transport,
                headers=headers,
                # A proxy meant for the internet can't reach this machine's own ports.
                trust_env=not is_local,
                event_hooks={"request": hooks},
            )
        except (httpx2.InvalidURL, ValueError) as err:
            raise InvalidRequest(f"{url!r} isn't an address: {err}", hint=meant.start_hint) from err

    def close(self) -> None:
        self._client.close()

    def _check_listener(self, request: httpx2.Request) -> None:
        # Each time: the farm may have ended, and somebody else have taken its port.
        if self._key.file is not None:
            check_listener(request.url, self._key.file)

    def signing_keys(self) -> list[SigningKeyView]:
        """The keys that the farm shows, the newest first; none of an earlier one.

        Raises:
            FarmError
        """
        try:
            return self.read(SigningKeys, "GET", "/v1/signing-keys").items
        except NotFound:
            return []

    def read(
        self,
        shape: type[T] | TypeAdapter[T],
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        **options: Any,
    ) -> T:
        """The response to a request, as this shape.

        Raises:
            FarmError: the farm's own error, or Unavailable.
        """
        response = self.request(method, path, repeatable=repeatable, **options)
        adapter = shape if isinstance(shape, TypeAdapter) else TypeAdapter(shape)
        return self.understand(adapter, response.content, f"the answer to {method} {path}")

    def understand(self, adapter: TypeAdapter[T], content: bytes, what: str) -> T:
        """The farm's JSON as its shape.

        Raises:
            FarmError: it doesn't have this shape.
        """
        with suppress(ValueError):  # validation reports it
            content = plain_json(content)
        try:
            return adapter.validate_json(content)
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FarmError(
                f"this client doesn't understand {what}: {where} {faults.told(first)}",
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
    ) -> httpx2.Response:
        """Send a request; wait and repeat it while the farm can't be reached.

        Parameters:
            repeatable: whether sending it twice does what sending it once does.
            body: creates the streamed body for each attempt.

        Raises:
            FarmError
        """
        for attempt in self.backoff.tries(None if repeatable else 1):
            with attempt:
                return self._send(method, path, content=body and body(), headers=headers, **options)
        raise AssertionError("an attempt returns or raises")

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send it once.

        Raises:
            FarmError
        """
        try:
            with self._client.stream(method, path, **options) as streamed:
                response = answers.whole(streamed)
        except httpx2.TransportError as err:
            raise self.unreachable(err) from err
        except httpx2.InvalidURL as err:
            raise InvalidRequest(f"{path!r} isn't a valid address: {err}") from err
        if response.is_error:
            raise self.error_of(response)
        return response

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], read_timeout_s: float
    ) -> Iterator[httpx2.Response]:
        """One attempt at a streamed GET, to be read by ``answers``; later failures are httpx2's errors.

        If the farm says that a bucket has the bytes, they come from there: whoever reads them verifies them.

        Raises:
            FarmError: the farm responded with an error other than 416.
        """
        timeout = httpx2.Timeout(self._client.timeout.connect, read=read_timeout_s)
        with self._client.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code == HTTPStatus.TEMPORARY_REDIRECT:
                elsewhere = response.url.join(response.headers.get("Location", ""))
            else:
                elsewhere = None
                if (
                    response.is_error
                    and response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                ):
                    raise self.error_of(answers.whole(response))
                yield response
        if elsewhere is not None:
            with linked.stream(self.url, elsewhere, headers, timeout) as response:
                yield response

    def unreachable(self, err: httpx2.TransportError) -> Unavailable:
        """The user-facing error for a lost or refused connection."""
        error = problems.unreachable(self.url, err, hint=self._meant.start_hint)
        self._meant.told(error, self.url)
        return error

    def error_of(self, response: httpx2.Response) -> FarmError:
        """The farm's error that a response reports; for a rejected key or token, with this client's hint."""
        error = problems.error_of(response)
        if isinstance(error, TokenRefused):
            error.hint = self._key.refused_hint
        elif isinstance(error, KeyNeeded):
            error.hint = self._key.hint
        self._meant.told(error, self.url)
        return error


def _carry_trace(request: httpx2.Request) -> None:
    """Have the farm continue the trace that this request is part of."""
    request.headers.update(spans.outgoing())


def _check_key(key: str) -> None:
    """Raise InvalidRequest unless it can be sent in a header."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest(
            "the given key isn't a farm's key, nor a token",
            hint="a key is one word, farm_…: look at FARM_KEY; so is a token, FARM_TOKEN",
        )


def reaches_this_machine(url: str) -> bool:
    """Whether an address is this machine's own.

    Raises:
        httpx2.InvalidURL
    """
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
