"""What a package that refuses to run says reaches the job's log."""

import sys

import pytest

from farm.errors import EngineBuildFailed
from workers.backends.aotinductor import proof

REFUSES = """
import pathlib, sys
print("Error: CUBLAS_STATUS_NOT_SUPPORTED", file=sys.stderr)
pathlib.Path(sys.argv[-1]).write_text('{"refused": "API call failed"}')
"""


def test_what_a_package_says_as_it_fails_is_in_the_log_of_its_job(tmp_path, monkeypatch, capfd):
    def command(_, *arguments):
        return [sys.executable, "-c", REFUSES, *arguments]

    monkeypatch.setattr(proof.installed, "command", command)
    with pytest.raises(EngineBuildFailed, match="API call failed"):
        proof.proved(tmp_path / "engine.pt2", "cpu", {}, tmp_path)
    assert "CUBLAS_STATUS_NOT_SUPPORTED" in capfd.readouterr().out
