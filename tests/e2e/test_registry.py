"""The page on versions and aliases, command by command, on a whole farm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import farm_lines
from tests.e2e.live import ROOT, LiveFarm

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs/how-to/registry.md").read_text()
RUN = re.search(r"<!-- run on a farm with two versions -->\s+```sh\n(.*?)```", PAGE, re.DOTALL)[1]
MODEL = "promoted"  # instead of the page's digits


@pytest.fixture
def farm(pages: LiveFarm) -> LiveFarm:
    return pages


def test_the_page_promotes_pulls_and_rolls_back(
    farm: LiveFarm, files: Path, tmp_path: Path
) -> None:
    for name, *word in (("small.onnx",), ("digits.pt2", "--new-inputs")):
        farm.says(
            "submit", files / name, "--name", MODEL, "--gpu", "cpu", "--precision", "fp32",
            "--wait", *word,
        )  # fmt: skip
    said = []
    for words in farm_lines.farm_commands(RUN):
        given = [
            str(tmp_path) if word == "engines" else word.replace("digits", MODEL) for word in words
        ]
        said.append((words, farm.says(*given)))
    by_command = {" ".join(words[:4]): answer for words, answer in said}
    assert len(said) == 13
    assert by_command["pull digits --gpu cpu"][0]["engine"]["version"] == 2
    assert by_command["rollback digits prod --note"]["version"] == 1
    [prod] = by_command["aliases digits"]
    assert (prod["alias"], prod["version"], prod["note"]) == ("prod", 1, "worse on night images")
    moves = by_command["aliases digits prod"]
    assert [(one["action"], one["version"]) for one in moves] == [
        ("rollback", 1),
        ("promote", 2),
        ("promote", 1),
    ]
    assert by_command["label digits@2 team=vision stage=canary"]["labels"] == {
        "stage": "canary",
        "team": "vision",
    }
    assert by_command["note digits@2 worse at night"]["note"] == "worse at night"
    assert [one["id"] for one in by_command["search digits team=vision --kind"]] == [f"{MODEL}@2"]
    shown = by_command["show digits"]
    assert [one["complete"] for one in shown["versions"]] == [True, True]
    assert "output `output`" in shown["versions"][1]["changes"][0]
    assert [[cell["verdict"] for cell in row["cells"]] for row in shown["matrix"]] == [
        ["passed", "passed"]
    ]
    assert (shown["prod_lacks"]["version"], shown["prod_lacks"]["newest"]) == (1, 2)
    assert by_command["pull digits@2 --gpu cpu"][0]["engine"]["version"] == 2
