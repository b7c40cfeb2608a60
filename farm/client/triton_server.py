"""A running Triton Inference Server: its model control, by plain HTTP."""

from __future__ import annotations

import time
from urllib.parse import quote

import httpx2

from farm.client import answers
from farm.client.http import reaches_this_machine
from farm.client.plain import plain
from farm.errors import FarmError, InvalidRequest, TritonLoadFailed, Unavailable

#: A large plan, and its warm-up, take minutes.
_LOAD_S = 1800.0
_ANSWER_S = 10.0
_POLL_S = 0.2
_EXPLICIT = "start Triton with --model-control-mode=explicit"


class TritonServer:
    """The server at a URL. It is sent no key of the farm's.

    Parameters:
        transport: carries the requests; for tests.

    Raises:
        InvalidRequest: this isn't an address.
    """

    def __init__(self, url: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            self._client = httpx2.Client(
                base_url=self.url,
                timeout=_ANSWER_S,
                transport=transport,
                headers={"Accept-Encoding": "identity"},
                trust_env=not reaches_this_machine(self.url),
            )
        except (httpx2.InvalidURL, ValueError) as err:
            raise InvalidRequest(f"{url!r} isn't an address: {err}") from err

    def load(self, model: str, version: int) -> None:
        """Have it load what its repository has of a model now; return once this version is ready.

        What the server had loaded of the model serves until then, and goes on if this fails.

        Raises:
            TritonLoadFailed: with Triton's reason.
            Unavailable: it can't be reached, or didn't say how it went.
        """
        response = self._send("POST", f"/v2/repository/models/{_part(model)}/load", _LOAD_S)
        if response.is_error:
            raise TritonLoadFailed(
                f"Triton at {self.url} didn't load {model} v{version}: {_reason(response)}",
                hint=_hint(response),
            )
        deadline = time.monotonic() + _ANSWER_S
        while not self.is_ready(model, version):
            if time.monotonic() > deadline:
                raise TritonLoadFailed(
                    f"Triton at {self.url} has loaded {model}, but its version {version} isn't ready",
                    hint="is Triton's --model-repository the one given with --repository?",
                )
            time.sleep(_POLL_S)

    def is_ready(self, model: str, version: int) -> bool:
        """Whether it serves this version.

        Raises:
            Unavailable
        """
        path = f"/v2/models/{_part(model)}/versions/{version}/ready"
        return self._send("GET", path, _ANSWER_S).is_success

    def _send(self, method: str, path: str, timeout_s: float) -> httpx2.Response:
        timeout = httpx2.Timeout(_ANSWER_S, read=timeout_s)
        try:
            with self._client.stream(method, path, timeout=timeout) as streamed:
                response = answers.whole(streamed)
        except httpx2.TransportError as err:
            raise Unavailable(
                f"Triton at {self.url} can't be reached: {plain(str(err)) or type(err).__name__}",
                hint="is it running, and is --triton-url its HTTP address (port 8000 by default)?",
            ) from err
        except FarmError as err:
            raise Unavailable(f"{err.detail}: no Triton at {self.url}?") from err
        if response.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
            raise Unavailable(f"Triton at {self.url} is unavailable: {_reason(response)}")
        return response


def _part(name: str) -> str:
    return quote(name, safe="")


def _reason(response: httpx2.Response) -> str:
    """What Triton says, or its status."""
    try:
        body = response.json()
    except ValueError:
        body = None
    said = body.get("error") if isinstance(body, dict) else None
    if not isinstance(said, str):
        return f"{response.status_code} {response.reason_phrase}"
    return plain(said).strip().rstrip(";").strip()


def _hint(response: httpx2.Response) -> str:
    said = _reason(response)
    if "explicit model load" in said:
        return _EXPLICIT
    if "failed to poll from model repository" in said:
        return "is Triton's --model-repository the one given with --repository?"
    return "the version before still serves; promote another, or roll back: farm rollback MODEL"
