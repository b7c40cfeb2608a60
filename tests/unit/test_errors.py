"""The error tree: what one process raises is what another one is told."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from farm import errors
from farm.cli.app import problem as told
from farm.client import Farm
from farm.client.problems import error_of
from farm.errors import FarmError, NotFound, TooLarge, Unavailable, code_of

ROOT = Path(__file__).parents[2]


def error_classes() -> dict[str, str]:
    """Every class of the code base below FarmError, by its name, with the module it stands in."""
    bases: dict[str, list[str]] = {}
    homes: dict[str, str] = {}
    for package in ("farm", "workers"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases[node.name] = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                    homes[node.name] = path.relative_to(ROOT).as_posix()
    found = {"FarmError"}
    while more := {name for name, of in bases.items() if found & set(of)} - found:
        found |= more
    return {name: homes[name] for name in found}


def test_every_error_stands_in_the_one_tree():
    assert set(error_classes().values()) == {"farm/errors.py"}


SCRIPT = """
import json, sys
import farm.client
from farm.errors import from_code
told = {}
for code in json.load(sys.stdin):
    error = from_code(code, "what happened", "what to do")
    told[code] = [type(error).__name__, error.code, error.detail, error.hint, error.status]
print(json.dumps(told))
"""


def test_every_code_arrives_whole_where_only_the_client_is_imported():
    classes = {code_of(getattr(errors, name)): name for name in error_classes()}
    assert len(classes) > 30
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(list(classes)),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    for code, (name, *fields) in json.loads(ran.stdout).items():
        assert name == classes[code]
        assert fields == [code, "what happened", "what to do", getattr(errors, name).status]


def answer(status: int, body: object) -> httpx2.Response:
    request = httpx2.Request("GET", "http://farm/v1/workers")
    return httpx2.Response(status, json=body, request=request)


def test_every_problem_of_the_api_is_the_same_error_at_the_client():
    from farm.api.problems import problem

    for name in error_classes():
        raised = getattr(errors, name)("what happened", hint="what to do")
        rendered = problem(raised)
        caught = error_of(answer(rendered.status_code, json.loads(rendered.body)))
        assert told(caught) == json.loads(rendered.body) | {"title": told(caught)["title"]}
        assert caught.code == raised.code


def test_a_code_that_this_client_does_not_know_stays_what_it_is():
    body = {"code": "teapot", "detail": "short and stout", "hint": "tip it", "status": 418}
    for status, kind in ((418, FarmError), (404, NotFound), (503, Unavailable)):
        caught = error_of(answer(status, body))
        assert isinstance(caught, kind)
        assert (caught.code, caught.detail, caught.hint) == ("teapot", "short and stout", "tip it")
        assert caught.status == status


def test_a_status_that_no_standard_knows_is_told_too():
    caught = error_of(answer(520, None))
    assert caught.status == 520
    assert told(caught)["status"] == 520


def test_an_upload_that_is_too_large_is_refused_as_such(tmp_path):
    def api(request: httpx2.Request) -> httpx2.Response:
        from farm.api.problems import problem

        if request.method == "HEAD":
            return httpx2.Response(404)
        body = problem(TooLarge("blobs are limited to 9 bytes"))
        return httpx2.Response(body.status_code, content=bytes(body.body), headers=body.headers)

    model = tmp_path / "model.onnx"
    model.write_bytes(b"\x08\x07 and more than nine bytes")
    with (
        Farm("http://farm", transport=httpx2.MockTransport(api)) as farm,
        pytest.raises(TooLarge, match="9 bytes") as caught,
    ):
        farm.submit(model, targets=["sm_89"], precisions=["fp16"])
    assert (caught.value.code, caught.value.status) == ("too-large", 413)
    assert "FARM_MAX_UPLOAD_BYTES" in caught.value.hint
