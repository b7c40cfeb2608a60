"""scripts/oci-conformance serves a farm, runs the suite it is given, and tells what didn't pass."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.oci_suite import summary

ROOT = Path(__file__).parents[2]
#: Stands in for the suite: asks whether the registry is one, and writes what the suite writes.
SUITE = """
import base64, os, pathlib, sys, urllib.request
key = base64.b64encode(f"{{os.environ['OCI_USERNAME']}}:{{os.environ['OCI_PASSWORD']}}".encode()).decode()
assert os.environ["OCI_TLS"] == "disabled"
asked = urllib.request.Request(
    f"http://{{os.environ['OCI_REGISTRY']}}/v2/", headers={{"Authorization": f"Basic {{key}}"}}
)
status = urllib.request.urlopen(asked).status
pathlib.Path(os.environ["OCI_RESULTS_DIR"], "junit.xml").write_text(f"{{status}}")
print("Test results", "OCI Conformance Test: Pass", "  OCI Conformance Test/ping: Pass", sep="\\n")
print("OCI Conformance Result: {result}", "  Pass: 1", sep="\\n")
sys.exit({code})
"""


def run(tmp_path: Path, suite: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/oci-conformance", suite],
        env=os.environ | {"OCI_RESULTS_DIR": str(tmp_path / "results")},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("result", "code", "expected"), [("Pass", 0, 0), ("FAIL", 0, 1)])
def test_the_suite_finds_a_farm_and_its_verdict_is_the_scripts(tmp_path, result, code, expected):
    suite, script = tmp_path / "suite", tmp_path / "suite.py"
    script.write_text(SUITE.format(result=result, code=code))
    # Not the interpreter in the first line: its path may have spaces.
    suite.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))}\n")
    suite.chmod(0o755)
    ended = run(tmp_path, suite)
    assert (ended.returncode, ended.stderr) == (expected, "")
    assert f"OCI Conformance Result: {result}" in ended.stdout
    assert (tmp_path / "results/junit.xml").read_text() == "200"


@pytest.mark.parametrize("suite", ["", "nowhere"])
def test_without_a_suite_it_says_what_it_needs(tmp_path, suite):
    ended = run(tmp_path, suite)
    assert ended.returncode == 2
    assert "oci-conformance SUITE" in ended.stderr


def test_a_folder_without_the_suite_is_refused(tmp_path):
    ended = run(tmp_path, tmp_path)
    assert ended.returncode == 2
    assert "there is no main.go" in ended.stderr


def test_the_summary_names_the_tests_that_didnt_pass_and_why():
    said = """OCI Conformance Test: FAIL
  OCI Conformance Test/blobs: FAIL
    OCI Conformance Test/blobs/get: FAIL
     - unexpected status code
    OCI Conformance Test/blobs/head: Pass
  OCI Conformance Test/cancel: Disabled
OCI Conformance Result: FAIL
  Pass: 1
"""
    assert summary(said) == [
        "OCI Conformance Test/blobs/get: FAIL",
        "    - unexpected status code",
        "OCI Conformance Test/cancel: Disabled",
        "",
        "OCI Conformance Result: FAIL\n  Pass: 1",
    ]
