"""OCI's conformance suite, run against a farm that is served for it: scripts/oci-conformance."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.contract.live_api import live_api

_RESULT = "OCI Conformance Result: "
_LEAF = re.compile(r"\s*(\S.*): (FAIL|Error|Skip|Disabled)")


def run(binary: Path, results: Path, home: Path) -> bool:
    """Whether the farm passes; prints what it didn't pass, and the counts.

    Parameters:
        results: the folder for what the suite writes.
        home: the farm's, which isn't there yet.
    """
    output = results / "output.txt"
    with live_api(home) as api, output.open("wb") as file:
        told = {
            "OCI_REGISTRY": f"127.0.0.1:{api.port}",
            "OCI_TLS": "disabled",
            "OCI_USERNAME": "conformance",
            "OCI_PASSWORD": api.key,
            "OCI_RESULTS_DIR": str(results),
        }
        ended = subprocess.run(
            [binary], env=os.environ | told, cwd=home, stdout=file, stderr=subprocess.STDOUT
        )
    said = output.read_text(errors="replace")
    print("\n".join(summary(said)))
    # The suite also exits with 0 where it couldn't begin.
    return ended.returncode == 0 and f"{_RESULT}Pass" in said.splitlines()


def summary(said: str) -> list[str]:
    """What the suite's output says of tests that didn't pass, and its last part: the counts."""
    tests, found, counts = said.partition(_RESULT)
    if not found:
        return said.splitlines()[-20:]
    lines = tests.splitlines()
    depth = [len(line) - len(line.lstrip()) for line in [*lines, ""]]
    shown: list[str] = []
    for at, line in enumerate(lines):
        if _LEAF.fullmatch(line) and not _is_parent(lines, depth, at):
            shown.append(line.strip())
            if lines[at + 1 : at + 2] and lines[at + 1].lstrip().startswith("- "):
                shown.append(f"    {lines[at + 1].strip()}")
    return [*shown, "", found + counts.rstrip()]


def _is_parent(lines: list[str], depth: list[int], at: int) -> bool:
    return depth[at + 1] > depth[at] and not lines[at + 1].lstrip().startswith("- ")


def main() -> None:
    binary, results, home = map(Path, sys.argv[1:])
    if not run(binary, results, home):
        sys.exit(1)


if __name__ == "__main__":
    main()
