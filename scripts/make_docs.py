"""The reference pages, made from the code: ``python scripts/make_docs.py`` writes docs/reference/.

A test compares what lies there with what this makes; nothing of this machine enters the pages.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from farm.api.app import create_app
from farm.cli import app as cli
from farm.cli import exits
from farm.errors import FarmError, Rejected, StageFailed, Unavailable, code_of
from farm.settings import Settings
from farm.specs import monitoring, states
from farm.specs.monitoring import Metric, Source

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
NONE = "–"


def pages() -> dict[str, str]:
    """File name → text of every reference page."""
    return {
        "settings.md": settings_page(),
        "cli.md": cli_page(),
        "openapi.json": openapi_document(),
        "errors.md": errors_page(),
        "states.md": states_page(),
        "metrics.md": metrics_page(),
    }


def main() -> int:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)
        print(f"docs/reference/{name}")
    return 0


def _page(title: str, source: str, *parts: str) -> str:
    head = f"<!-- Made from {source} by `make docs`; a change here would be lost. -->"
    return "\n\n".join((head, f"# {title}", *(part.strip("\n") for part in parts))) + "\n"


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headers, ("---",) * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or NONE


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


# Metrics


def metrics_page() -> str:
    headers = ("metric", "type", "labels", "what it is")
    parts = {
        source: [_metric(m) for m in monitoring.METRICS if m.source is source] for source in Source
    }
    return _page(
        "Metrics",
        "`farm/specs/monitoring.py`",
        "What `/metrics` tells. Scraping, alerts and the dashboard: "
        "[how-to/monitoring.md](../how-to/monitoring.md).",
        "## Of the farm",
        "From the database: every API process tells the same, so queries count them once, "
        "`max without (instance) (…)`. Counters go on over restarts, and deletions take nothing from them.",
        _table(headers, parts[Source.FARM]),
        "## Of one API process",
        "They begin at zero when it starts. Prometheus's client adds `process_*`: memory, CPU, open files.",
        _table(headers, parts[Source.PROCESS]),
        "## Buckets",
        _table(
            ("histogram", "upper bounds in seconds"),
            [
                (_code(one.name), ", ".join(f"{bound:g}" for bound in one.buckets))
                for one in monitoring.METRICS
                if one.buckets
            ],
        ),
    )


def _metric(one: Metric) -> tuple[str, ...]:
    return _code(one.name), one.form, ", ".join(map(_code, one.labels)), one.text


# Settings


def settings_page() -> str:
    prefix = str(Settings.model_config["env_prefix"])
    rows = [
        (_code(prefix + name.upper()), _default(name, field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return _page(
        "Settings",
        "`farm/settings.py`",
        "The farm's processes read these environment variables once, when they start. None is needed "
        "for `farm up`. In a fleet `FARM_DATABASE_URL`, `FARM_BROKER_URL` and `FARM_STORE` name the same "
        "things on every machine: [how-to/fleet.md](../how-to/fleet.md).",
        _table(("variable", "default", "what it is"), rows),
        "The commands that talk to a farm, and `farm.client`, read two more:",
        _table(("variable", "default", "what it is"), list(_client_variables())),
    )


def _default(name: str, value: object) -> str:
    if value in ("", None):
        return ""
    if isinstance(value, bool):
        return _code(str(value).lower())
    if isinstance(value, tuple):
        return _code(",".join(map(str, value)))
    if isinstance(value, float):
        return _code(f"{value:g}")
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{_code(str(value))} ({value / 2**30:g} GiB)"
    return _code(str(value))


def _client_variables() -> Iterator[tuple[str, ...]]:
    from farm.client.farm import DEFAULT_URL

    found = {
        param.envvar: param.help
        for _, command in commands()
        for param in command.params
        if _env(param)
    }
    defaults = {"FARM_URL": _code(DEFAULT_URL)}
    for variable, text in found.items():
        told = str(text).partition(";")[0]
        yield _code(str(variable)), defaults.get(str(variable), ""), told
    # No options: what is on a command line, every user of the machine can see.
    yield (
        _code("FARM_FROM_KEY"),
        "",
        "The key of the farm that `farm mirror` copies from; it is sent no other",
    )
    yield (
        _code("FARM_KEY"),
        "",
        "A key to the farm; without it, for a farm on this machine, that of `FARM_HOME`",
    )
    yield (
        _code("FARM_TOKEN"),
        "",
        "A token of the farm's OpenID Connect issuer, instead of a key; not beside `FARM_KEY`",
    )


def _env(param: Any) -> bool:
    return bool(getattr(param, "envvar", None))


# The command line


def commands() -> Iterator[tuple[str, Any]]:
    """Every command's name, with its group's, and the command."""
    yield from _commands(typer.main.get_command(cli), "farm")


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                yield f"{prefix} {name}", command
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def cli_page() -> str:
    panels: dict[str, list[str]] = {}
    top = typer.main.get_command(cli).commands  # type: ignore[attr-defined]
    for name, command in commands():
        # A command of a group stands where its group does.
        panel = str(top[name.split()[1]].rich_help_panel)
        panels.setdefault(panel, []).append(_command(name, command))
    sections = [part for panel, parts in panels.items() for part in (f"## {panel}", *parts)]
    return _page(
        "Command line",
        "`farm/cli/`",
        "Every command takes `--help`, and `--json`: JSON on stdout, errors as problems on stderr.",
        exits.EPILOG,
        *sections,
    )


def _command(name: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join((name, *(param.metavar for param in arguments), "[OPTIONS]"))
    example = (command.epilog or "").removeprefix("Example: ")
    parts = [f"### {name}", f"`{usage}`", inspect.cleandoc(command.help or "")]
    rows = [(_code(param.metavar), "", param.help or "") for param in arguments]
    rows += [(_option(param), _option_default(param), param.help or "") for param in options]
    parts.append(_table(("argument or option", "default", "what it is"), rows))
    if example:
        parts.append(f"```sh\n{example}\n```")
    return "\n\n".join(parts)


def _option(param: Any) -> str:
    value = "" if param.is_flag else f" {param.metavar or 'N'}"  # only numbers go without a metavar
    return ", ".join(_code(f"{name}{value}") for name in param.opts)


def _option_default(param: Any) -> str:
    if param.is_flag or param.default in (None, ""):
        return _code("$" + str(param.envvar)) if _env(param) else ""
    return _code(str(param.default))


# REST


def openapi_document() -> str:
    with tempfile.TemporaryDirectory() as home:
        app = create_app(Settings(home=Path(home), database_url="sqlite://"))
        document = app.openapi()
        app.state.services.db.dispose()
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


# Errors

_KINDS = (
    (Rejected, "The request can't be taken as it is", "The API answers with these."),
    (
        StageFailed,
        "A job failed",
        "They stand in the `error` of a build's job, not in an HTTP answer.",
    ),
    (
        Unavailable,
        "Something the farm needs is out of reach",
        "Worth a repeat: the client and the workers repeat by themselves for a while.",
    ),
)


def errors_page() -> str:
    sections = [
        part
        for kind, title, text in _KINDS
        for part in (f"## {title}", text, _errors_table(list(_below(kind))))
    ]
    named = {error for kind, _, _ in _KINDS for error in _below(kind)}
    others = [error for error in _below(FarmError) if error not in named]
    return _page(
        "Errors",
        "`farm/errors.py`",
        "Errors of the API are RFC 9457 problems (`application/problem+json`): `code` names the fact "
        "and is stable for scripts, `detail` says what happened, and `hint` what to do. The command "
        "line prints the same. [how-to/troubleshoot.md](../how-to/troubleshoot.md) goes from a code "
        "to its remedy.",
        "```\n" + "\n".join(_tree(FarmError)) + "\n```",
        *sections,
        "## Others",
        "Of the client, and of the farm's inner workings.",
        _errors_table(others),
        "A client that meets the code of a newer farm raises `FarmError` with that code.",
    )


def _children(error: type[FarmError]) -> list[type[FarmError]]:
    """Its kinds, in their order in the tree."""
    return [kind for kind in error.__subclasses__() if kind.__module__ == FarmError.__module__]


def _below(error: type[FarmError]) -> Iterator[type[FarmError]]:
    yield error
    for kind in _children(error):
        yield from _below(kind)


def _tree(error: type[FarmError], indent: str = "") -> Iterator[str]:
    if not indent:
        yield error.__name__
    kinds = _children(error)
    for kind in kinds:
        last = kind is kinds[-1]
        yield f"{indent}{'└── ' if last else '├── '}{kind.__name__}"
        yield from _tree(kind, indent + ("    " if last else "│   "))


def _errors_table(errors: list[type[FarmError]]) -> str:
    rows = [
        (
            _code(code_of(error)),
            _status(error),
            "yes" if error.retryable else "no",
            inspect.cleandoc(error.__doc__ or "").splitlines()[0],
            error.default_hint or "",
        )
        for error in errors
    ]
    return _table(("code", "HTTP", "retryable", "meaning", "default hint"), rows)


def _status(error: type[FarmError]) -> str:
    spoken = issubclass(error, Rejected | Unavailable)
    return str(error.status) if spoken else ""


# States

_MEMBER = re.compile(r'^\s+[A-Z]+ = "(?P<value>[a-z]+)"(?:\s+#: (?P<text>.+))?$', re.MULTILINE)
_TRANSITION = re.compile(
    r"^\s+\(JobState\.(?P<old>\w+), JobState\.(?P<new>\w+)\),(?:\s+# (?P<text>.+))?$", re.MULTILINE
)


def states_page() -> str:
    moves = list(_moves())
    return _page(
        "States",
        "`farm/specs/states.py`",
        "Every change of a job's state is a compare-and-set along one of these arrows.",
        "## Jobs",
        f"```mermaid\n{_diagram(moves)}\n```",
        _table(("state", "what it means"), _members(states.JobState)),
        _table(("from", "to", "when"), [(_code(a), _code(b), text) for a, b, text in moves]),
        "## Builds",
        "A build's state follows from its jobs' states. While others still run, one that failed leaves "
        "the build `running`: the engines that can be built are built.",
        _table(("state", "what it means"), _members(states.BuildState)),
        "## Reuse",
        "How a build came by a job's result. `farm explain` says why.",
        _table(("reuse", "what it means"), _members(states.Reuse)),
    )


def _members(enum: type[StrEnum]) -> list[tuple[str, ...]]:
    found = {m["value"]: m["text"] or "" for m in _MEMBER.finditer(inspect.getsource(enum))}
    return [(_code(member.value), found[member.value]) for member in enum]


def _moves() -> Iterator[tuple[str, str, str]]:
    """From, to, when: in the order of the source."""
    found = list(_TRANSITION.finditer(inspect.getsource(states)))
    pairs = {(states.JobState[m["old"]], states.JobState[m["new"]]) for m in found}
    if pairs != states.JOB_TRANSITIONS:
        raise SystemExit(
            "farm/specs/states.py: write one transition a line: (JobState.A, JobState.B),  # why"
        )
    for m in found:
        yield states.JobState[m["old"]].value, states.JobState[m["new"]].value, m["text"] or ""


def _diagram(moves: list[tuple[str, str, str]]) -> str:
    lines = ["stateDiagram-v2", "    [*] --> waiting", "    [*] --> queued"]
    for old, new, text in moves:
        # A second colon would end the label.
        label = f": {text.replace(':', ',')}" if text else ""
        lines.append(f"    {old} --> {new}{label}")
    lines += [f"    {state} --> [*]" for state in states.JobState if state in states.ENDED]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
