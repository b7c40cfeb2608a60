"""Invalid values are told in the farm's words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from farm.api.extent import parsed
from farm.client.submission import build_request
from farm.errors import InvalidRequest
from farm.schemas.base import Request
from farm.schemas.submission import BuildRequest

_DIGEST = "sha256:" + "a" * 64
_GOOD: dict[str, Any] = {
    "model": "digits",
    "source": {"digest": _DIGEST, "format": "onnx"},
    "precisions": ["fp16"],
    "targets": ["sm_89"],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nope": 1}, "nope: there is no such field"),
        ({"targets": []}, "targets: is empty"),
        ({"targets": "sm_89"}, "targets: takes a list"),
        ({"priority": "high"}, "priority: takes a whole number"),
        ({"priority": -1}, "priority: takes at least 0"),
        ({"labels": []}, "labels: takes an object"),
        ({"labels": {"team": 1}}, "labels.team: takes a string"),
        (
            {"precisions": ["fp15"]},
            "precisions.0: takes fp32, fp16, bf16, int8, fp8 or int8-dynamic",
        ),
        ({"source": {"format": "onnx"}}, "source.digest: is missing"),
    ],
)
def test_an_invalid_field_is_named_with_what_it_takes(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(BuildRequest, json.dumps(_GOOD | change).encode())
    assert caught.value.detail == said


def test_what_is_no_json_is_told_of_the_whole_request() -> None:
    with pytest.raises(InvalidRequest, match=r"^the request isn't JSON: key must be"):
        parsed(BuildRequest, b"{nope")


def test_the_client_also_says_what_was_given() -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_request(**_GOOD | {"precisions": ["fp15"], "priority": 101})
    assert caught.value.detail == (
        "precisions.0: takes fp32, fp16, bf16, int8, fp8 or int8-dynamic, not 'fp15'; "
        "priority: takes at most 9, not 101"
    )


def _requests(of: type[Request]) -> list[type[Request]]:
    return [each for one in of.__subclasses__() for each in (one, *_requests(one))]


_STRANGE = [
    *(None, -1, 1.5, True, "", "x", [], ["x"], [[]], {}, {"x": 1}, {"x": "y"}, [{"x": 1}]),
    {"image": {"min": [1], "opt": "a"}},
    [{"image": {"min": ["a"], "opt": [0]}}],
]


@pytest.mark.parametrize("shape", _requests(Request))
def test_no_request_is_refused_in_the_words_of_the_validator(shape: type[Request]) -> None:
    said = []
    for field in (*shape.model_fields, "nope"):
        for value in _STRANGE:
            try:
                parsed(shape, json.dumps({field: value}).encode())
            except InvalidRequest as err:
                said.append(err.detail)
    assert said
    for word in ("Input", "Extra", "Field", "Value error", "permitted", "should"):
        assert word not in " ".join(said)
