"""``farm show``: a model at a glance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.padding import Padding
from rich.text import Text

from farm.cli import builds, complete, quantised, registry, show
from farm.cli.compare import latency, metric
from farm.cli.options import Json, Url, connect, example
from farm.cli.pull_by_id import may_begin_id
from farm.errors import IdAmbiguous, NotFound
from farm.specs.counted import counted

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.reports.interfaces import Port
    from farm.schemas.engines import EngineView
    from farm.schemas.models import Behind, MatrixRow, ModelDetail, VersionView

T = TypeVar("T")
WIDTH = 80
_GAP = 2
_MOST_QUANTISED = 12


def register(app: typer.Typer) -> None:
    text = "farm show digits@prod"
    app.command("show", rich_help_panel="Engines", epilog=example(text))(overview)


def overview(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL[@VERSION]|ID",
            help="A model, one version of it, or a build's or an engine's id or its first characters.",
            autocompletion=complete.references,
        ),
    ],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show a model: versions, aliases, what they have for which GPU, what prod lacks, what is being built.

    A model's name comes before an id. All of it, and the versions before the newest, is in --json.
    """
    farm = connect(url)
    name, at, _ = what.partition("@")
    try:
        found = farm.model(name)
    except NotFound as err:
        if at or not _by_id(farm, what, err, url, as_json=as_json):
            raise
        return
    number = farm.version_of(what)[1] if at else None
    if number is not None:
        found = _only(found, number)
    if as_json:
        show.document(found)
        return
    _print(found, whole=number is None)


def _by_id(farm: Farm, what: str, err: NotFound, url: str | None, *, as_json: bool) -> bool:
    """Show the build or the engine with this id, if there is one."""
    if not may_begin_id(what) and what != "last":
        return False
    build, engine = _found(farm.build, what), _found(farm.engine, what)
    if build is not None and engine is not None:
        raise IdAmbiguous(f"{what!r} begins the ids of build {build.id} and engine {engine.id}")
    if build is None and engine is None:
        raise err from None
    if as_json:
        show.document(engine or (build and build.view))
    elif engine is not None:
        registry.engines_table([engine])
    elif build is not None:
        builds.show_build(build.view, url)
    return True


def _found(look: Callable[[str], T], what: str) -> T | None:
    try:
        return look(what)
    except NotFound:
        return None


def _only(found: ModelDetail, number: int) -> ModelDetail:
    """What of a model is one version's.

    Raises:
        NotFound
    """
    versions = [one for one in found.versions if one.version == number]
    if not versions:
        raise NotFound(
            f"{found.name} has no version {number}",
            hint=f"`farm models {found.name}` lists its versions",
        )
    rows = [
        row.model_copy(update={"cells": [one for one in row.cells if one.version == number]})
        for row in found.matrix
    ]
    newest = max(one.version for one in found.versions)
    return found.model_copy(
        update={
            "versions": versions,
            "aliases": [one for one in found.aliases if one.version == number],
            "engines": found.engines if number == newest else [],
            "detailed": [one for one in found.detailed if one == number],
            "matrix": [row for row in rows if row.cells],
            "prod_lacks": None,
            "running": [one for one in found.running if one.version == number],
        }
    )


def _print(found: ModelDetail, *, whole: bool) -> None:
    detailed = [one for one in found.versions if one.version in found.detailed]
    head = f"{found.name}, {counted(len(found.versions), 'version')}, created {show.ago(found.created_at)}"
    if whole:
        _say(f"{head}; {show.labels(found.labels)}" if found.labels else head)
        if found.note:
            _say(f"  {found.note}")
    for alias in found.aliases:
        note = f": {alias.note}" if alias.note else ""
        by = f"{show.ago(alias.changed_at)} by {alias.changed_by}"
        _say(f"{alias.alias} → v{alias.version}, {by}{note}")
    _table(_HEADERS, [_version(one) for one in reversed(detailed)])
    for one in reversed(detailed):
        for line in _more(one, with_inputs=not whole):
            _say(f"v{one.version}: {line}")
    if len(detailed) < len(found.versions) and whole:
        _say(f"… {len(found.versions) - len(detailed)} older: farm models {found.name}")
    _matrix(found.matrix)
    _quantised(found.engines)
    if found.prod_lacks:
        _behind(found.prod_lacks)
    for build in found.running:
        done = f"{build.engines_done} of {counted(build.engines_total, 'engine')}"
        _say(f"build {build.id} of v{build.version} is {build.state}: {done}")


_HEADERS = ("version", "submitted", "source", "format", "engines", "complete")


def _version(one: VersionView) -> tuple[str, ...]:
    return (
        f"v{one.version}",
        show.ago(one.created_at),
        show.short(one.source_digest),
        str(one.source_format),
        str(one.engines),
        _completeness(one),
    )


def _completeness(one: VersionView) -> str:
    if one.complete is None:
        return show.NONE
    if not one.complete:
        return "no"
    return "yes, and building" if one.missing else "yes"


def _more(one: VersionView, *, with_inputs: bool) -> Iterator[str]:
    """What is to be said of a version below the table."""
    if one.labels:
        yield show.labels(one.labels)
    if one.note:
        yield one.note
    if one.fixed_inputs:
        yield f"fixed: {show.fixed(one.fixed_inputs)}"
    if one.yanked:
        yield f"yanked: {one.yanked}"
    for change in one.changes:
        yield f"{'held back: ' if one.held_back else ''}{change}"
    for missing in one.missing:
        yield f"{'building' if one.complete else 'missing'}: {missing}"
    if with_inputs and one.interface:
        yield f"takes {_ports(one.interface.inputs)}"
        yield f"gives {_ports(one.interface.outputs)}"


def _ports(ports: Sequence[Port]) -> str:
    return ", ".join(f"{port.name} {port}" for port in ports) or "nothing"


def _matrix(rows: Sequence[MatrixRow]) -> None:
    """What the newest versions have, as many as fit beside each other."""
    if not rows:
        return
    numbers = sorted({one.version for row in rows for one in row.cells}, reverse=True)
    first = max(len(f"{row.gpu} {row.precision}") for row in rows)
    fit = max(1, (WIDTH - first) // (len("doubtful") + _GAP))
    shown = numbers[:fit]
    table = []
    for row in rows:
        verdicts = {one.version: str(one.verdict) for one in row.cells}
        cells = [verdicts.get(number, show.NONE) for number in shown]
        table.append((f"{row.gpu} {row.precision}", *cells))
    _table(("engines", *(f"v{number}" for number in shown)), table)
    if len(shown) < len(numbers):
        older = ", ".join(f"v{number}" for number in numbers[fit:])
        _say(f"… and of {older}: --json")


def _quantised(engines: Sequence[EngineView]) -> None:
    """The figures of the newest version's quantised engines."""
    shown = [one for one in engines if one.quantization is not None]
    for one in shown[:_MOST_QUANTISED]:
        verdict = "passed" if one.state == "ready" else str(one.state)
        name = show.precision(one.precision, one.prune)
        _say(f"v{one.version} {name} for {one.runtime}:{one.gpu}: {verdict}, {one.id}")
        for line in quantised.lines(one):
            show.console(WIDTH).print(Padding(Text(line), (0, 0, 0, _GAP)))
    if len(shown) > _MOST_QUANTISED:
        _say(f"… and {len(shown) - _MOST_QUANTISED} more quantised engines: --json")


def _behind(lacks: Behind) -> None:
    if not (lacks.targets or lacks.better):
        return
    _say(f"prod (v{lacks.version}) lacks what v{lacks.newest} has:")
    if lacks.targets:
        _say(f"  engines for {', '.join(lacks.targets)}")
    for one in lacks.better:
        _say(f"  a better one for {one.gpu}: latency {latency(one)}, metric {metric(one)}")


def _say(text: str) -> None:
    show.console(WIDTH).print(text)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    show.console(WIDTH).print(show.grid(headers, rows, keep=headers[:1]))
