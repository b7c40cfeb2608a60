"""Which products an engine serves, and how closely."""

from __future__ import annotations

import pytest

from farm.schemas.engines import EngineView
from farm.specs import gpus
from farm.specs.options import BuilderOptions
from farm.specs.reach import Reach, served
from farm.specs.runtime import Runtime


def engine(gpu: str, runtime: Runtime = Runtime.TENSORRT, level: str = "none") -> EngineView:
    options = BuilderOptions.model_validate({"hardware_compatibility_level": level})
    return EngineView.model_construct(gpu=gpu, runtime=runtime, options=options, toolchain={})


@pytest.mark.parametrize("gpu", ["h200", "t4"])
def test_an_engine_for_a_product_serves_it_alone(gpu: str) -> None:
    assert served(engine(gpu)) == {Reach.EXACT: [gpu]}


def test_an_engine_for_a_compute_capability_serves_its_products() -> None:
    assert served(engine("sm_89")) == {Reach.CAPABILITY: gpus.products_of("sm_89")}


def test_a_portable_engine_serves_its_own_product_first() -> None:
    found = served(engine("a100", level="ampere_plus"))
    assert list(found) == [Reach.EXACT, Reach.PORTABLE]
    assert found[Reach.EXACT] == ["a100"]
    assert {"h100", "rtx-4090"} <= set(found[Reach.PORTABLE])
    assert "t4" not in found[Reach.PORTABLE]


def test_an_engine_for_cpus_serves_no_gpu() -> None:
    assert served(engine("cpu", Runtime.ONNXRUNTIME)) == {}
