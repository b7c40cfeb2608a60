"""TensorRT chooses not always alike: an engine of other types than asked for is built once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from farm.errors import PrecisionMissed
from tests.integration.test_static_axes import squeezed
from tests.zoo import runner
from workers.report import engine_types


@pytest.mark.parametrize("misses", [1, 2])
def test_an_engine_that_misses_its_type_is_built_once_more_and_then_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, misses: int
) -> None:
    asked: list[Any] = []

    def check(*given: Any) -> None:
        asked.append(given)
        if len(asked) <= misses:
            raise PrecisionMissed("the engine computes in fp16")

    monkeypatch.setattr(engine_types, "check_engine", check)
    onnx.save(squeezed(), str(tmp_path / "model.onnx"))
    shape = {which: [1, 3, 8] for which in ("min", "opt", "max")}
    source = runner.Source(
        name="again",
        path=tmp_path / "model.onnx",
        format="onnx",
        samples={"x": np.ones((1, 3, 8), np.float32)},
        profiles=[{"x": shape}],
    )
    (one,) = runner.build(source, precisions=["fp32"], gpus=["sm_89"], folder=tmp_path)
    assert len(asked) == 2
    assert (one.error is None) == (misses == 1)
