"""Bodies that are long in some place are refused by their length, before their values are checked."""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import pytest
from pydantic import BaseModel

from farm.api.extent import parsed
from farm.errors import InvalidRequest
from farm.schemas.keys import KeyRequest
from farm.schemas.plugins import PluginRequest
from farm.schemas.storage import GcRequest
from farm.schemas.submission import BuildRequest

DIGEST = "sha256:" + "0" * 64
MEBIBYTE = 2**20 - 2000
REQUESTS: list[type[BaseModel]] = [BuildRequest, GcRequest, KeyRequest, PluginRequest]


def build(**changes: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "source": {"digest": DIGEST, "format": "onnx"},
        "precisions": ["fp32"],
        "targets": ["cpu"],
    } | changes


def body(**changes: Any) -> bytes:
    return json.dumps(build(**changes)).encode()


def configured(config: dict[str, Any]) -> bytes:
    architecture = {"library": "transformers", "name": "BertModel", "config": config}
    return body(source={"digest": DIGEST, "format": "safetensors", "architecture": architecture})


def shapes(value: Any, axes: int) -> dict[str, Any]:
    return dict.fromkeys(("min", "opt", "max"), [value] * axes)


def many(count: int, value: Any) -> dict[str, Any]:
    return {f"{number:x}": value for number in range(count)}


HOSTILE = {
    "unknown fields": body(**many(60_000, 0)),
    "one unknown field, many times": body()[:-1] + b',"x":0' * 60_000 + b"}",
    "more values than any request has": body(profiles=[0] * (MEBIBYTE // 3)),
    "precisions": body(precisions=[0] * 60_000),
    "targets": body(targets=[0] * 60_000),
    "profiles": body(profiles=[0] * 60_000),
    "profiles of nothing": body(profiles=[{}] * 30_000),
    "inputs": body(profiles=[many(8_000, 0)] * 8),
    "axes": body(profiles=[{"a": shapes("", 20_000)}]),
    "inputs of wrong axes": body(profiles=[many(100, shapes("", 16))] * 8),
    "values": body(profiles=[{"a": shapes(1, 1) | {"values": shapes("", 20_000)}}]),
    "labels": body(labels=many(60_000, 0)),
    "one label, many times": body(labels={})[:-2] + b'"a":0,' * 60_000 + b'"a":0}}',
    "fixed values": body(fixed_inputs={"a": [0] * 60_000}),
    "fixed lists": body(fixed_inputs={"a": [[]] * 30_000}),
    "fixed inputs": body(fixed_inputs=many(60_000, 0)),
    "fixed words": body(fixed_inputs=many(64, ["x"] * 900)),
    "plugins": body(options={"plugins": [0] * 60_000}),
    "plugins by commas": body(options={"plugins": "a," * 30_000}),
    "a megabyte of commas": body(options={"plugins": "," * MEBIBYTE}),
    "options": body(options=many(60_000, 0)),
    "gates": body(gates=many(60_000, 0)),
    "fields of a source": body(source=many(60_000, 0)),
    "layers of a configuration": configured({"layers": [9999] * 60_000}),
    "a long name": body(model="m" * MEBIBYTE),
    "a long digest": body(source={"digest": "sha256:" + "0" * MEBIBYTE, "format": "onnx"}),
    "a number of many digits": body()[:-1] + b',"priority":' + b"9" * MEBIBYTE + b"}",
    "lists in lists": body()[:-1] + b',"labels":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
}


@pytest.fixture(autouse=True, scope="module")
def uncollected() -> None:
    """As in the API's process: the collector doesn't walk through what is there now."""
    gc.freeze()


@pytest.fixture(scope="module")
def honest_s() -> float:
    """What this machine takes for a large request of an honest user."""
    largest = body(profiles=[many(128, shapes(1, 16))] * 8)
    parsed(BuildRequest, largest)
    began = time.thread_time()
    parsed(BuildRequest, largest)
    return time.thread_time() - began


@pytest.mark.parametrize("name", HOSTILE)
def test_a_long_body_is_refused_in_a_fraction_of_what_its_values_would_take(
    name: str, honest_s: float
) -> None:
    began = time.thread_time()
    with pytest.raises(InvalidRequest) as caught:
        parsed(BuildRequest, HOSTILE[name])
    # What they took was thirty times as much and more.
    assert time.thread_time() - began < 0.1 + 5 * honest_s
    assert len(caught.value.detail) < 6000
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("labels", "labels: 60000 names; the limit is 32"),
        ("plugins", "options.plugins: 60000 items; the limit is 16"),
        ("axes", "profiles.0.a.min: 20000 items; the limit is 16"),
        ("inputs", "profiles.0: 8000 names; the limit is 512"),
        ("unknown fields", "60000 unknown fields"),
        ("inputs of wrong axes", "2400 values in the request are invalid"),
    ],
)
def test_what_is_too_long_is_named_with_its_limit(name: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        parsed(BuildRequest, HOSTILE[name])


def test_a_few_faults_are_each_told() -> None:
    with pytest.raises(InvalidRequest, match=r"precisions.*; labels.a.*; typo"):
        parsed(BuildRequest, body(precisions=["fp3"], labels={"a": 1}, typo=1))


def test_large_requests_of_honest_users_are_taken() -> None:
    classes = {"id2label": many(21_843, "a"), "label2id": many(21_843, 1)}
    assert parsed(BuildRequest, configured(classes)).source.architecture
    fixed = {"a": [[1.5] * 64] * 64, "b": True}
    assert parsed(BuildRequest, body(fixed_inputs=fixed)).fixed_inputs == fixed
    plugins = [f"sha256:{number:064x}" for number in range(16)]
    for given in (plugins, ",".join(plugins)):
        found = parsed(BuildRequest, body(options={"plugins": given}))
        assert found.options.plugins == tuple(plugins)


@pytest.mark.parametrize("shape", REQUESTS)
def test_every_list_and_object_of_a_request_has_a_limit(shape: type[BaseModel]) -> None:
    schema = shape.model_json_schema()
    unbounded = []
    left = [(shape.__name__, schema), *schema.get("$defs", {}).items()]
    while left:
        at, one = left.pop()
        if one.get("type") == "array" and "maxItems" not in one:
            unbounded.append(at)
        is_open = one.get("additionalProperties") is not False and "maxProperties" not in one
        if one.get("type") == "object" and is_open:
            unbounded.append(at)
        for name in ("anyOf", "oneOf"):
            left += [(at, choice) for choice in one.get(name, ())]
        inner = [(name, one[name]) for name in ("items", "additionalProperties") if name in one]
        inner += one.get("properties", {}).items()
        left += [(f"{at}.{name}", part) for name, part in inner if isinstance(part, dict)]
    # A transformers configuration is whatever its class takes; a request's values are bounded in all.
    assert set(unbounded) <= {"Architecture.config"}
