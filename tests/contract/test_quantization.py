"""How engines were quantised: told of every quantised engine, or why it isn't known."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from sqlalchemy import select, update

from farm.database.tables import EngineRow, Job
from farm.reports.histograms import Histograms, TensorHistogram
from farm.stages import JobKind

FACTS = {
    "samples": 64,
    "method": "auto",
    "snr_db": {"<b>": -3.5, "relu": 31.25},
    "left_in_float": {"small product": ["head"]},
    "search": {
        "metric": "f1",
        "max_drop": 0.01,
        "budget_s": 600,
        "spent_s": 31.4,
        "samples": 48,
        "held_out": 16,
        "drop": 0.004,
        "int8_share": 0.96,
        "tried": [
            {"what": "plain", "drop": 0.25, "int8_share": 1.0, "predicted_time": 0.4, "seconds": 2},
            {"what": "<i>equalised", "drop": None, "predicted_time": 0.5, "kept": True},
        ],
    },
}
HISTOGRAMS = Histograms(
    tensors=[
        TensorHistogram(
            tensor="<b>",
            largest=8.0,
            counts=[90, 9, 0, 1],
            range=4.0,
            method="mse",
            ranges={"mse": 4.0, "max": 8.0},
        )
    ]
)


@pytest.fixture
def engines(api, ledger) -> dict[str, str]:
    """A build with an engine in fp16 and one in int8: precision → id."""
    wanted = {
        "model": "digits",
        "source": {"digest": api.upload(b"a model"), "format": "onnx"},
        "precisions": ["fp16", "int8"],
        "targets": ["tensorrt-rtx:sm_89"],
        "calibration": {"digest": api.upload(b"data")},
    }
    assert api.post("/v1/builds", json=wanted).status_code == 202
    compute = {"source": "plan", "macs": 10, "types": {"int8": {"layers": 3, "share": 0.97}}}
    ledger.run_all(compute=compute)
    items = api.get("/v1/models/digits/engines").json()["items"]
    return {one["precision"]: one["id"] for one in items}


@pytest.fixture
def calibrated(api, ledger):
    """Has the calibration have found something."""

    def make(facts: object = FACTS, histograms: bytes | None = None) -> None:
        values: dict[str, object] = {"facts": facts}
        if histograms is not None:
            values["outputs"] = {
                "typed": "sha256:" + "0" * 64,
                "histograms": api.upload(histograms),
            }
        with ledger.db.write() as session:
            session.execute(update(Job).where(Job.kind == JobKind.CALIBRATE).values(**values))

    return make


def test_a_calibration_tells_its_noise_its_ranges_and_what_stayed_in_floats(
    api, engines, calibrated
) -> None:
    calibrated(FACTS, HISTOGRAMS.model_dump_json().encode())
    found = api.get(f"/v1/engines/{engines['int8']}/quantization").json()
    assert found["snr_db"] == FACTS["snr_db"]
    assert found["left_in_float"] == FACTS["left_in_float"]
    assert found["histograms"] == HISTOGRAMS.model_dump(mode="json")
    assert (found["snr_reason"], found["histograms_reason"]) == (None, None)
    assert [one["what"] for one in found["search"]["tried"]] == ["plain", "<i>equalised"]


def test_an_engines_page_draws_its_calibration_and_says_the_same_in_a_table(
    api, engines, calibrated
) -> None:
    calibrated(FACTS, HISTOGRAMS.model_dump_json().encode())
    text = api.get(f"/engines/{engines['int8']}").text
    assert text.count('<svg viewBox="') == 0
    assert text.count('role="img"') == 3
    for part in (
        *("Signal to noise by layer", "31.2 dB", "-3.5 dB", "&lt;b&gt;", "&lt;i&gt;equalised"),
        "97 % int8 by auto, 64 samples; worst layer -3.5 dB: &lt;b&gt;",
        "Magnitudes to 8; range 4 by mse, which clips 1.000 % of them; by other methods max 8",
        "Left in floats, small product: head",
        "f1 may drop by 0.01 and drops by 0.0040, with 96% of the multiplications in int8; "
        "2 ways tried in 31 s.",
        *("0.2500", "broken", "chosen", "quantization/picture.svg?tensor=%3Cb%3E"),
    ):
        assert part in text
    assert "<b>" not in text
    assert "Quantisation" not in api.get(f"/engines/{engines['fp16']}").text


def test_the_picture_of_a_calibration_is_an_svg_that_may_run_nothing(
    api, engines, calibrated
) -> None:
    calibrated(FACTS, HISTOGRAMS.model_dump_json().encode())
    path = f"/v1/engines/{engines['int8']}/quantization/picture.svg"
    whole, part = api.get(path), api.get(path, params={"tensor": "<b>"})
    for answer in (whole, part):
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
        assert answer.headers["content-security-policy"].startswith(
            "default-src 'none'; style-src 'unsafe-inline'; "
        )
        assert "range 4 by mse" in answer.text
        ElementTree.fromstring(answer.text)
    assert "goal: at most 0.01" in whole.text
    assert "goal" not in part.text
    unknown = api.get(path, params={"tensor": "relu"})
    assert (unknown.status_code, unknown.json()["hint"]) == (404, "there are those of '<b>'")
    assert api.get(f"/v1/engines/{engines['fp16']}/quantization/picture.svg").status_code == 404
    assert api.get("/v1/engines/none/quantization/picture.svg").status_code == 404


def test_engines_and_models_tell_in_short_how_each_was_quantised(api, engines, calibrated) -> None:
    calibrated()
    expected = {
        "method": "auto",
        "samples": 64,
        "share": 0.97,
        "worst_snr_db": -3.5,
        "worst_tensor": "<b>",
        "reason": None,
    }
    listed = api.get("/v1/models/digits/engines").json()["items"]
    shown = api.get("/v1/models/digits").json()["engines"]
    for items in (listed, shown):
        assert {one["precision"]: one["quantization"] for one in items} == {
            "int8": expected,
            "fp16": None,
        }
    assert api.get(f"/v1/engines/{engines['int8']}").json()["quantization"] == expected
    manifest = api.get(f"/v1/engines/{engines['int8']}/manifest").json()
    assert manifest["engine"]["quantization"] == expected


@pytest.mark.parametrize(
    ("histograms", "reason"),
    [
        (None, "unknown: none were kept when it was quantised"),
        (b"{]", "unknown: no stage of the farm writes what is stored"),
        (b'{"tensors": [{"tensor": "a"}]}', "unknown: no stage of the farm writes what is stored"),
        (b"[" * 2_000_000, "unknown: no stage of the farm writes what is stored"),
    ],
    ids=["an old record", "garbage", "another shape", "2 MB"],
)
def test_without_histograms_the_reason_is_told(
    api, engines, calibrated, histograms, reason
) -> None:
    calibrated(FACTS, histograms)
    found = api.get(f"/v1/engines/{engines['int8']}/quantization").json()
    assert (found["histograms"], found["histograms_reason"]) == (None, reason)
    assert reason in api.get(f"/engines/{engines['int8']}").text
    assert reason in api.get(f"/v1/engines/{engines['int8']}/quantization/picture.svg").text


def test_what_is_left_of_a_calibration_whose_files_were_deleted_is_told(
    api, ledger, engines, calibrated
) -> None:
    calibrated()
    with ledger.db.write() as session:
        outputs = {"histograms": "sha256:" + "9" * 64}
        session.execute(
            update(Job).where(Job.kind == JobKind.CALIBRATE).values(state="failed", outputs=outputs)
        )
    found = api.get(f"/v1/engines/{engines['int8']}/quantization").json()
    assert found["histograms_reason"].startswith("unknown: they were deleted with the calibrated")
    assert found["snr_db"] == FACTS["snr_db"]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"method": "as it came", "samples": 0}, "not measured: it was quantised in training"),
        ({"method": "tensorrt-cache"}, "not measured: its ranges come from a calibration cache"),
        (
            {"method": "entropy", "samples": 64},
            "not measured: it was calibrated by an earlier farm",
        ),
        ({"snr_db": 5}, "unknown: the stored record can't be read"),
        (None, "unknown: it wasn't calibrated by this farm"),
    ],
)
def test_without_ratios_the_reason_is_told(api, engines, calibrated, facts, reason) -> None:
    calibrated(facts)
    found = api.get(f"/v1/engines/{engines['int8']}/quantization").json()
    assert (found["snr_db"], found["snr_reason"].startswith(reason)) == ({}, True)
    brief = api.get(f"/v1/engines/{engines['int8']}").json()["quantization"]
    assert (brief["worst_snr_db"], brief["reason"]) == (None, found["snr_reason"])
    assert api.get(f"/engines/{engines['int8']}").status_code == 200


@pytest.mark.parametrize(
    ("changes", "method", "reason", "histograms"),
    [
        (
            {"precision": "int8-dynamic", "runtime": "onnxruntime", "gpu": "cpu"},
            "dynamic ranges",
            "not measured: activations are quantised at run time",
            "none: nothing is calibrated before it runs",
        ),
        (
            {"precision": "fp8", "runtime": "aotinductor"},
            "max",
            "not measured: AOTInductor's engines are quantised as programs",
            "none: its ranges are the largest magnitudes, and nothing else was looked at",
        ),
        (
            {"precision": "fp8"},
            None,
            "unknown: it wasn't calibrated by this farm",
            "unknown: none were kept when it was quantised",
        ),
    ],
)
def test_engines_that_nothing_calibrated_as_a_graph_say_why_nothing_is_measured(
    api, ledger, engines, changes, method, reason, histograms
) -> None:
    with ledger.db.write() as session:
        row = session.scalars(select(EngineRow).where(EngineRow.precision == "fp16")).one()
        session.execute(update(EngineRow).where(EngineRow.id == row.id).values(**changes))
    found = api.get(f"/v1/engines/{engines['fp16']}/quantization").json()
    assert (found["method"], found["snr_reason"].startswith(reason)) == (method, True)
    assert found["histograms_reason"] == histograms
    assert reason.replace("'", "&#39;") in api.get(f"/engines/{engines['fp16']}").text
