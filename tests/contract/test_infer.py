"""Inferences over REST: an engine is found, its inputs are checked, and a job of no build runs it."""

from __future__ import annotations

import io
import zipfile
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import select

from farm.api.access import SCOPES
from farm.builds import inference
from farm.database import references
from farm.database.base import now
from farm.database.tables import Event, Job
from farm.errors import InvalidModel
from farm.keeping import going
from farm.queue import jobs
from farm.queue.jobs import Output
from farm.specs.scopes import Scope
from tests.ledger import Ledger

INTERFACE = {
    "inputs": [
        {"name": "image", "dtype": "float32", "shape": ["batch", 3]},
        {"name": "mask", "dtype": "int64", "shape": ["batch", 2]},
    ],
    "outputs": [{"name": "scores", "dtype": "float32", "shape": ["batch", 10]}],
    "profiles": [
        {
            "image": {"min": [1, 3], "opt": [8, 3], "max": [64, 3]},
            "mask": {"min": [1, 2], "opt": [8, 2], "max": [64, 2]},
        }
    ],
}


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def good(count=4, **more):
    arrays = {"image": np.zeros((count, 3), "float32"), "mask": np.zeros((count, 2), "int64")}
    return npz(**(arrays | more))


@pytest.fixture
def ledger(db) -> Ledger:
    made = Ledger(db, facts=INTERFACE)
    made.worker()
    return made


@pytest.fixture
def infer(api, ledger):
    """Asks for an inference of a model that has engines for sm_89 and for CPUs."""
    source = {"digest": api.upload(b"a model"), "format": "onnx"}
    ledger.submit(targets=["sm_89", "cpu"], source=source)
    ledger.run_all()

    def infer_(content=None, **asked):
        inputs = api.upload(good() if content is None else content)
        if "engine" not in asked:
            asked = {"model": "digits"} | asked
        return api.post("/v1/infer", json={"inputs": inputs} | asked)

    return infer_


def finish(ledger, api, answer, content=b"outputs"):
    """Run the job as a worker would."""
    digest = api.upload(content)
    claim = ledger.claim(ledger.queued()[0])
    assert claim.job_id == answer.json()["id"]
    outputs = {"outputs": Output(digest=digest, bytes=len(content))}
    told = {"outputs": [{"name": "scores", "dtype": "float32", "shape": [4, 10]}], "run_ms": 2.5}
    with ledger.db.write() as session:
        jobs.succeed(session, claim.job_id, claim.attempt, outputs=outputs, facts=told)
    return digest


def test_an_inference_is_queued_run_and_downloaded(api, ledger, infer):
    answer = infer(gpu="cpu")
    assert answer.status_code == 202, answer.text
    view = answer.json()
    assert answer.headers["Location"] == f"/v1/infer/{view['id']}"
    assert (view["state"], view["target"]) == ("queued", "onnxruntime:cpu")
    engine = api.get(f"/v1/engines/{view['engine']}").json()
    assert (engine["gpu"], engine["model"]) == ("cpu", "digits")
    early = api.get(f"/v1/infer/{view['id']}/outputs")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    digest = finish(ledger, api, answer)
    done = api.get(f"/v1/infer/{view['id']}").json()
    assert (done["state"], done["digest"], done["run_ms"]) == ("succeeded", digest, 2.5)
    assert done["outputs"] == [{"name": "scores", "dtype": "float32", "shape": [4, 10]}]
    content = api.get(f"/v1/infer/{view['id']}/outputs")
    assert (content.content, content.headers["ETag"]) == (b"outputs", f'"{digest}"')


def test_an_equal_inference_is_the_same_job_and_other_inputs_are_another(api, ledger, infer):
    first, again, other = infer(gpu="cpu"), infer(gpu="cpu"), infer(good(5), gpu="cpu")
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    finish(ledger, api, first)
    kept = infer(gpu="cpu").json()
    assert (kept["id"], kept["state"]) == (first.json()["id"], "succeeded")


def test_a_result_goes_after_a_while_and_is_made_again(api, ledger, infer):
    first = infer(gpu="cpu")
    digest = finish(ledger, api, first)
    with ledger.db.write() as session:
        assert going.inferences(session, now() - timedelta(days=1)) == 0
        assert digest in references.referred(session)
        assert going.inferences(session, now()) == 1
        assert digest not in references.referred(session)
    answer = api.get(f"/v1/infer/{first.json()['id']}/outputs")
    assert answer.status_code == 409
    again = infer(gpu="cpu").json()
    assert (again["state"], again["id"] != first.json()["id"]) == ("queued", True)


def test_an_inference_goes_before_builds(api, ledger, infer):
    source = {"digest": api.upload(b"another"), "format": "onnx"}
    ledger.submit(targets=["cpu"], source=source, priority=9)
    view = infer(gpu="cpu").json()
    assert ledger.first_in_line().id == view["id"]


def test_further_inferences_of_a_client_take_turns_with_builds(api, ledger, infer):
    source = {"digest": api.upload(b"another"), "format": "onnx"}
    ledger.submit(targets=["cpu"], source=source)
    first, _second = (infer(good(count), gpu="cpu").json()["id"] for count in (1, 2))
    order = []
    for _ in range(2):
        job = ledger.first_in_line()
        order.append(job.id if job.kind == "infer" else job.kind)
        ledger.succeed(ledger.claim(job))
    assert order == [first, "export"]


def test_a_client_whose_inference_runs_has_no_other_before_builds(api, ledger, infer):
    infer(good(1), gpu="cpu")
    claim = ledger.claim_next()
    infer(good(2), gpu="cpu")
    source = {"digest": api.upload(b"another"), "format": "onnx"}
    ledger.submit(targets=["cpu"], source=source, priority=9)
    assert ledger.first_in_line().kind == "export"
    ledger.succeed(claim)
    assert ledger.first_in_line().kind == "export"


def test_without_a_gpu_an_engine_that_an_online_worker_can_run_is_taken(api, ledger, infer):
    assert infer().json()["target"] == "onnxruntime:cpu"
    ledger.worker("gpu@there", ("tensorrt-rtx.sm_89",), gpu="NVIDIA L4", tags=("l4", "sm_89"))
    api.app.state.services._known_fleet = None
    view = infer(good(6)).json()
    assert view["target"] == "tensorrt-rtx:sm_89"
    with ledger.db.read() as session:
        assert session.get_one(Job, view["id"]).queue == "tensorrt-rtx.sm_89"


def test_a_worker_that_is_missing_is_named(infer):
    answer = infer(gpu="sm_89")
    assert answer.status_code == 409
    problem = answer.json()
    assert problem["detail"] == (
        "no online worker can run tensorrt-rtx:sm_89: it takes a worker with a GPU sm_89 and "
        "tensorrt-rtx installed"
    )
    assert "farm worker" in problem["hint"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (npz(image=np.zeros((4, 3), "float32")), "the data has 'image', but the model's inputs"),
        (good(extra=np.zeros(3)), "the data has 'image', 'mask', 'extra', but"),
        (good(image=np.zeros((4, 3))), "is float64, but the model takes float32"),
        (good(image=np.zeros((4, 4), "float32")), "axis 1 of the data for input 'image' is 4"),
        (good(count=65), "axis 0 of the data for input 'image' is 65, but the model takes 1 to 64"),
        (good(image=np.zeros((4, 3, 1), "float32")), "has shape [4, 3, 1]"),
        (
            good(image=np.zeros((5, 3), "float32")),
            "the axis 'batch' is 5 in 'image' and 4 in 'mask'",
        ),
        (npz(image=np.array([{"a": 1}], object)), "Object arrays cannot be loaded"),
        (b"\x80\x04K\x05.", "neither .npz, .npy nor .safetensors"),
        (b"PK\x03\x04 broken", "not a zip file"),
    ],
)
def test_inputs_that_the_engine_does_not_take_are_refused(ledger, infer, content, told):
    answer = infer(content, gpu="cpu")
    assert (answer.status_code, answer.json()["code"]) == (422, "data-refused"), answer.text
    assert told in answer.json()["detail"]
    assert answer.json()["hint"]
    assert ledger.queued() == []


def test_a_bomb_is_refused_by_its_headers(infer):
    file = io.BytesIO()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000, 3)}\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("image.npy", "w", force_zip64=True) as member,
    ):
        member.write(start)
        for _ in range(1200):
            member.write(bytes(1_000_000))
    assert len(file.getvalue()) < 2_000_000
    answer = infer(file.getvalue(), gpu="cpu")
    assert answer.status_code == 422
    assert "1200000000 bytes in memory" in answer.json()["detail"]
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for number in range(2001):
            archive.writestr(f"{number}.npy", b"")
    assert "more than 2000 arrays" in infer(many.getvalue(), gpu="cpu").json()["detail"]


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"engine": "01m7y8mb9kssegkq"}, 404, "01m7y8mb9kssegkq"),
        ({"model": "nobody"}, 404, "nobody"),
        ({"gpu": "h100"}, 404, "h100"),
        ({"gpu": "abacus"}, 422, "abacus"),
        ({"version": 9}, 404, "9"),
        ({"engine": "x", "gpu": "cpu"}, 422, "an engine's id leaves nothing to choose"),
        ({"model": None}, 422, "name an engine, or a model"),
        ({"turbo": True}, 422, "turbo"),
        ({"inputs": "sha256:" + "0" * 64, "gpu": "cpu"}, 404, "upload them first"),
        ({"inputs": "images.npz"}, 422, "inputs"),
    ],
)
def test_what_is_asked_for_wrongly_is_told(infer, asked, status, told):
    answer = infer(**asked)
    assert answer.status_code == status, answer.text
    assert told in answer.text


def test_an_inference_that_failed_says_why_and_may_be_asked_for_again(api, ledger, infer):
    view = infer(gpu="cpu").json()
    ledger.fail(ledger.claim_next(), InvalidModel("no kernel", hint="another runtime"))
    failed = api.get(f"/v1/infer/{view['id']}").json()
    assert failed["state"] == "failed"
    assert (failed["error"]["code"], failed["error"]["hint"]) == (
        "invalid-model",
        "another runtime",
    )
    assert infer(gpu="cpu").json()["id"] != view["id"]


def test_an_inference_is_cancelled_once(api, ledger, infer):
    view = infer(gpu="cpu").json()
    for _ in range(2):
        answer = api.request("DELETE", f"/v1/infer/{view['id']}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert ledger.queued() == []
    running = infer(gpu="cpu").json()
    claim = ledger.claim_next()
    assert api.request("DELETE", f"/v1/infer/{running['id']}").json()["state"] == "running"
    with ledger.db.read() as session:
        assert jobs.wants_cancel(session, claim.job_id, claim.attempt)


def test_a_client_has_so_many_inferences_waiting_and_no_more(ledger, infer):
    answers = [infer(good(count), gpu="cpu").status_code for count in range(1, 18)]
    assert answers == [202] * 16 + [429]
    ledger.succeed(ledger.claim_next())
    assert infer(good(17), gpu="cpu").status_code == 202


def test_a_builds_job_is_no_inference(api, ledger, infer):
    with ledger.db.read() as session:
        export = session.scalar(select(Job.id).where(Job.kind == "export"))
    for method, path in (("GET", ""), ("GET", "/outputs"), ("DELETE", "")):
        answer = api.request(method, f"/v1/infer/{export}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert api.get("/v1/infer/0").status_code == 422


def test_an_inference_is_an_event_and_in_no_build(api, ledger, infer):
    view = infer(gpu="cpu").json()
    with ledger.db.read() as session:
        event = session.scalars(select(Event).where(Event.job_id == view["id"])).one()
        assert (event.kind, event.state) == ("job", "queued")
        assert inference.view(session, view["id"], ledger.fleet(session)).state == "queued"
    assert len(api.get("/v1/builds").json()["items"]) == 1


def test_who_may_read_may_not_run_an_engine():
    scopes = {path: scope for (method, path), scope in SCOPES.items() if method == "POST"}
    assert scopes["/v1/infer"] is Scope.SUBMIT
