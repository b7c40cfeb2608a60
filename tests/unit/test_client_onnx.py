"""``farm pull --onnx`` from a farm that answers with something else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx2
import pytest

from farm.client import Backoff, Farm
from farm.errors import DigestMismatch

GRAPH = b"a graph"


def serving(**changes: Any) -> Farm:
    answer = {
        "model": "digits",
        "version": 1,
        "precision": "fp16",
        "digest": f"sha256:{hashlib.sha256(GRAPH).hexdigest()}",
        "bytes": len(GRAPH),
        "file_name": "digits-v1-fp16.onnx",
        "why": "prod names it",
        "build": "trtexec",
    } | changes

    def respond(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/content"):
            return httpx2.Response(200, content=GRAPH)
        return httpx2.Response(200, json=answer)

    transport = httpx2.MockTransport(respond)
    return Farm("http://farm", key="", backoff=Backoff(first_s=0), transport=transport)


def test_a_file_is_pulled_under_its_own_name(tmp_path: Path) -> None:
    pulled = serving().pull_onnx("Digits", tmp_path, precision="fp16", version=1)
    assert pulled.path == tmp_path / "digits-v1-fp16.onnx"
    assert pulled.path.read_bytes() == GRAPH


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "cats", "file_name": "cats-v1-fp16.onnx"},
        {"version": 2, "file_name": "digits-v2-fp16.onnx"},
        {"precision": "int8", "file_name": "digits-v1-int8.onnx"},
        {"file_name": "digits-v1-fp16-cpu.onnx"},
        {"file_name": "config.pbtxt"},
        {"file_name": "../x.onnx"},
    ],
)
def test_another_file_than_the_one_asked_for_takes_no_place(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(DigestMismatch, match="answers with an ONNX file whose"):
        serving(**changes).pull_onnx("digits", tmp_path, precision="fp16", version=1)
    assert list(tmp_path.iterdir()) == []
