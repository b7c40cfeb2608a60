"""AOTInductor packages on a CPU: announced by a worker that made one, built, measured, pulled, and run as
their manifests say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from farm.local import up
from tests import loaded
from tests.e2e.conftest import fresh_settings
from tests.e2e.live import LiveFarm, wait_until
from workers.backends.aotinductor import compiler
from workers.programs.eager import EagerModel
from workers.programs.load import load_program
from workers.programs.program_interface import plain_program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.timeout(900),  # two compilations, of a minute each on a busy machine of two cores
    pytest.mark.skipif(not compiler.tools(), reason="no usable C++ compiler here"),
]


@pytest.fixture
def compiling(tmp_path: Path) -> Iterator[LiveFarm]:
    """A farm that compiles packages."""
    with (
        fresh_settings(tmp_path / "home", aotinductor=True) as settings,
        up.embedded(settings) as running,
    ):
        yield LiveFarm(running.addresses, settings)


def announced(farm: LiveFarm) -> bool:
    return any("aotinductor" in worker["runtimes"] for worker in farm.get("/v1/workers"))


def test_a_package_for_cpu_is_built_measured_pulled_and_run_as_its_manifest_says(
    compiling: LiveFarm, files: Path, tmp_path: Path
) -> None:
    wait_until("a worker announces aotinductor", lambda: announced(compiling), 300)
    submitted = compiling.submit(
        "digits", files / "digits.pt2", "pt2", precisions=["fp32"], targets=["aotinductor:cpu"]
    )
    build = compiling.ended(submitted["id"], 400)
    assert build["state"] == "succeeded", build
    [engine] = compiling.get("/v1/models/digits/engines")["items"]
    assert engine["runtime"] == "aotinductor"
    assert engine["metrics"]["latency_ms"]["p50"] > 0
    [pulled] = compiling.cli(
        "pull", "digits", "--gpu", "cpu", "--runtime", "aotinductor", "-o", tmp_path, "--json"
    ).json()
    assert Path(pulled["path"]).suffix == ".pt2"

    images = np.load(files / "evaluation.npz")["image"][:2]
    program = load_program(files / "digits.pt2")
    plain_program(program)
    source = EagerModel(program)
    [name] = source.input_names
    expected = source.run({name: images})
    found = loaded.run_with(pulled["load"], {name: images}, tmp_path)
    assert found.keys() == expected.keys()
    for output, array in expected.items():
        np.testing.assert_allclose(found[output], array, rtol=1e-4, atol=1e-5)
