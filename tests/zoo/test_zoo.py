"""Some of the zoo: each engine is built and right, or refused with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.specs.precision import Precision
from tests.zoo import models, runner

pytestmark = pytest.mark.heavy

#: What each is built in for sm_89: an old graph whose values leave the range of fp16, and a new one.
SOME = {
    "squeezenet": {"fp32": True, "fp16": True, "int8": True},
    "vit": {"int8": True, "fp8": True},
}


def test_bert_with_int8_weights_is_smaller_and_right(tmp_path: Path) -> None:
    source = models.source("bert", tmp_path)
    precisions = [Precision.FP32, Precision.INT8_DYNAMIC]
    wide, narrow = runner.build(source, precisions=precisions, gpus=["cpu"], folder=tmp_path)
    assert (wide.error, narrow.error) == (None, None)
    types = narrow.facts["compute"]["types"]
    # Attention multiplies activations by each other, which stays fp32.
    assert (types["int8"]["layers"], types["fp32"]["layers"]) == (12, 4)
    assert narrow.bytes < wide.bytes
    assert narrow.accuracy.cosine_mean > 0.999


@pytest.mark.parametrize("name", SOME)
def test_what_is_built_is_right_and_what_is_not_says_what_to_do(name: str, tmp_path: Path) -> None:
    source = models.source(name, tmp_path)
    precisions = [Precision(precision) for precision in SOME[name]]
    found = list(
        runner.build(source, precisions=precisions, gpus=["sm_89", "cpu"], folder=tmp_path)
    )
    built = {one.precision: not one.error for one in found if one.target.endswith("sm_89")}
    assert built == SOME[name], [one.error for one in found if one.error]
    for one in found:
        if one.error:
            assert one.error.detail
            assert one.error.hint
        else:
            assert one.accuracy.cosine_mean > 0.99, one
            # ONNX Runtime has no kernels for fp16 on CPUs of x86-64, and its engines say so.
            is_wide = one.target.endswith("cpu") and one.precision == Precision.FP16
            kind = Precision.FP32 if is_wide else one.precision
            assert one.facts["compute"]["types"][kind]["layers"] > 0
