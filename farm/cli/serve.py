"""Commands that run a farm or parts of one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from farm import installed
from farm.cli import exits, joining
from farm.cli.joining import Join, Token, TokenFile
from farm.cli.options import Json, example
from farm.errors import InvalidRequest

_PANEL = "Run a farm"
_db = typer.Typer(help="Manage the farm's database.", no_args_is_help=True)

Host = Annotated[str, typer.Option("--host", metavar="HOST", help="The address to listen on.")]


def register(app: typer.Typer) -> None:
    def add(command: object, name: str, text: str) -> None:
        app.command(name, rich_help_panel=_PANEL, epilog=example(text))(command)  # type: ignore[type-var]

    add(up, "up", "farm up --port 8000")
    add(demo, "demo", "farm demo --keep demo-engines")
    add(worker, "worker", "farm worker --cpu-only")
    add(api, "api", "farm api --host 0.0.0.0 --port 8000")
    add(flower, "flower", "farm flower --port 5555")
    _db.command("upgrade", epilog=example("farm db upgrade"))(upgrade)
    app.add_typer(_db, name="db", rich_help_panel=_PANEL)


def up(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The API's port; 0 picks a free one.")
    ] = 8000,
    flower_port: Annotated[
        int,
        typer.Option("--flower-port", min=0, max=65535, help="Flower's port; 0 picks a free one."),
    ] = 5555,
    as_json: Json = False,
) -> None:
    """Run a whole farm on this machine: API, broker, workers and Flower. Ctrl+C stops it.

    State is kept in FARM_HOME, by default ~/.engine-farm. With --json, print the addresses on one
    line once the farm is ready to take work.
    """
    with installed.needs("local"):
        from farm.local.up import run

        installed.require("torch", "all")
        run(port, flower_port, as_json)


def demo(
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Folder for the pulled engines."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Demonstrate the farm: calibrate, build and pull engines for two models from scratch."""
    with installed.needs("all"):
        from farm.cli.demo import run

        installed.require("torch", "all")
        code = run(as_json, keep)
    raise typer.Exit(code)


def worker(
    cpu_only: Annotated[bool, typer.Option("--cpu-only", help="Don't start GPU workers.")] = False,
    no_cpu: Annotated[bool, typer.Option("--no-cpu", help="Don't start a CPU worker.")] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name prefix of this machine's workers."),
    ] = None,
    check_sandbox: Annotated[
        bool,
        typer.Option(
            "--check-sandbox",
            help="Test job isolation on this machine and exit.",
        ),
    ] = False,
    check_store: Annotated[
        bool,
        typer.Option(
            "--check-store",
            help="Test this machine's way to the artifact store and exit.",
        ),
    ] = False,
    join: Join = None,
    token: Token = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Join this machine to a farm: one worker pinned to each GPU, and one for CPU work.

    Limit the GPUs with CUDA_VISIBLE_DEVICES.

    With --join and a token, the settings come from the farm: each is tried, and kept in FARM_HOME, so that
    the next start needs neither. Otherwise FARM_DATABASE_URL, FARM_BROKER_URL and FARM_STORE select the farm;
    FARM_STORE may be the address of its API, with FARM_KEY. With --json, print the process on one line before
    it starts.
    """
    with installed.needs("worker"):
        from farm.local import preflight
        from farm.settings import Settings

    given = joining.token_of(token, token_file)
    _close_home()
    name = _take_settings(join, given, name)
    environment = installed.environment()
    options = ["--json"] * as_json
    if join is None and not check_sandbox:  # joining proves it; the sandbox is the machine's
        preflight.require_database(Settings())
    if check_sandbox or check_store:
        options += ["--check-sandbox" if check_sandbox else "--check-store"]
    else:
        installed.require("torch", "worker")
        options = ["--cpu-only"] * cpu_only + ["--no-cpu"] * no_cpu
        options += ["--name", name] if name else []
        if join is not None:
            options += ["--prove"] + ["--json"] * as_json
        elif as_json:
            _announce(pid=os.getpid(), options=options)
    sys.stdout.flush()
    os.execve(sys.executable, installed.command("workers", *options), environment)  # noqa: S606 - no shell


def _take_settings(join: str | None, token: str | None, name: str | None) -> str | None:
    """Add what this home has joined, maybe now, to the environment; return this machine's name, if any.

    Raises:
        InvalidRequest, JoinRefused, WorkerNameTaken, Conflict, Unavailable
    """
    from farm.local import home as homes
    from farm.local import joined
    from farm.settings import Settings

    home = Settings().home
    if join is not None:
        found: joined.Joined | None = joining.joined_by(join, token, name, home)
    elif token is not None:
        raise InvalidRequest(
            "a join token needs the farm's address", hint="farm worker --join https://…"
        )
    else:
        found = None if homes.has_farm(home) else joined.read(home)
    if found is None:
        return name
    found.apply(os.environ)
    return name or found.name


def api(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port.")] = 8000,
    as_json: Json = False,
) -> None:
    """Run only the API, until SIGTERM or Ctrl+C."""
    with installed.needs("server"):
        from farm.api.server import serve
        from farm.local import preflight
        from farm.settings import Settings

    _close_home()
    preflight.require_database(Settings())
    preflight.require_port(host, port)
    if as_json:
        _announce(api=f"http://{host}:{port}")
    serve(host, port)


def flower(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port.")] = 5555,
    as_json: Json = False,
) -> None:
    """Run only Flower, to watch the workers in a browser."""
    with installed.needs("server"):
        from farm.local import preflight
        from farm.local.flower.server import run

    _close_home()
    preflight.require_port(host, port)
    if as_json:
        _announce(flower=f"http://{host}:{port}")
    run(host, port)


def upgrade(as_json: Json = False) -> None:
    """Upgrade the database schema. Idempotent, and safe to run concurrently."""
    with installed.needs("server"):
        from farm.database.migrate import upgrade as upgrade_schema

        _close_home()
        revision = upgrade_schema()
    if as_json:
        _announce(revision=revision)
    else:
        print(f"The schema is at {revision}.")
    raise typer.Exit(exits.OK)


def _close_home() -> None:
    from contextlib import suppress

    from farm.local.home import make_private
    from farm.settings import Settings

    with suppress(OSError):  # whatever needs the home reports the error
        make_private(Settings().home)


def _announce(**facts: object) -> None:
    print(json.dumps(facts), flush=True)
