"""A version's ONNX over REST: what the farm made on the way to its engines, for machines it has none for."""

from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import select, update

from farm.database.tables import Artifact, Job
from farm.stages import JobKind
from farm.store.local import LocalStore
from tests.contract.conftest import Api
from tests.ledger import Ledger

PROFILE = {"image": {"min": [1, 1, 8, 8], "opt": [8, 1, 8, 8], "max": [32, 1, 8, 8]}}


@pytest.fixture
def made(api: Api, settings, tmp_path):
    """A version whose exported and typed ONNX are in the store: role → bytes."""
    ledger = Ledger(api.app.state.services.db)
    source = {"digest": api.upload(b"a model"), "format": "pt2"}
    ledger.submit(source=source, precisions=["fp16"], profiles=[PROFILE])
    ledger.run_all()
    store, files = LocalStore(settings.store_dir), {}
    with ledger.db.write() as session:
        for job in session.scalars(select(Job).where(Job.kind.in_(["export", "cast"]))).all():
            role = "onnx" if job.kind == JobKind.EXPORT else "typed"
            file = tmp_path / role
            file.write_bytes(files.setdefault(role, f"{role} graph".encode()))
            stored = store.take(file)
            session.merge(Artifact(digest=stored.digest, bytes=stored.bytes))
            session.execute(
                update(Job).where(Job.id == job.id).values(outputs={role: stored.digest})
            )
    return files


def shown(api, **asked):
    answer = api.get("/v1/models/digits/onnx", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_exported_onnx_is_told_with_the_command_that_builds_an_engine_from_it(api, made):
    found = shown(api)
    digest = hashlib.sha256(made["onnx"]).hexdigest()
    assert (found["file_name"], found["digest"]) == ("digits-v1.onnx", f"sha256:{digest}")
    assert found["build"] == (
        "trtexec --onnx=digits-v1.onnx --saveEngine=digits-v1.engine --minShapes=image:1x1x8x8 "
        "--optShapes=image:8x1x8x8 --maxShapes=image:32x1x8x8"
    )
    assert found["why"] == "version 1 is the newest that is complete"


def test_with_a_precision_it_is_in_its_types(api, made):
    found = shown(api, precision="fp16", version=1)
    assert found["file_name"] == "digits-v1-fp16.onnx"
    assert found["digest"] == f"sha256:{hashlib.sha256(made['typed']).hexdigest()}"
    assert "--stronglyTyped" in found["build"]


def test_its_bytes_come_whole_in_ranges_and_not_again(api, made):
    where = "/v1/models/digits/onnx/content"
    whole = api.get(where)
    assert whole.content == made["onnx"]
    etag = whole.headers["etag"]
    part = api.get(where, headers={"Range": "bytes=5-", "If-Range": etag})
    assert (part.status_code, part.content) == (206, made["onnx"][5:])
    assert api.get(where, headers={"If-None-Match": etag}).status_code == 304
    assert api.get(where, params={"precision": "fp16"}).content == made["typed"]


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"precision": "bf16"}, 404, "the farm has no ONNX in bf16 of version 1 of digits"),
        ({"version": 7}, 404, "digits has no version 7"),
        ({"alias": "canary"}, 404, "digits has no alias 'canary'"),
        ({"precision": "fp17"}, 422, "precision"),
    ],
)
def test_what_there_isnt_is_refused_with_what_makes_it(api, made, asked, status, words):
    for path in ("onnx", "onnx/content"):
        answer = api.get(f"/v1/models/digits/{path}", params=asked)
        assert answer.status_code == status
        assert words in answer.text


def test_damaged_bytes_are_told_and_never_sent(api, made, settings):
    store = LocalStore(settings.store_dir)
    file = store.place(shown(api)["digest"])
    file.chmod(0o644)
    file.write_bytes(b"half")
    answer = api.get("/v1/models/digits/onnx/content")
    assert (answer.status_code, answer.json()["code"]) == (503, "blob-damaged")
    assert api.get("/v1/models/digits/onnx").status_code == 404
