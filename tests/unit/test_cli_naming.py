"""What ``farm submit`` and ``farm bench`` call a model, and what they ask."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from farm.cli import exits
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
    return path


@pytest.fixture
def generic(tmp_path: Path) -> Path:
    """A file whose name and folder say nothing."""
    return program(tmp_path / "models" / "model.pt2")


def test_a_name_that_is_not_the_files_is_told_with_where_it_comes_from(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    result = run("submit", program(tmp_path / "resnet50" / "model.pt2"), "--gpu", "sm_89")
    assert result.exit_code == exits.OK, result.output
    assert stub.submitted[-1]["model"] == "resnet50"
    first = result.stdout.splitlines()[0]
    assert first == "named digits after the folder resnet50; --name chooses another"


def test_a_name_that_is_the_files_or_given_is_not_explained(
    run: Run, model: Path, generic: Path
) -> None:
    for words in ((model,), (generic, "--name", "digits")):
        result = run("submit", *words, "--gpu", "sm_89")
        assert result.exit_code == exits.OK, result.output
        assert "named" not in result.stdout


def test_a_bench_of_a_file_tells_where_its_name_comes_from(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    result = run("bench", program(tmp_path / "resnet50" / "model.pt2"), "--gpu", "h200")
    assert stub.submitted[-1]["model"] == "resnet50"
    assert "named digits after the folder resnet50; --name chooses another" in result.stdout


@pytest.mark.parametrize("command", ["submit", "bench"])
def test_without_a_terminal_a_model_that_nothing_names_is_refused(
    run: Run, stub: StubFarm, generic: Path, command: str
) -> None:
    result = run(command, generic, "--gpu", "h200")
    assert result.exit_code == exits.USAGE
    assert result.stderr == (
        f"error: neither {generic} nor its folder tells what the model is called\n"
        "hint: pass its name: --name (name=…)\n"
    )
    assert stub.submitted == []


def on_a_terminal(stub: StubFarm, *words: str, answers: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose stdin alone is a terminal, on which the answers were typed."""
    keyboard, terminal = pty.openpty()
    try:
        os.write(keyboard, answers.encode())
        return subprocess.run(
            [sys.executable, "-m", "farm", *words],
            env=os.environ | {"FARM_URL": stub.url},
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=180,
        )
    finally:
        os.close(keyboard)
        os.close(terminal)


def test_on_a_terminal_the_name_is_asked_for_until_it_is_one(stub: StubFarm, generic: Path) -> None:
    words = ("submit", str(generic), "--gpu", "sm_89")
    done = on_a_terminal(stub, *words, answers="no such name!\nResNet50\n")
    assert done.returncode == exits.OK, done.stderr
    assert [sent["model"] for sent in stub.submitted] == ["ResNet50"]
    assert "nor its folder tells what the model is called" in done.stderr
    assert done.stderr.count("Its name:") == 2
    assert "a name has letters, digits" in done.stderr
    assert "Its name" not in done.stdout


def test_on_a_terminal_json_asks_nothing(stub: StubFarm, generic: Path) -> None:
    words = ("submit", str(generic), "--gpu", "sm_89", "--json")
    done = on_a_terminal(stub, *words, answers="ResNet50\n")
    assert done.returncode == exits.USAGE
    assert json.loads(done.stderr)["code"] == "name-missing"
    assert stub.submitted == []
