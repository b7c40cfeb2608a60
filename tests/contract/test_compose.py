"""docker-compose.yml and the Dockerfiles hold what they promise, as far as that shows without Docker."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from farm.settings import Settings
from tests import farm_lines, s3

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ONE_SHOT = {"migrate"}
SETTINGS = COMPOSE["x-farm"]
#: For those who keep their artifacts in a folder.
FOLDER = "/var/lib/farm/store"
#: Who reads and writes artifacts.
OF_THE_STORE = ["api", "cpu-worker", "gpu-worker"]
RUNNING = sorted(set(SERVICES) - ONE_SHOT)
#: Whose image `farm` comes from: built by one service, used by others.
FARM = sorted(name for name, service in SERVICES.items() if service["image"].startswith("engine-"))
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: What a health check may call, by image: it exists there. python:slim has no curl, wget, ps or pgrep.
PROGRAMS = {
    "postgres": {"pg_isready"},
    "redis": {"redis-cli", "grep"},
    "chrislusf": {"wget"},  # busybox's
    "engine": {"python", "celery", "farm"},
    "prom": {"wget"},  # busybox's
    "grafana": {"wget"},
}
#: Ports on which others' programs listen by themselves, as their documentation says.
THEIR_PORTS = {"prometheus": "9090", "grafana": "3000"}

services = pytest.mark.parametrize("name", sorted(SERVICES))
running = pytest.mark.parametrize("name", RUNNING)
dockerfiles = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def environment(name: str) -> dict[str, str]:
    return SERVICES[name].get("environment", {})


def command(name: str) -> list[str]:
    given = SERVICES[name].get("command", [])
    return shlex.split(given) if isinstance(given, str) else given


def steps(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_services_are_those_of_a_fleet():
    parts = {"postgres", "redis", "s3", "migrate", "api", "cpu-worker", "gpu-worker", "flower"}
    assert set(SERVICES) == parts | {"prometheus", "grafana"}


def test_gpu_workers_and_monitoring_wait_for_their_profiles():
    profiles = {n: s["profiles"] for n, s in SERVICES.items() if "profiles" in s}
    monitoring = {name: ["monitoring"] for name in ("prometheus", "grafana")}
    assert profiles == {"gpu-worker": ["gpu"]} | monitoring


def test_prometheus_scrapes_the_api_by_a_name_that_it_answers_to():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    [farm] = config["scrape_configs"]
    [[target]] = [one["targets"] for one in farm["static_configs"]]
    name, port = target.split(":")
    assert port == command(name)[command(name).index("--port") + 1]
    assert name in SETTINGS["FARM_HOSTS"].split(",")


def test_grafana_finds_prometheus_and_the_dashboard():
    folder = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == f"http://prometheus:{THEIR_PORTS['prometheus']}"
    [provider] = yaml.safe_load((folder / "dashboards/engine-farm.yml").read_text())["providers"]
    mounted = dict(one.split(":")[:2] for one in SERVICES["grafana"]["volumes"])
    [source] = [
        ROOT / here for here, there in mounted.items() if there == provider["options"]["path"]
    ]
    home = Path(environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (source / home.name).is_file()


def test_grafana_has_no_account_and_shows_only():
    given = environment("grafana")
    assert given["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert given["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_the_gpu_worker_gets_every_gpu_with_its_compute_libraries():
    [device] = SERVICES["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["count"] == "all"
    # Docker hands in the libraries of the capabilities named, and those alone: without `compute` no CUDA.
    assert {"gpu", "compute", "utility"} <= set(device["capabilities"])


def test_no_other_service_asks_for_a_gpu():
    assert [name for name, s in SERVICES.items() if "deploy" in s] == ["gpu-worker"]


@running
def test_a_service_is_restarted_and_tells_its_health(name):
    assert SERVICES[name]["restart"] == "unless-stopped"
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= set(check)
    assert seconds(check["timeout"]) <= seconds(check["interval"])


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@running
def test_a_health_check_calls_what_its_image_has(name):
    kind, *words = SERVICES[name]["healthcheck"]["test"]
    called = farm_lines.simple_commands(words[0]) if kind == "CMD-SHELL" else [words]
    programs = PROGRAMS[re.match(r"[a-z]+", SERVICES[name]["image"])[0]]
    for word in [command_words[0] for command_words in called]:
        assert word in programs, f"{name}'s image has no {word}"


@running
def test_a_health_check_in_python_is_python(name):
    words = SERVICES[name]["healthcheck"]["test"]
    if words[1:3] == ["python", "-c"]:
        compile(words[3], name, "exec")
    elif words[1] == "python":
        copied = {Path(d) / Path(s).name for s, d in copies(dockerfile(name))}
        assert Path(words[2]) in copied


def test_a_health_check_asks_for_its_own_service(subtests):
    for name, path in (("api", "/readyz'"), ("flower", "/healthcheck'"), ("s3", "/healthz")):
        with subtests.test(name):
            text = " ".join(SERVICES[name]["healthcheck"]["test"])
            port = re.search(r"[-.]port[ =](\d+)", " ".join(command(name)))[1]
            assert f"http://127.0.0.1:{port}{path}" in text


def test_postgres_is_asked_by_tcp():
    # While it sets a new database up it answers on its socket only; `migrate` would come too early.
    assert "-h" in SERVICES["postgres"]["healthcheck"]["test"]


@services
def test_dependencies_wait_for_a_condition_that_can_come_true(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        once = other in ONE_SHOT
        wanted = "service_completed_successfully" if once else "service_healthy"
        assert how["condition"] == wanted


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("migrate", "postgres"),
        ("api", "migrate"),
        ("api", "s3"),
        ("cpu-worker", "s3"),
        ("gpu-worker", "s3"),
        ("cpu-worker", "migrate"),
        ("cpu-worker", "redis"),
        ("gpu-worker", "migrate"),
        ("gpu-worker", "redis"),
        ("flower", "redis"),
    ],
)
def test_a_service_starts_after_what_it_needs(name, needs):
    assert needs in SERVICES[name]["depends_on"]


def test_migrations_run_once():
    assert SERVICES["migrate"]["restart"] == "no"
    assert command("migrate") == ["farm", "db", "upgrade"]


def test_no_password_has_a_default():
    for variable, rest in re.findall(r"\$\{(\w+)([^}]*)\}", TEXT):
        if variable.endswith("_PASSWORD"):
            assert rest.startswith(":?"), f"{variable} must be refused when it is empty"
            assert len(rest) > 2, f"{variable}: say where to set it"
    assert not re.search(r"\$\w", re.sub(r"\$\$|\$\{[^}]*\}", "", TEXT))


def test_the_api_and_flower_are_reached_by_their_services_names_and_by_those_of_the_setting():
    for given, hosts in (("", {"api", "flower"}), ("a.lan,*.b", {"api", "flower", "a.lan", "*.b"})):
        text = TEXT.replace("${FARM_HOSTS:-}", given)
        for service in ("api", "flower"):
            environment = yaml.safe_load(text)["services"][service]["environment"]
            assert set(Settings(hosts=environment["FARM_HOSTS"]).hosts) == hosts


def test_flower_and_the_pages_link_to_each_other_where_they_are_published():
    for variable, service, of in (
        ("FARM_PUBLIC_URL", "flower", "api"),
        ("FARM_FLOWER_URL", "api", "flower"),
    ):
        (published,) = SERVICES[of]["ports"]
        address = f"http://{published.rpartition(':')[0]}"
        assert environment(service)[variable] == f"${{{variable}:-{address}}}"


def test_every_variable_stands_empty_in_the_example():
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert set(example) == set(re.findall(r"\$\{(\w+)", TEXT))
    assert set(example.values()) == {""}


def test_the_real_env_file_is_ignored_by_git():
    assert ".env" in (ROOT / ".gitignore").read_text().split()


@services
def test_a_secret_is_never_written_out(name):
    for key, value in environment(name).items():
        if re.search(r"PASSWORD|AUTH$|SECRET|_URL$", key):
            password = re.search(r"://[^:/]*:([^@]*)@", value)
            assert (password[1] if password else value).startswith("${")


@services
def test_ports_are_published_on_loopback_alone(name):
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
    assert "network_mode" not in SERVICES[name]


@services
def test_a_published_port_is_the_one_listened_on(name):
    for port in SERVICES[name].get("ports", []):
        words = command(name)
        if name in THEIR_PORTS:
            assert port.rpartition(":")[2] == THEIR_PORTS[name]
            continue
        assert words[words.index("--port") + 1] == port.rpartition(":")[2]
        assert words[words.index("--host") + 1] == "0.0.0.0"


@services
def test_every_farm_variable_is_a_setting(name):
    fields = {f"FARM_{field.upper()}" for field in Settings.model_fields}
    assert {key for key in environment(name) if key.startswith("FARM_")} <= fields


@pytest.mark.parametrize("name", FARM)
def test_a_part_of_the_farm_knows_database_broker_and_store(name, monkeypatch):
    for key, value in environment(name).items():
        value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
        monkeypatch.setenv(key, re.sub(r"\$\{[^}]*\}", "secret", value))
    settings = Settings()
    assert settings.database == "postgresql://farm:secret@postgres:5432/farm"
    assert settings.broker == "redis://:secret@redis:6379/0"
    assert settings.store == "s3://farm/store"


def test_the_bucket_is_made_where_the_farm_looks_for_it():
    [store] = re.findall(r"\$\{FARM_STORE:-s3://([^/}]+)", TEXT)
    assert f"-bucket={store}" in command("s3")
    for name in OF_THE_STORE:
        port = re.search(r":-http://s3:(\d+)\}", environment(name)["AWS_ENDPOINT_URL"])[1]
        assert f"-s3.port={port}" in command("s3")


def test_only_the_api_and_workers_reach_the_bucket_and_have_its_key():
    with_key = [n for n in SERVICES if "AWS_SECRET_ACCESS_KEY" in environment(n)]
    there = [n for n, one in SERVICES.items() if "store" in one.get("networks", [])]
    assert sorted(with_key) == sorted(there) == sorted([*OF_THE_STORE, "s3"])
    for name in OF_THE_STORE:
        assert {k: environment(name)[k] for k in environment("s3")} == environment("s3")
        assert "default" in SERVICES[name]["networks"]


@pytest.mark.parametrize("name", OF_THE_STORE)
def test_a_folder_serves_as_the_store_too(name):
    assert f"store:{FOLDER}" in SERVICES[name]["volumes"]


def test_the_bucket_is_of_the_version_that_the_tests_run():
    _, _, version = s3.WHEEL.partition("==")
    assert re.fullmatch(
        rf"chrislusf/seaweedfs:{re.escape(version)}@sha256:[0-9a-f]{{64}}", SERVICES["s3"]["image"]
    )


@services
def test_nothing_changes_an_images_programs_or_gains_rights(name):
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
    assert any(one.startswith("/tmp") for one in SERVICES[name]["tmpfs"])


@services
def test_named_volumes_are_declared(name):
    for volume in SERVICES[name].get("volumes", []):
        source = volume.partition(":")[0]
        if source == SETTINGS["FARM_HOME"]:
            continue  # its own, without a name
        if source.startswith("./"):
            assert (ROOT / source).is_dir()
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", FARM)
def test_a_part_of_the_farm_writes_to_its_home_and_tmp_alone(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # Docker's tmpfs is noexec unless told otherwise; compilers load what they made there.
    assert service["tmpfs"] == ["/tmp:exec,mode=1777"]
    assert SETTINGS["FARM_HOME"] in service["volumes"]


@pytest.mark.parametrize("name", FARM)
def test_a_command_is_one_of_farms_with_options_that_exist(name):
    program, *words = command(name)
    assert program == "farm"
    farm_lines.parse(words)


@pytest.mark.parametrize("name", FARM)
def test_an_image_is_built_here(name):
    assert SERVICES[name]["image"] in {service["image"] for service in OURS.values()}


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_build_names_a_dockerfile_and_its_arguments(name):
    build = SERVICES[name]["build"]
    path = ROOT / build["context"] / build["dockerfile"]
    assert path in DOCKERFILES
    declared = {text.partition("=")[0] for step, text in steps(path) if step == "ARG"}
    assert set(build.get("args", {})) <= declared


def test_a_worker_has_the_time_to_give_its_jobs_back():
    from workers.__main__ import _GRACE_S

    for name in ("cpu-worker", "gpu-worker"):
        assert seconds(SERVICES[name]["stop_grace_period"]) > _GRACE_S


# Dockerfiles


def dockerfile(name: str) -> Path:
    [build] = [s["build"] for s in OURS.values() if s["image"] == SERVICES[name]["image"]]
    return ROOT / build["dockerfile"]


def copies(path: Path) -> list[tuple[str, str]]:
    """Each copied source, with the folder or the file that it becomes."""
    found = []
    for step, text in steps(path):
        if step in ("COPY", "ADD"):
            *sources, target = (word for word in text.split() if not word.startswith("--"))
            found += [(source, str(Path("/opt/farm") / target)) for source in sources]
    return found


@dockerfiles
def test_hadolint_finds_nothing(path):
    found = subprocess.run(
        ["hadolint", "--no-color", str(path)],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")


@dockerfiles
def test_it_copies_only_what_is_there_and_not_ignored(path):
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source, _ in copies(path):
        assert (ROOT / source).exists(), f"{path.name} copies {source}"
        assert source.split("/")[0] not in ignored


@dockerfiles
def test_it_copies_what_the_wheel_is_made_of(path):
    copied = {source for source, _ in copies(path)}
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    packages = set(hatch["build"]["targets"]["wheel"]["packages"])
    assert {*packages, "pyproject.toml", PROJECT["readme"]} <= copied
    # And of engine-farm-server's.
    assert {"workers", "migrations", "distributions"} <= copied
    assert "./distributions/server" in path.read_text()


@dockerfiles
def test_it_runs_as_a_user_without_rights(path):
    *_, last = [text for step, text in steps(path) if step == "USER"]
    created = [text for step, text in steps(path) if step == "RUN" and "useradd" in text]
    # A number: Kubernetes can't tell by a name that it isn't root.
    assert last == "1000"
    assert any(re.search(rf"useradd .*--uid {last}\b", text) for text in created)
    kinds = [step for step, _ in steps(path)]
    assert "RUN" not in kinds[len(kinds) - 1 - kinds[::-1].index("USER") :]


@dockerfiles
def test_its_user_owns_home_and_store(path):
    # `install -d -o` gives the owner to the folders that it names, not to those on the way.
    [text] = [text for step, text in steps(path) if "install -d" in text]
    owned = text.partition("install -d -o farm ")[2].split()
    assert {SETTINGS["FARM_HOME"], FOLDER} <= set(owned)


def test_the_images_share_the_user_that_owns_the_store():
    users = [re.search(r"useradd .*--uid (\d+)", path.read_text())[1] for path in DOCKERFILES]
    assert len(set(users)) == 1


@dockerfiles
def test_it_installs_the_pinned_versions(path):
    installs = [text for step, text in steps(path) if step == "RUN" and "pip install" in text]
    assert installs
    for text in installs:
        for one in text.split("pip install")[1:]:
            assert "-c constraints.txt" in one
    assert "constraints.txt" in {source for source, _ in copies(path)}


@dockerfiles
def test_its_python_is_one_that_the_project_takes(path):
    version = re.search(r"^FROM python:(\d+)\.(\d+)-slim$", path.read_text(), re.MULTILINE)
    least = re.search(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    assert tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))


@dockerfiles
def test_its_own_command_exists(path):
    [text] = [text for step, text in steps(path) if step == "CMD"]
    program, *words = yaml.safe_load(text)
    assert program == "farm"
    farm_lines.parse(words)


def extras() -> list[str]:
    given = [re.findall(r"(?:ARG EXTRAS=|EXTRAS: ?|EXTRAS=)([\w,]+)", t) for t in texts()]
    return [one for group in given for one in group]


def texts() -> list[str]:
    return [TEXT, *(path.read_text() for path in DOCKERFILES)]


def test_the_extras_named_are_the_projects():
    assert extras()
    for group in extras():
        assert set(group.split(",")) <= set(PROJECT["optional-dependencies"])
        # Both install the same folder.
        assert not {"cpu", "gpu"} <= set(group.split(","))


# The workers' health check


@pytest.fixture(scope="module")
def health():
    spec = importlib.util.spec_from_file_location(
        "worker_health", ROOT / "deploy" / "worker_health.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def proc(tmp_path):
    """A /proc with a supervisor, two workers, and strangers."""

    def add(pid: int, *arguments: str) -> None:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes("\0".join((*arguments, "")).encode())

    worker = ("python", "-m", "workers", "--one")
    add(1, "/sbin/docker-init", "--", "farm", "worker")
    add(7, "python", "-m", "workers", "--no-cpu")
    add(8, *worker, "GPU-1", "--name", "gpu0@here")
    add(10, *worker, "GPU-2", "--name", "gpu1@here")
    add(11)
    (tmp_path / "self").mkdir()
    (tmp_path / "12").mkdir()  # ended between the listing and the reading
    return tmp_path


def test_the_workers_of_a_container_are_found_by_their_command_lines(health, proc):
    assert health.started(proc) == {"gpu0@here", "gpu1@here"}


def test_the_supervisor_starts_workers_by_the_command_line_that_is_looked_for(health, tmp_path):
    from workers.__main__ import _parse

    arguments = ["--one", "cpu", "--name", "cpu@here"]
    assert _parse(arguments).one == "cpu"
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "cmdline").write_text("\0".join(["python", "-m", "workers", *arguments, ""]))
    assert health.started(tmp_path) == {"cpu@here"}


@pytest.mark.parametrize(
    ("started", "answering", "code"),
    [
        ({"cpu@here"}, {"cpu@here"}, 0),
        ({"gpu0@here", "gpu1@here"}, {"gpu0@here"}, 1),
        ({"cpu@here"}, set(), 1),
        (set(), set(), 1),
    ],
)
def test_a_container_is_well_when_each_of_its_workers_answers(
    health, monkeypatch, started, answering, code
):
    monkeypatch.setattr(health, "started", lambda: started)
    monkeypatch.setattr(health, "answering", lambda _names: answering)
    assert health.main() == code


def test_a_lost_broker_is_told(health, monkeypatch, capsys):
    def lost(_names):
        raise ConnectionError("refused")

    monkeypatch.setattr(health, "started", lambda: {"cpu@here"})
    monkeypatch.setattr(health, "answering", lost)
    assert health.main() == 1
    assert "broker can't be asked" in capsys.readouterr().err


def test_the_health_check_ends_within_its_time_when_nobody_answers(health):
    for name in ("cpu-worker", "gpu-worker"):
        assert seconds(SERVICES[name]["healthcheck"]["timeout"]) >= 2 * health.PATIENCE_S
