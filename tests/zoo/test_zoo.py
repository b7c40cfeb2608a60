"""Some of the zoo: each engine is built and right, or refused with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.specs import Precision
from tests.zoo import models, runner

pytestmark = pytest.mark.slow

#: An old graph whose values leave the range of fp16, and two of transformers.
SOME = {
    "squeezenet": {"fp32", "fp16", "bf16"},
    "whisper-encoder": {"fp32", "fp16", "bf16", "int8", "fp8"},
    "vit": {"fp32", "fp16", "bf16", "int8", "fp8"},
}


@pytest.mark.parametrize("name", SOME)
def test_what_is_built_is_right_and_what_is_not_says_what_to_do(name: str, tmp_path: Path) -> None:
    source = models.source(name, tmp_path)
    gpus = ["sm_89", "cpu"]
    found = list(runner.build(source, precisions=list(Precision), gpus=gpus, folder=tmp_path))
    assert len(found) == len(gpus) * len(Precision)
    good = {one.precision for one in found if not one.error and one.target.endswith("sm_89")}
    assert good == SOME[name], [one.error for one in found if one.error]
    for one in found:
        if one.error:
            assert one.error.detail
            assert one.error.hint
        else:
            assert one.accuracy["cosine_mean"] > 0.99, one
            assert one.facts["compute"]["types"][one.precision]["layers"] > 0
