"""How the tests are shared out among the processes of `pytest -n`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import schedule

ROOT = Path(__file__).resolve().parents[2]


def test_every_module_that_has_a_place_is_there_and_every_piece_is_begun_in_some_order() -> None:
    named = [*(one for modules in schedule.TOGETHER.values() for one in modules)]
    named += [one for one in schedule.FIRST if one not in schedule.TOGETHER]
    assert [one for one in named if not (ROOT / one).is_file()] == []
    assert len(set(named)) == len(named)
    assert set(schedule.TOGETHER) <= set(schedule.FIRST)


@pytest.mark.parametrize(
    ("nodeid", "piece"),
    [
        ("tests/e2e/test_hostile.py::test_a[x::y@z]", "farm"),
        (
            "tests/unit/test_plan.py::test_a[tests/e2e/test_hostile.py::b]",
            "tests/unit/test_plan.py",
        ),
    ],
)
def test_a_test_belongs_to_its_module_or_to_those_that_share_a_farm(
    nodeid: str, piece: str
) -> None:
    assert schedule.piece(nodeid) == piece


def test_the_dearest_come_first_and_a_piece_is_in_one_piece() -> None:
    hostile, crashes = "tests/e2e/test_hostile.py::a", "tests/e2e/test_crashes.py::a"
    ids = ["tests/a.py::b", crashes, "tests/a.py::a", "tests/b.py::a", "tests/a.py::c", hostile]
    items = [SimpleNamespace(nodeid=one) for one in ids]
    schedule.in_order(items)
    assert [one.nodeid for one in items] == [
        crashes, hostile, "tests/a.py::b", "tests/a.py::a", "tests/a.py::c", "tests/b.py::a",
    ]  # fmt: skip


CONFTEST = """
from tests import schedule

def pytest_xdist_make_scheduler(config, log):
    return schedule.Pieces(config, log)
"""
TESTS = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(4))
def test_it(number):
    with open("ran", "a") as ran:
        ran.write(f"{os.environ['PYTEST_XDIST_WORKER']} {pathlib.Path(__file__).stem}\\n")
"""


def test_pytest_runs_a_piece_in_one_process(tmp_path: Path) -> None:
    names = [f"tests/e2e/{name}.py" for name in ("test_hostile", "test_crashes")]
    for name in [*names, "tests/test_one.py", "tests/test_two.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").touch()
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=120,
    )
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert len(ran) == 16
    by_module = {module: {worker for worker, name in ran if name == module} for _, module in ran}
    assert by_module["test_hostile"] == by_module["test_crashes"]
    assert {len(workers) for workers in by_module.values()} == {1}
