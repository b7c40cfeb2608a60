"""Workflows, templates and releases: they call what a contributor calls, and refuse what isn't ready."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
#: Without logic of their own: one command of the repository's each.
_STEP = re.compile(r"make (?P<target>[a-z-]+)( [A-Z_]+=\S+)*|sudo bash scripts/services install")


def steps(path: Path) -> list[str]:
    """What a workflow runs, a line for each combination of its matrix."""
    found = []
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        matrix: dict[str, list[Any]] = job.get("strategy", {}).get("matrix", {})
        for text in (step["run"] for step in job["steps"] if "run" in step):
            named = re.search(r"\$\{\{ matrix\.(\w+) \}\}", text)
            values = matrix[named[1]] if named else [None]
            found += [re.sub(r"\$\{\{ matrix\.\w+ \}\}", str(value), text) for value in values]
    return found


def called(path: Path) -> set[str]:
    return {m["target"] for line in steps(path) if (m := _STEP.fullmatch(line)) and m["target"]}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_make_targets_and_has_no_logic_of_its_own(path: Path) -> None:
    assert [line for line in steps(path) if not _STEP.fullmatch(line)] == []
    assert called(path) <= TARGETS


def test_the_workflows_call_all_that_ci_calls() -> None:
    ours = set(re.findall(r"^make ([a-z-]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert ours == called(ROOT / ".github/workflows/ci.yml")


def test_the_client_is_tested_on_every_python_that_it_claims() -> None:
    claimed = re.findall(r"Python :: (3\.\d+)\"", (ROOT / "pyproject.toml").read_text())
    lines = steps(ROOT / ".github/workflows/ci.yml")
    tested = [line.partition("ARGS=python")[2] for line in lines if "test-client" in line]
    by_default = re.findall(r"python(3\.\d+)", (ROOT / "scripts/test-client").read_text())
    assert claimed
    assert claimed == tested
    assert set(claimed) <= set(by_default)


@pytest.mark.parametrize("name", ["bug", "wrong-engine", "feature"])
def test_an_issue_template_asks_for_something(name: str) -> None:
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    asked = [one for one in form["body"] if one["type"] != "markdown"]
    assert form["name"]
    assert form["description"]
    assert any(one.get("validations", {}).get("required") for one in asked)
    assert len({one["id"] for one in asked}) == len(asked)


class Checkout:
    """A repository with what a release is made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copied = (
            "pyproject.toml CHANGELOG.md farm/__init__.py scripts/release changelog.d/README.md"
        )
        for name in copied.split():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / "distributions/server").mkdir(parents=True)
        shutil.copy(ROOT / "distributions/server/pyproject.toml", folder / "distributions/server")
        (folder / "changelog.d/+new.added.md").write_text("Something new.\n")
        self.git("init", "-q")
        self.commit()

    def git(self, *words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        command = ["git", *identity, *words]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=True
        ).stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "all")

    def release(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "scripts/release", *words],
            env=os.environ | {"BUILDER": sys.executable} | more,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    pytest.importorskip("towncrier")
    return Checkout(tmp_path)


def test_release_notes_write_the_version_down_wherever_it_stands(checkout: Checkout) -> None:
    done = checkout.release("prepare", "7.8.9rc1")
    assert done.returncode == 0, done.stdout + done.stderr
    text = {
        name: (checkout.folder / name).read_text()
        for name in ("pyproject.toml", "distributions/server/pyproject.toml", "farm/__init__.py")
    }
    assert '__version__ = "7.8.9rc1"' in text["farm/__init__.py"]
    assert "engine-farm-server==7.8.9rc1" in text["pyproject.toml"]
    assert 'version = "7.8.9rc1"' in text["distributions/server/pyproject.toml"]
    assert '"engine-farm==7.8.9rc1"' in text["distributions/server/pyproject.toml"]
    notes = (checkout.folder / "CHANGELOG.md").read_text()
    assert re.search(r"## 7\.8\.9rc1 \(.*\)\n\n### Added\n\n- Something new\.\n", notes)
    assert notes.index("## 7.8.9rc1") < notes.index("What the first release begins with")
    assert not list((checkout.folder / "changelog.d").glob("+*"))


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3; rm"])
def test_a_version_that_is_none_is_refused(checkout: Checkout, version: str) -> None:
    done = checkout.release("prepare", version)
    assert (done.returncode, "isn't a version" in done.stderr) == (1, True)


def test_a_release_of_a_tree_that_is_not_clean_is_refused(checkout: Checkout) -> None:
    (checkout.folder / "farm/__init__.py").write_text('__version__ = "1.2.3"\n')
    done = checkout.release("make")
    assert (done.returncode, "the tree isn't clean" in done.stderr) == (1, True)


def test_a_release_whose_versions_differ_is_refused(checkout: Checkout) -> None:
    (checkout.folder / "farm/__init__.py").write_text('__version__ = "1.2.3"\n')
    checkout.commit()
    done = checkout.release("make")
    assert (done.returncode, "pyproject.toml doesn't say" in done.stderr) == (1, True)


def test_a_release_without_notes_is_refused(checkout: Checkout) -> None:
    done = checkout.release("make")
    assert (done.returncode, "CHANGELOG.md has nothing on" in done.stderr) == (1, True)


def test_a_release_that_leaves_fragments_out_is_refused(checkout: Checkout) -> None:
    assert checkout.release("prepare", "7.8.9").returncode == 0
    (checkout.folder / "changelog.d/+late.fixed.md").write_text("Late.\n")
    checkout.commit()
    done = checkout.release("make")
    assert (done.returncode, "fragments that aren't in CHANGELOG.md" in done.stderr) == (1, True)


def test_a_release_that_was_made_is_not_made_again(checkout: Checkout) -> None:
    assert checkout.release("prepare", "7.8.9").returncode == 0
    checkout.commit()
    # Its notes are whole: only the tag is in the way.
    checkout.git("tag", "-a", "v7.8.9", "-m", "7.8.9")
    done = checkout.release("make")
    assert (done.returncode, "v7.8.9 is there already" in done.stderr) == (1, True)
    assert not (checkout.folder / "dist").exists()
