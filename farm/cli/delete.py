"""``farm delete``: engines, versions, models, what was made in between, and uploads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, again, connect, example
from farm.cli.pull_by_id import engine_meant
from farm.errors import InvalidRequest
from farm.specs import digests
from farm.specs.counted import counted

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.schemas.deletion import Deletion

_SHOWN = 20  #: of each list


def register(app: typer.Typer) -> None:
    text = "farm delete digits@7 --dry-run"
    app.command(rich_help_panel="Engines", epilog=example(text))(delete)


def delete(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|MODEL@VERSION|ENGINE|DIGEST",
            help="digits, digits@7, an engine's id, or an upload's sha256:…",
            autocompletion=complete.references,
        ),
    ],
    intermediates: Annotated[
        bool,
        typer.Option(
            "--intermediates",
            help="Only what was made between sources and engines, such as typed ONNX.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would go, and what stays for whom.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Delete an engine, a version, or a model, with the files that nothing else refers to.

    What an alias names is refused until the alias is moved. Builds and the audit stay, a version's number
    is never given again, and what is submitted again is built again.
    """
    farm = connect(url)
    if digests.means(what):
        _upload(
            farm, digests.parse(what), refused=intermediates or dry_run, yes=yes, as_json=as_json
        )
        return
    call = _call(farm, what, intermediates=intermediates)
    if not dry_run and not yes:
        told = call(True)
        if not as_json:
            _tell(told)
        _ask(told.what)
    done = call(dry_run)
    if as_json:
        show.document(done)
    elif dry_run:
        _tell(done)
        if not done.refused:
            more = " --intermediates" if intermediates else ""
            show.line(f"to delete it: {again(f'farm delete {what}{more}', url)}")
    else:
        show.line(_summary(done))


def _call(farm: Farm, what: str, *, intermediates: bool) -> Callable[[bool], Deletion]:
    """The deletion that the arguments mean, as a dry run or not."""
    if "@" in what:
        model, version = farm.version_of(what)
        assert version is not None
        if intermediates:
            return lambda dry_run: farm.delete_intermediates(model, version, dry_run=dry_run)
        return lambda dry_run: farm.delete_version(model, version, dry_run=dry_run)
    engine = engine_meant(farm, what)
    if engine is not None:
        if intermediates:
            raise InvalidRequest(
                f"{what} is an engine, which has no intermediates of its own",
                hint="name its version: farm delete MODEL@VERSION --intermediates",
            )
        return lambda dry_run: farm.delete_engine(engine, dry_run=dry_run)
    if intermediates:
        return lambda dry_run: farm.delete_intermediates(what, dry_run=dry_run)
    return lambda dry_run: farm.delete_model(what, dry_run=dry_run)


def _upload(farm: Farm, digest: str, *, refused: bool, yes: bool, as_json: bool) -> None:
    if refused:
        raise InvalidRequest(
            "an upload has no intermediates and no dry run",
            hint=f"farm which {digest} says what refers to it",
        )
    if not yes:
        _ask(digest)
    done = farm.delete_upload(digest)
    if as_json:
        show.document(done)
        return
    by = f", uploaded by {done.uploaded_by}" if done.uploaded_by else ""
    show.line(f"deleted {done.digest} ({show.size(done.bytes)}{by})")


def _ask(what: str) -> None:
    """Ask whether to go on; only a person at a terminal can say so.

    Raises:
        InvalidRequest
    """
    if not _is_asked():
        raise InvalidRequest(
            f"{what} isn't deleted unless you say so", hint="pass --yes, or --dry-run to look first"
        )
    typer.confirm(f"Delete {what}?", abort=True, err=True)


def _is_asked() -> bool:
    return sys.stdin.isatty()


def _tell(found: Deletion) -> None:
    for engine in found.engines[:_SHOWN]:
        version = f"{engine.model}@{engine.version}"
        show.line(f"engine {engine.id}: {engine.precision} for {engine.target} of {version}")
    _more(len(found.engines))
    for file in found.files[:_SHOWN]:
        show.line(f"file {file.digest}  {show.size(file.bytes)}")
    _more(found.files_total)
    for kept in found.kept[:_SHOWN]:
        said = "; ".join(kept.by)
        show.line(f"stays: {kept.digest}  {show.size(kept.bytes)}  {said}")
    _more(len(found.kept))
    show.line(_summary(found))
    for why in found.refused:
        show.line(f"refused: {why}")


def _more(count: int) -> None:
    if count > _SHOWN:
        show.line(f"… {count - _SHOWN} more: --json")


def _summary(found: Deletion) -> str:
    done = "would delete" if found.dry_run else "deleted"
    rows = ", ".join(f"{name}: {count}" for name, count in found.rows.items()) or "nothing"
    files = counted(found.files_total, "file")
    text = f"{done} {found.what}: {rows}; {files}, {show.size(found.freed_bytes)}"
    if found.kept_bytes:
        text += f"; {show.size(found.kept_bytes)} stay for others"
    left = found.freed_bytes - found.removed_bytes
    if left and not found.dry_run:
        text += f"; gc will remove {show.size(left)} of it"
    return text
