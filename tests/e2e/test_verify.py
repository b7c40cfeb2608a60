"""The page on verifying engines, command by command, on a whole farm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.live import ROOT, LiveFarm

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs/how-to/verify.md").read_text()
MODEL = "verified"  # instead of the page's digits
RUN = re.search(r"<!-- run on a farm with an engine -->\s+```sh\n(.*?)```", PAGE, re.DOTALL)[1]
RUN = RUN.replace("digits", MODEL)


@pytest.fixture
def farm(pages: LiveFarm) -> LiveFarm:
    return pages


def test_the_page_pulls_and_verifies_with_both_tools(
    farm: LiveFarm, files: Path, tmp_path: Path
) -> None:
    farm.says(
        "submit", files / "small.onnx", "--name", MODEL, "--gpu", "cpu", "--precision", "fp32",
        "--wait",
    )  # fmt: skip
    made = farm.settings.signing_key_file
    assert made.stat().st_mode & 0o777 == 0o600
    script = f"set -euo pipefail\ncd '{tmp_path}'\n{RUN}"
    assert [line.split()[0] for line in RUN.splitlines()] == ["farm"] * 6 + ["model_signing"]
    tools = f'farm() {{ "{sys.executable}" -m farm "$@"; }}\n'
    tools += f'model_signing() {{ "{sys.executable}" -m model_signing "$@"; }}\n'
    environment = os.environ | {
        "FARM_URL": farm.addresses.api,
        "FARM_KEY": farm.key,
        "FARM_HOME": str(tmp_path / "a user's home"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-c", tools + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("verified: signed by sha256:") == 3
    assert '"verdict": "verified"' in done.stdout
    engine = tmp_path / f"engines/{MODEL}-v1-fp32-cpu.onnx"
    engine.write_bytes(engine.read_bytes() + b"\0")
    again = subprocess.run(
        [sys.executable, "-m", "farm", "verify", str(engine)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert again.returncode == 1, again.stdout + again.stderr
