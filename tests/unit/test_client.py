"""The client: submissions, errors, retries, builds."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import httpx2
import pytest

from farm.client import Backoff, BuildCancelled, BuildFailed, Farm, WaitTimedOut
from farm.errors import (
    CalibrationMissing,
    Conflict,
    FarmError,
    InvalidRequest,
    NotFound,
    SourceRefused,
    Unavailable,
)
from farm.specs.options import BuilderOptions
from farm.specs.tasks import TaskOptions
from farm.testing import documents
from farm.testing.documents import BUILD
from farm.testing.stub_farm import StubFarm
from tests.arrays import npz

QUICK = Backoff(first_s=0)
PROBLEM_503 = {"code": "database-unavailable", "detail": "the database is away", "hint": "wait"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "my digits.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("digits/archive_format", "pt2")
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    npz(path, image=("<f4", (8, 3)))
    return path


def test_submit_sends_what_the_contract_asks_for(
    farm: Farm, stub: StubFarm, model: Path, samples: Path
) -> None:
    build = farm.submit(
        model,
        targets=["sm_89"],
        precisions=["int8"],
        calibration=samples,
        calibration_method="percentile",
        calibration_percentile=99.9,
        evaluation=samples,
        metric="top1",
        max_drop=0.01,
        max_latency_ratio=0.9,
        min_agreement=0.9,
        profiles=[{"image": {"min": [1, 3], "opt": [8, 3], "max": [64, 3]}}],
        options={"tf32": False},
        labels={"team": "vision"},
    )
    data = documents.digest_of(samples.read_bytes())
    assert build.id == BUILD
    assert stub.submitted == [
        {
            "model": "my-digits",
            "source": {
                "digest": documents.digest_of(model.read_bytes()),
                "format": "pt2",
                "architecture": None,
            },
            "precisions": ["int8"],
            "targets": ["sm_89"],
            "skip_unsupported": False,
            "bench": None,
            "profiles": [{"image": {"min": [1, 3], "opt": [8, 3], "max": [64, 3]}}],
            "fixed_inputs": {},
            "calibration": {
                "digest": data,
                "format": "samples",
                "method": "percentile",
                "percentile": 99.9,
                "batch_size": 8,
                "preprocess": None,
                "keep_float": [],
                "keep_quantized": [],
                "budget_s": 600,
            },
            "evaluation": {
                "digest": data,
                "metric": "top1",
                "max_drop": 0.01,
                "max_latency_ratio": 0.9,
                "task": TaskOptions().model_dump(),
                "preprocess": None,
            },
            "gates": {"agreement": 0.9, "error": None, "drop": None, "outputs": None},
            "options": BuilderOptions().model_dump(mode="json") | {"tf32": False},
            "prune": None,
            "priority": 5,
            "labels": {"team": "vision"},
            "note": None,
            "new_inputs": False,
        }
    ]


def test_a_file_that_the_farm_has_is_not_uploaded_again(
    farm: Farm, stub: StubFarm, model: Path
) -> None:
    for _ in range(2):
        farm.submit(model, targets=["sm_89"], precisions=["fp16"])
    assert len(stub.asked("POST", "/v1/blobs")) == 1
    assert stub.blobs == {documents.digest_of(model.read_bytes())}


def test_progress_of_an_upload_is_told(farm: Farm, model: Path) -> None:
    told: list[tuple[str, int, int]] = []
    farm.submit(
        model,
        targets=["sm_89"],
        precisions=["fp16"],
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    size = model.stat().st_size
    assert told == [("hash my digits.pt2", size, size), ("upload my digits.pt2", size, size)]


def test_a_submission_repeats_under_one_key_until_it_is_answered(
    farm: Farm, stub: StubFarm, model: Path
) -> None:
    stub.problems["/v1/builds"] = [(503, PROBLEM_503), (502, None)]
    farm.submit(model, targets=["sm_89"], precisions=["fp16"])
    keys = {headers["idempotency-key"] for headers in stub.asked("POST", "/v1/builds")}
    assert len(stub.asked("POST", "/v1/builds")) == 3
    assert len(keys) == 1


def test_two_submissions_have_two_keys(farm: Farm, stub: StubFarm, model: Path) -> None:
    for _ in range(2):
        farm.submit(model, targets=["sm_89"], precisions=["fp16"])
    keys = {headers["idempotency-key"] for headers in stub.asked("POST", "/v1/builds")}
    assert len(keys) == 2


def test_an_idempotency_key_that_is_given_is_used(farm: Farm, stub: StubFarm, model: Path) -> None:
    farm.submit(model, targets=["sm_89"], precisions=["fp16"], idempotency_key="nightly-7")
    assert stub.asked("POST", "/v1/builds")[0]["idempotency-key"] == "nightly-7"


def test_a_digest_stands_for_a_file_that_the_farm_has(farm: Farm, stub: StubFarm) -> None:
    digest = "sha256:" + "a" * 64
    farm.submit(digest, name="digits", targets=["sm_89"], precisions=["fp16"])
    assert stub.submitted[0]["source"] == {
        "digest": digest,
        "format": "pt2",
        "architecture": None,
    }
    assert not stub.asked("POST", "/v1/blobs")


def test_a_digest_of_unknown_format_is_asked_for_it(farm: Farm) -> None:
    digest = "sha256:" + "b" * 64
    with pytest.raises(InvalidRequest) as caught:
        farm.submit(digest, name="digits", targets=["sm_89"], precisions=["fp16"])
    assert "onnx, pt2" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["m.pkl", "m.pt", "m.pth", "m.bin"])
def test_a_pickle_is_refused_before_anything_is_sent(
    farm: Farm, stub: StubFarm, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04")
    with pytest.raises(SourceRefused) as caught:
        farm.submit(path, targets=["sm_89"], precisions=["fp16"])
    assert "torch.export.save" in str(caught.value.hint)
    assert not stub.seen


def test_a_pickle_under_the_name_of_a_program_is_refused(farm: Farm, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(SourceRefused):
        farm.submit(path, targets=["sm_89"], precisions=["fp16"])


def test_a_file_that_is_not_there_is_named(farm: Farm, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"gone\.onnx doesn't exist"):
        farm.submit(tmp_path / "gone.onnx", targets=["sm_89"], precisions=["fp16"])


def test_an_unknown_precision_is_named_before_anything_is_sent(
    farm: Farm, stub: StubFarm, model: Path
) -> None:
    with pytest.raises(InvalidRequest, match=r"precisions\.0.*int9"):
        farm.submit(model, targets=["sm_89"], precisions=["int9"])
    assert not stub.seen


def test_max_drop_without_evaluation_data_is_refused(farm: Farm, model: Path) -> None:
    with pytest.raises(InvalidRequest, match="need evaluation data"):
        farm.submit(model, targets=["sm_89"], precisions=["fp16"], max_drop=0.01)
    with pytest.raises(InvalidRequest, match="need evaluation data"):
        farm.submit_bench("digits", ["sm_89"], metric="accuracy")


def test_the_farms_error_is_raised_as_its_class_with_its_hint(
    farm: Farm, stub: StubFarm, model: Path
) -> None:
    problem = {"code": "calibration-missing", "detail": "INT8 needs data", "hint": "pass some"}
    stub.problems["/v1/builds"] = [(422, problem)]
    with pytest.raises(CalibrationMissing) as caught:
        farm.submit(model, targets=["sm_89"], precisions=["int8"])
    assert (caught.value.detail, caught.value.hint) == ("INT8 needs data", "pass some")
    assert len(stub.asked("POST", "/v1/builds")) == 1


def test_an_error_of_an_unknown_code_keeps_its_status(farm: Farm, stub: StubFarm) -> None:
    stub.problems["/v1/workers"] = [(418, {"code": "teapot", "detail": "short and stout"})]
    with pytest.raises(FarmError, match="short and stout") as caught:
        farm.workers()
    assert caught.value.status == 418


def test_an_error_that_is_not_the_farms_says_where_it_came_from(farm: Farm, stub: StubFarm) -> None:
    stub.problems["/v1/workers"] = [(403, None)]
    with pytest.raises(FarmError, match=r"GET http.*/v1/workers answered 403") as caught:
        farm.workers()
    assert caught.value.status == 403


def test_an_answer_of_another_shape_asks_whether_this_is_a_farm(farm: Farm) -> None:
    def elsewhere(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, html="<h1>It works!</h1>")

    other = Farm("http://elsewhere", transport=httpx2.MockTransport(elsewhere))
    with other, pytest.raises(FarmError) as caught:
        other.workers()
    assert "an engine farm at http://elsewhere" in str(caught.value.hint)


def test_a_farm_that_is_busy_is_asked_again(farm: Farm, stub: StubFarm) -> None:
    stub.problems["/v1/workers"] = [(503, PROBLEM_503)] * 3
    assert farm.workers() == []


def test_a_farm_that_stays_busy_is_given_up(farm: Farm, stub: StubFarm) -> None:
    stub.problems["/v1/workers"] = [(503, PROBLEM_503)] * 9
    with pytest.raises(Unavailable, match="the database is away"):
        farm.workers()
    assert len(stub.asked("GET", "/v1/workers")) == QUICK.attempts


def test_a_full_store_is_not_asked_again(farm: Farm, stub: StubFarm, model: Path) -> None:
    stub.problems["/v1/blobs"] = [(507, {"code": "storage-full", "detail": "full"})] * 2
    with pytest.raises(Unavailable, match="full"):
        farm.submit(model, targets=["sm_89"], precisions=["fp16"])
    assert len(stub.asked("POST", "/v1/blobs")) == 1


def test_no_farm_at_the_address_says_how_to_start_one() -> None:
    nowhere = Farm("http://127.0.0.1:9", backoff=QUICK)
    with nowhere, pytest.raises(Unavailable, match="no farm answers") as caught:
        nowhere.workers()
    assert "farm up" in str(caught.value.hint)
    assert "FARM_URL" in str(caught.value.hint)


def test_an_address_without_a_scheme_is_explained() -> None:
    with Farm("localhost:8000", backoff=QUICK) as farm, pytest.raises(FarmError) as caught:
        farm.workers()
    assert "http://" in caught.value.detail
    assert caught.value.hint == "write the scheme, too: http://localhost:8000"


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_URL", "http://farm.example:1234/")
    assert Farm().http.url == "http://farm.example:1234"
    monkeypatch.delenv("FARM_URL")
    assert Farm().url == "http://127.0.0.1:8000"


def test_a_list_is_read_page_by_page() -> None:
    asked = []

    def pages(request: httpx2.Request) -> httpx2.Response:
        asked.append(dict(request.url.params))
        last = "cursor" in request.url.params
        items = [documents.build() for _ in range(int(request.url.params["limit"]))]
        return httpx2.Response(200, json={"items": items, "cursor": None if last else "next"})

    with Farm("http://farm", transport=httpx2.MockTransport(pages)) as farm:
        assert len(farm.builds(limit=250)) == 250
    assert asked == [{"limit": "200"}, {"limit": "50", "cursor": "next"}]


def test_a_name_with_a_slash_stays_one_part_of_the_path(farm: Farm, stub: StubFarm) -> None:
    with pytest.raises(NotFound):
        farm.model("a/b?c")
    assert stub.asked("GET", "/v1/models/a%2Fb%3Fc")


def test_wait_looks_until_the_build_has_succeeded(
    farm: Farm, stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.builds[BUILD] = documents.build("running")
    build = farm.build(BUILD)
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            stub.builds[BUILD] = documents.build("succeeded")

    monkeypatch.setattr(time, "sleep", nap)
    assert build.wait().view.state == "succeeded"
    assert naps == sorted(naps)


def test_wait_raises_what_failed_and_what_to_do(farm: Farm, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.failed_build()
    with pytest.raises(BuildFailed) as caught:
        farm.build(BUILD).wait()
    assert "calibrate digits: no samples [for image]" in caught.value.detail
    assert "build digits:int8@sm_89" not in caught.value.detail
    assert caught.value.hint == "add samples"


def test_wait_for_a_cancelled_build_says_so(farm: Farm) -> None:
    build = farm.build(BUILD).cancel()
    with pytest.raises(BuildCancelled):
        build.wait()


def test_wait_gives_up_after_its_timeout(farm: Farm, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.build("running")
    with pytest.raises(WaitTimedOut, match="it continues"):
        farm.build(BUILD).wait(timeout=0)


def test_a_build_is_retried_and_explained(farm: Farm) -> None:
    build = farm.build(BUILD).cancel().retry()
    assert build.view.state == "queued"
    assert build.explain().jobs[0].differs == ["method entropy → max"]
    assert build.logs() == "=== build digits\ntactic 7\n"


def test_events_come_in_order_until_the_build_has_ended(farm: Farm) -> None:
    assert [event.id for event in farm.build(BUILD).events()] == [1, 2, 3, 4, 5, 6, 7]


def test_events_resume_after_a_lost_connection_without_loss_or_repeat(
    farm: Farm, stub: StubFarm
) -> None:
    stub.cut_after = [2, 0, 3]
    assert [event.id for event in farm.build(BUILD).events()] == [1, 2, 3, 4, 5, 6, 7]
    resumed = [h.get("last-event-id") for h in stub.asked("GET", f"/v1/builds/{BUILD}/events")]
    assert resumed == [None, "2", "2", "5"]


def test_events_go_on_when_the_stream_ends_before_the_build(farm: Farm, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.build("running")
    late = stub.events.pop()
    seen = []
    for event in farm.build(BUILD).events():
        seen.append(event.id)
        if event.id == 6:
            stub.events.append(late)
            stub.builds[BUILD] = documents.build("running")
        if event.id == 7:
            stub.builds[BUILD] = documents.build("succeeded")
    assert seen == [1, 2, 3, 4, 5, 6, 7]


def test_events_of_a_farm_that_never_comes_back_are_given_up(farm: Farm, stub: StubFarm) -> None:
    build = farm.build(BUILD)
    stub.problems[f"/v1/builds/{BUILD}/events"] = [(503, PROBLEM_503)] * 99
    with pytest.raises(Unavailable):
        list(build.events())


def test_pulling_a_build_that_is_not_done_says_to_wait(farm: Farm, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.build("running")
    with pytest.raises(Conflict) as caught:
        farm.build(BUILD).pull()
    assert "wait" in str(caught.value.hint)


def test_a_failure_names_the_runtime_where_two_engines_have_one_title(
    farm: Farm, stub: StubFarm
) -> None:
    stub.builds[BUILD] = failed = documents.failed_build()
    error = {"code": "engine-build-failed", "detail": "no", "hint": "choose fp32"}
    title = "build digits:int8@h200"
    failed["jobs"] = [
        documents.job(1, title, "failed", error=error, runtime=name, target=f"{name}:h200")
        for name in ("tensorrt", "onnxruntime")
    ]
    with pytest.raises(BuildFailed) as caught:
        farm.build(BUILD).wait()
    assert f"{title} (tensorrt): no; {title} (onnxruntime): no" in caught.value.detail


def test_a_failed_measurement_of_the_typed_graph_names_the_targets_that_it_serves(
    farm: Farm, stub: StubFarm
) -> None:
    stub.builds[BUILD] = failed = documents.failed_build()
    error = {"code": "accuracy-dropped", "detail": "cosine 0.1", "hint": "choose fp16"}
    failed["jobs"] = [documents.job(2, "measure digits:int8", "failed", error=error)]
    with pytest.raises(BuildFailed, match=r"measure digits:int8 \(for tensorrt-rtx:sm_89\): cos"):
        farm.build(BUILD).wait()
