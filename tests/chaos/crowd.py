"""The clients: they submit builds of a few models over and over, cancel some, and pull what was built."""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from farm.client import Farm
from farm.errors import Unavailable
from tests.keys import bearer

PRECISIONS = ("fp32", "fp16")
TARGETS = ("tensorrt-rtx:sm_86", "tensorrt-rtx:sm_89", "tensorrt-rtx:sm_120")
ENDED = {"succeeded", "failed", "cancelled"}
#: What a client retries: a child that the storm killed is the build's failure, and says so.
RETRIED = {"child-out-of-memory", "child-died", "input-failed", "stage-failed"}
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Ended:
    """A build as its client last saw it."""

    id: str
    state: str
    request: dict[str, Any]
    error: dict[str, Any] | None


class Crowd:
    """Some clients at once.

    Parameters:
        models: how many different ones; the fewer, the more work is shared.
    """

    def __init__(
        self, url: str, key: str, seed: int, *, builds: int, models: int, clients: int = 8
    ) -> None:
        self._url = url
        self._key = key
        self._headers = bearer(key)
        self._builds = builds
        self._numbers = itertools.count()
        self._models = [tiny_model(n) for n in range(models)]
        self._clients = clients
        self._seed = seed
        self.retries = itertools.count()
        self.pulls = itertools.count()

    def run(self, patience_s: float) -> list[Ended]:
        """Submit them all, again as other builds, and follow each to its end."""
        deadline = time.monotonic() + patience_s
        numbers = list(itertools.islice(self._numbers, self._builds))
        with ThreadPoolExecutor(self._clients) as pool:
            return list(pool.map(lambda n: self._one(n, deadline), numbers))

    def _one(self, number: int, deadline: float) -> Ended:
        chance = random.Random(f"{self._seed}-{number}")
        model = chance.randrange(len(self._models))
        with httpx2.Client(base_url=self._url, timeout=30, headers=self._headers) as client:
            if chance.random() < 0.2:
                _upload(client, b"uploaded, and never asked for", number.to_bytes(4, "big"))
            digest = _upload(client, self._models[model])
            request = {
                "model": f"tiny-{model}",
                "source": {"digest": digest, "format": "onnx"},
                "precisions": chance.sample(PRECISIONS, chance.randint(1, len(PRECISIONS))),
                "targets": chance.sample(TARGETS, chance.randint(1, len(TARGETS))),
                "priority": chance.randint(0, 9),
            }
            # A submission whose answer was lost is sent again: it must not become a second build.
            key = {"Idempotency-Key": f"{self._seed}-{number}"}
            build = _insist(
                client,
                "POST",
                "/v1/builds",
                json=request,
                headers=key,
                # Garbage collection without a grace may have been quicker than this submission.
                otherwise={404: lambda: _upload(client, self._models[model])},
            )
            if chance.random() < 0.1:
                time.sleep(chance.random())
                _insist(client, "POST", f"/v1/builds/{build['id']}/cancel")
            build = self._follow(client, build["id"], deadline)
            if build["state"] == "succeeded":
                self._pull(chance.choice(build["engines"])["engine"])
            return Ended(build["id"], build["state"], request, build["error"])

    def _follow(self, client: httpx2.Client, build_id: str, deadline: float) -> Any:
        while True:
            build = _insist(client, "GET", f"/v1/builds/{build_id}")
            if build["state"] == "failed" and build["error"]["code"] in RETRIED:
                next(self.retries)
                _insist(client, "POST", f"/v1/builds/{build_id}/retry")
            elif build["state"] in ENDED:
                return build
            if time.monotonic() > deadline:
                raise AssertionError(f"build {build_id} hasn't ended: {build}")
            time.sleep(0.5)

    def _pull(self, engine: str) -> None:
        """As a user: the client goes on where a download broke off, and verifies what has come."""
        deadline = time.monotonic() + _PATIENCE_S
        with (
            tempfile.TemporaryDirectory(prefix="farm-chaos-pulled-") as made,
            Farm(self._url, key=self._key, home=Path(made) / "home") as farm,
        ):
            while True:
                try:
                    pulled = farm.pull_engine(engine, Path(made) / "engines", doubtful=True)
                except Unavailable:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
                else:
                    assert pulled.path.stat().st_size == pulled.engine.bytes
                    next(self.pulls)
                    return


def _upload(client: httpx2.Client, *content: bytes) -> str:
    return str(_insist(client, "POST", "/v1/blobs", content=b"".join(content))["digest"])


def _insist(
    client: httpx2.Client,
    method: str,
    path: str,
    otherwise: Mapping[int, Callable[[], object]] | None = None,
    **more: Any,
) -> Any:
    """Ask until the API answers: it may be down, or say that it's unavailable for now.

    Parameters:
        otherwise: what to do about an answer of this status before asking again.
    """
    remedies = {503: lambda: None} | dict(otherwise or {})
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            answer = client.request(method, path, **more)
        except httpx2.TransportError:
            if time.monotonic() > deadline:
                raise
        else:
            remedy = remedies.get(answer.status_code)
            if remedy is None or time.monotonic() > deadline:
                assert answer.is_success, (method, path, answer.status_code, answer.text)
                return answer.json()
            remedy()
        time.sleep(0.2)


def tiny_model(number: int) -> bytes:
    """A real model of two layers [n,8] → [n,4]; each number has weights of its own."""
    rng = np.random.default_rng(number)
    shapes: Sequence[tuple[int, int]] = ((8, 16), (16, 4))
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 4, f"w{n}")
        for n, shape in enumerate(shapes)
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())
