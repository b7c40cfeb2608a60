"""The page on disk space, command by command, on a whole farm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import farm_lines
from tests.e2e.live import ROOT, LiveFarm

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs/how-to/retention.md").read_text()
RUN = re.search(r"<!-- run on a farm with two versions -->\s+```sh\n(.*?)```", PAGE, re.DOTALL)[1]
MODEL = "retained"  # instead of the page's digits, and of sources that no other model has


@pytest.fixture
def farm(pages: LiveFarm) -> LiveFarm:
    return pages


def test_the_page_deletes_a_version_and_builds_it_again_as_the_next(
    farm: LiveFarm, files: Path
) -> None:
    for name, *word in (("retained.pt2",), ("retained.onnx", "--new-inputs")):
        farm.says(
            "submit", files / name, "--name", MODEL, "--gpu", "cpu", "--precision", "fp32",
            *word, "--wait",
        )  # fmt: skip
    said = {}
    for words in farm_lines.farm_commands(RUN):
        given = [
            str(files / "retained.pt2") if word == "digits.pt2" else word.replace("digits", MODEL)
            for word in words
        ]
        said[" ".join(words)] = farm.says(*given)
    assert len(said) == 9
    told, done = said["delete digits@1 --dry-run"], said["delete digits@1 --yes"]
    assert (told["refused"], told["versions"], len(told["engines"])) == ([], [f"{MODEL}@1"], 1)
    between = said["delete digits --intermediates --yes"]
    assert between["rows"].keys() == {"jobs"}
    assert between["removed_bytes"] == between["freed_bytes"] > 0
    # What lay between had gone before.
    assert 0 < done["freed_bytes"] < told["freed_bytes"]
    assert done["removed_bytes"] == done["freed_bytes"]
    again = next(one for line, one in said.items() if line.startswith("submit"))
    assert (again["version"], again["state"]) == (3, "succeeded")
    kept = said["retention digits --engines 90d --intermediates 14d --newest 1"]["kept"]
    assert [(one["version"], one["why"]) for one in kept] == [
        (2, ["prod names it"]),
        (3, ["among the 1 newest"]),
    ]
    assert said["retention"]["items"] == said["retention --apply"]["items"] == []
    [digits] = said["du digits"]["models"]
    assert digits["kinds"]["engines"]["files"] == 2
