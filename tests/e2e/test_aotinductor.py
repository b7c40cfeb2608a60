"""AOTInductor packages on a CPU: announced by a worker that made one, built, measured, pulled, and run as the
docs say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from farm.local import up
from tests.e2e.conftest import fresh_settings
from tests.e2e.live import ROOT, LiveFarm, wait_until
from workers.backends.aotinductor import compiler
from workers.programs.eager import EagerModel
from workers.programs.load import load_program
from workers.programs.program_interface import plain_program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.xdist_group("farm"),
    pytest.mark.timeout(900),  # two compilations, of a minute each on a busy machine of two cores
    pytest.mark.skipif(not compiler.tools(), reason="no usable C++ compiler here"),
]
DOCUMENT = ROOT / "docs" / "how-to" / "aotinductor.md"


@pytest.fixture
def compiling(tmp_path: Path) -> Iterator[LiveFarm]:
    """A farm that compiles packages."""
    with (
        fresh_settings(tmp_path / "home", aotinductor=True) as settings,
        up.embedded(settings) as running,
    ):
        yield LiveFarm(running.addresses, settings)


def documented(package: Path, images: Path) -> str:
    """The docs' first program, with another package and another input, on the CPU."""
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]
    code, packages = re.subn(r'"resnet50[^"]*"', repr(str(package)), code)
    given = f"x = torch.from_numpy(np.load({str(images)!r}))"
    code, inputs = re.subn(r"^x = .*$", given, code, flags=re.MULTILINE)
    assert (packages, inputs) == (1, 1), code
    return f"import numpy as np\n{code}\nnp.save({str(images)!r}, scores.numpy())\nprint(names)"


def announced(farm: LiveFarm) -> bool:
    return any("aotinductor" in worker["runtimes"] for worker in farm.get("/v1/workers"))


def test_a_package_for_cpu_is_built_measured_pulled_and_run_by_the_documented_program(
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
    package = Path(pulled["path"])
    assert package.suffix == ".pt2"

    images = np.load(files / "evaluation.npz")["image"][:2]
    np.save(tmp_path / "images.npy", images)
    ran = subprocess.run(
        [sys.executable, "-c", documented(package, tmp_path / "images.npy")],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    program = load_program(files / "digits.pt2")
    plain_program(program)
    source = EagerModel(program)
    assert ran.stdout.strip() == str(source.input_names)
    [expected] = source.run({source.input_names[0]: images}).values()
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, rtol=1e-4, atol=1e-5)
