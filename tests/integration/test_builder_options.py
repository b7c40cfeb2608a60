"""The builder's options reach the builder, of TensorRT-RTX and of TensorRT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from farm.errors import EngineBuildFailed
from farm.specs.options import BuilderOptions
from tests.stage_bench import Bench, Digits, rtx
from workers.backends.trt import options


@pytest.mark.parametrize(
    "options",
    [
        {"tf32": False},
        {"sparse_weights": True, "weight_streaming": True},
        {"builder_optimization_level": 0, "max_aux_streams": 0, "workspace_mib": 64},
    ],
)
def test_rtx_takes_the_builders_options(
    options: dict[str, Any], bench: Bench, digits: Digits
) -> None:
    facts = bench.run(rtx("sm_89", options=options), typed=digits.onnx).facts
    assert facts["options"].items() >= options.items()


class Config:
    """A builder's configuration that remembers what is set."""

    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.builder_optimization_level = 3
        self.max_aux_streams = -1
        self.hardware_compatibility_level = "NONE"
        self.set_flag, self.clear_flag = self.flags.add, self.flags.discard

    def set_memory_pool_limit(self, pool: str, limit: int) -> None:
        self.pool = (pool, limit)


def test_every_option_reaches_classic_tensorrts_configuration() -> None:
    flags = "TF32 SPARSE_WEIGHTS VERSION_COMPATIBLE WEIGHT_STREAMING".split()
    module = SimpleNamespace(
        __name__="tensorrt",
        __version__="10.13",
        BuilderFlag=SimpleNamespace(**{flag: flag for flag in flags}),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS"),
    )
    everything = BuilderOptions(
        tf32=False,
        sparse_weights=True,
        builder_optimization_level=5,
        max_aux_streams=2,
        workspace_mib=3,
        hardware_compatibility_level="ampere_plus",
        version_compatible=True,
        weight_streaming=True,
    )
    config = Config()
    options.set_options(module, config, everything)
    assert config.flags == {"SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"}
    assert (config.builder_optimization_level, config.max_aux_streams) == (5, 2)
    assert config.pool == ("WORKSPACE", 3 << 20)
    assert config.hardware_compatibility_level == "AMPERE_PLUS"
    del module.BuilderFlag.WEIGHT_STREAMING
    with pytest.raises(EngineBuildFailed, match="has no weight_streaming"):
        options.set_options(module, config, everything)
