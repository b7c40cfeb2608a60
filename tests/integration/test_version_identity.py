"""What makes a version: the source's bytes, how they are read, their configuration, and fixed inputs."""

from __future__ import annotations

import pytest

from tests.ledger import DATA, LABELLED

BERT = {"library": "transformers", "name": "BertModel", "config": {"hidden_size": 64}}


@pytest.fixture
def version(ledger):
    """The version that a submission of one file, in some way, is of."""
    weights = ledger.upload(7)

    def one(format="onnx", architecture=None, **changes):
        source = weights | {"format": format, "architecture": architecture}
        return ledger.view(ledger.submit(source=source, **changes)).version

    return one


def test_other_fixed_inputs_are_another_version(version):
    assert version() == 1
    assert version(fixed_inputs={"sr": 16000}) == 2
    assert version(fixed_inputs={"sr": 8000}) == 3
    assert version(fixed_inputs={"size": [640, 480], "sr": 8000}) == 4
    assert version(fixed_inputs={"sr": 8000, "size": [640, 480]}) == 4
    assert version(fixed_inputs={"sr": 16000}) == 2
    assert version() == 1


def test_another_configuration_is_another_version(version):
    def of(**config):
        return version("safetensors", BERT | {"config": config})

    assert of(hidden_size=64) == 1
    assert of(hidden_size=128) == 2
    assert version("safetensors", BERT | {"name": "BertForMaskedLM"}) == 3
    assert of(hidden_size=64) == 1


def test_the_same_bytes_read_in_another_format_are_another_version(version):
    assert version("savedmodel") == 1
    assert version("onnx") == 2
    assert version("onnx", fixed_inputs={"sr": 8000}) == 3
    assert version("savedmodel") == 1
    assert version("onnx") == 2


def test_how_a_version_is_built_and_judged_makes_no_other(version):
    calibration = {"digest": DATA, "method": "max", "batch_size": 4}
    evaluation = {"digest": LABELLED, "metric": "top1"}
    shapes = {"min": [1, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [4, 3, 8, 8]}
    assert version() == 1
    for more in (
        {"precisions": ["int8"], "calibration": calibration},
        {"evaluation": evaluation},
        {"profiles": [{"image": shapes}]},
        {"options": {"tf32": False}},
        {"targets": ["sm_75"]},
        {"labels": {"team": "vision"}, "note": "again", "priority": 9},
    ):
        assert version(**more) == 1
