"""Engines for Triton over REST: the repository as a tar, and only what a release loads."""

from __future__ import annotations

import io
import tarfile

import pytest
from sqlalchemy import update

from farm.database.session import Database
from farm.database.tables import EngineRow
from tests.contract.test_api import problem, submit
from tests.ledger import Ledger

CONTENT = b"a plan"
T4 = ("tensorrt.t4", "tensorrt-rtx.cpu", "onnxruntime.cpu", "cpu")


@pytest.fixture
def ledger(settings):
    db = Database(settings.database)
    yield Ledger(db)
    db.dispose()


@pytest.fixture
def engine(api, ledger):
    """An engine of each target, by target; their bytes are in the store."""
    ledger.worker("t4@here", T4, tags=("t4",))
    targets = ["tensorrt:t4", "tensorrt-rtx:sm_75", "onnxruntime:cpu"]
    submit(api, api.upload(b"a model"), targets=targets)
    ledger.run_all()
    with ledger.db.write() as session:
        plans = update(EngineRow).where(EngineRow.runtime == "tensorrt")
        session.execute(plans.values(runtime_version="10.13.3.9"))
    found = api.get("/v1/models/digits/engines").json()["items"]
    return {f"{one['precision']}@{one['runtime']}:{one['gpu']}": one for one in found}


@pytest.fixture
def stored(api, engine, monkeypatch):
    """The store has each engine's bytes."""
    from farm.api import triton as route
    from farm.api.tars import Streamed

    def whole(farm, view):
        content = CONTENT.ljust(view.bytes, b".")
        return Streamed(read=lambda: iter([content[:5], content[5:]]), bytes=view.bytes)

    monkeypatch.setattr(route, "_whole", whole)
    return engine


def names(answer) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(answer.content), mode="r:") as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}


def test_an_engine_is_a_repository_in_a_tar(api, stored):
    one = stored["fp16@tensorrt:t4"]
    answer = api.get(f"/v1/engines/{one['id']}/triton")
    assert answer.headers["Content-Type"] == "application/x-tar"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert 'filename="digits-v1-triton.tar"' in answer.headers["Content-Disposition"]
    files = names(answer)
    assert set(files) == {"digits/config.pbtxt", f"digits/1/{one['id']}.plan"}
    assert len(files[f"digits/1/{one['id']}.plan"]) == one["bytes"]
    assert b'platform: "tensorrt_plan"' in files["digits/config.pbtxt"]


def test_a_repository_is_sent_once(api, stored):
    path = f"/v1/engines/{stored['fp16@onnxruntime:cpu']['id']}/triton"
    answer = api.get(path)
    assert api.get(path).content == answer.content
    known = api.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (known.status_code, known.content) == (304, b"")
    other = api.get(path, params={"backend": "onnxruntime"})
    assert other.headers["ETag"] != answer.headers["ETag"]
    assert set(names(answer)) - set(names(other)) == {"digits/1/model.py"}


def test_a_tensorrt_rtx_engine_is_refused_with_a_way_out(api, engine):
    path = f"/v1/engines/{engine['fp16@tensorrt-rtx:sm_75']['id']}/triton"
    refused = problem(api.get(path), 422)
    assert refused["code"] == "triton-unsupported"
    assert "no backend for TensorRT-RTX" in refused["detail"]
    assert "tensorrt:sm_75" in refused["hint"]


def test_an_unknown_engine_or_backend_is_refused(api, stored):
    problem(api.get("/v1/engines/nothing/triton"), 404)
    path = f"/v1/engines/{stored['fp16@onnxruntime:cpu']['id']}/triton"
    problem(api.get(path, params={"backend": "openvino"}), 422)


def test_an_engine_whose_bytes_are_lost_is_told_as_such(api, engine):
    lost = engine["fp16@onnxruntime:cpu"]["id"]
    answer = api.get(f"/v1/engines/{lost}/triton")
    assert answer.json()["code"] == "blob-damaged"


def test_a_pull_for_a_release_takes_what_it_loads_and_explains_the_rest(api, engine):
    asked = {"for_triton": "25.10", "explain": True}
    found = api.get("/v1/models/digits/engines/t4", params=asked).json()
    assert found["engine"]["runtime"] == "tensorrt"
    passed = {f"{one['precision']}@{one['runtime']}": one["why"] for one in found["passed_over"]}
    assert passed["fp16@tensorrt-rtx"] == "Triton has no backend for TensorRT-RTX"


def test_a_pull_for_a_release_of_another_tensorrt_says_which_it_needs(api, engine):
    answer = api.get("/v1/models/digits/engines/t4", params={"for_triton": "25.06"})
    refused = problem(answer, 404)
    assert (
        "Triton 25.06: it needs tensorrt 10.13.3.9, and the machine has 10.11.0.33"
        in refused["detail"]
    )
    assert "TensorRT 10.11.0.33" in refused["hint"]


def test_an_unknown_release_is_refused_and_the_known_ones_are_listed(api, engine):
    answer = api.get("/v1/models/digits/engines/t4", params={"for_triton": "19.03"})
    refused = problem(answer, 422)
    assert "'19.03'" in refused["detail"]
    assert "25.06, 25.10" in refused["hint"]
