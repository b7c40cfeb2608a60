"""The command line as a whole: help, errors, exit codes, completion, and processes that it becomes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from farm.cli import app, exits
from farm.installed import parts
from farm.testing.documents import BUILD
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run


def test_a_build_that_is_not_there_exits_3(run: Run) -> None:
    result = run("status", "06NOPE")
    assert result.exit_code == exits.NOT_FOUND
    expected = "error: there is no build '06NOPE'\nhint: `farm builds` lists them\n"
    assert result.stderr == expected


def test_an_error_as_json_is_a_problem_on_stderr(run: Run) -> None:
    result = run("status", "06NOPE", "--json")
    assert result.stdout == ""
    assert json.loads(result.stderr) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "code": "not-found",
        "detail": "there is no build '06NOPE'",
        "hint": "`farm builds` lists them",
    }


def test_a_farm_out_of_reach_exits_4(run: Run) -> None:
    result = run("builds", "--url", "http://127.0.0.1:9")
    assert result.exit_code == exits.UNAVAILABLE
    assert "farm up" in result.stderr


def test_an_unknown_option_exits_2(run: Run) -> None:
    assert run("status", BUILD, "--nonsense").exit_code == exits.USAGE


def _subcommands() -> dict[str, Any]:
    import typer

    commands: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        if inner is None:
            commands[name] = command
        else:
            commands |= {f"{name} {sub}": one for sub, one in inner.items()}
    return commands


@pytest.mark.parametrize("name", _subcommands())
def test_every_command_has_json_and_an_example_that_parses(name: str) -> None:
    command = _subcommands()[name]
    text = command.epilog.removeprefix("Example: ")
    words = shlex.split(text)
    assert words[: 1 + len(name.split())] == ["farm", *name.split()]
    command.make_context(name, words[1 + len(name.split()) :])
    assert "--json" in {opt for param in command.params for opt in param.opts}


def test_helps_paragraphs_are_broken_by_the_terminal_alone() -> None:
    for name, command in _subcommands().items():
        for paragraph in command.help.split("\n\n"):
            assert "\n" not in paragraph, name


def test_help_tells_the_exit_codes(run: Run) -> None:
    text = " ".join(run("--help").stdout.split())
    assert "0 ok · 1 the build failed" in text
    assert "130 Ctrl+C" in text


def test_worker_becomes_the_workers_process(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("sqlalchemy", reason="pip install 'engine-farm[worker]'")
    from farm.database.migrate import upgrade

    called: list[list[str]] = []
    paths: list[str] = []

    def become(path: str, words: list[str], environment: dict[str, str]) -> None:
        called.append([path, *words])
        paths.append(environment["PYTHONPATH"].split(os.pathsep)[0])

    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FARM_DATABASE_URL", f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade()
    monkeypatch.setattr(os, "execve", become)
    run("worker", "--cpu-only", "--name", "bench")
    python = sys.executable
    assert called == [[python, python, "-P", "-m", "workers", "--cpu-only", "--name", "bench"]]
    assert paths == [str(parts())]


def test_python_m_farm_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "farm", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("engine-farm ")


def test_completion_offers_builds_and_tags_and_never_fails(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(words: str) -> dict[str, str]:
        shell = {"_FARM_COMPLETE": "complete_bash", "COMP_WORDS": words}
        return shell | {"COMP_CWORD": str(len(words.split(" ")) - 1)}

    def offered(words: str) -> str:
        return CliRunner().invoke(app, [], env=asked(words), prog_name="farm").stdout

    monkeypatch.setenv("FARM_URL", stub.url)
    command, status = [sys.executable, "-m", "farm"], asked("farm status 01")
    ran = subprocess.run(command, env=os.environ | status, capture_output=True, text=True)
    assert BUILD in ran.stdout
    assert BUILD in offered("farm status 01")
    assert "digits" in offered("farm pull d")
    assert "DIGits" in offered("farm pull DIG")
    assert "sm_80,rtx-4090" in offered("farm submit m.pt2 --gpu sm_80,rtx-40")
    assert "bf16" in offered("farm submit m.pt2 --precision b")
    assert "h100:fp8,int8" in offered("farm submit m.pt2 --target h100:fp8,in")
    assert "digits" in offered("farm bench d")
    assert "throughput" in offered("farm bench digits --goal t")
    for command in ("yank", "delete", "compare", "infer", "pull", "show"):
        assert "digits@1" in offered(f"farm {command} digits@"), command
    assert "rtx-4090" in offered("farm bench digits --gpu rtx-40")
    monkeypatch.setenv("FARM_URL", "http://127.0.0.1:9")
    assert offered("farm status 01").strip() == ""


@pytest.mark.parametrize(
    ("words", "detail", "command"),
    [
        (["pull", "digits", "--bogus"], "No such option: --bogus", "farm pull"),
        (["pull", "digits", "--version", "x"], "Invalid value for '--version'", "farm pull"),
        (["status"], "Missing argument 'ID'", "farm status"),
        (["keys", "revoke"], "Missing argument", "farm keys revoke"),
        (["keys", "nothing"], "No such command 'nothing'", "farm keys"),
        (["statsu"], "No such command 'statsu'. Did you mean 'status'", "farm"),
        (["--bogus", "status"], "No such option: --bogus", "farm"),
        (["aliases", "digits", "--delete"], "name the alias to delete", "farm aliases"),
        (["yank", "digits@x y", "--reason", "a"], "", ""),
    ],
)
def test_a_usage_error_with_json_is_a_problem_too(
    run: Run, words: list[str], detail: str, command: str
) -> None:
    result = run(*words, "--json")
    assert (result.exit_code, result.stdout) == (exits.USAGE, "")
    told = json.loads(result.stderr)
    assert set(told) == {"type", "title", "status", "code", "detail", "hint"}
    assert (told["status"], told["code"]) == (422, "invalid-request")
    assert detail in told["detail"]
    assert not command or told["hint"] == f"see {command} --help"


def test_a_usage_error_without_json_is_shown_with_the_usage(run: Run) -> None:
    result = run("pull", "digits", "--bogus")
    assert result.exit_code == exits.USAGE
    assert "Usage: " in result.stderr
    assert "No such option" in result.stderr
