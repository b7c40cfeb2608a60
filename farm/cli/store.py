"""``farm store``: where the farm's artifacts are, whether that works, and copying them elsewhere."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from farm import installed
from farm.cli import exits, show, transfer
from farm.cli.options import Json, Url, connect, example
from farm.errors import FarmError, InvalidRequest
from farm.specs import stores
from farm.specs.counted import counted

if TYPE_CHECKING:
    from farm.schemas.storage import StoreCopy
    from farm.store.migration import Migration

_store = typer.Typer(rich_markup_mode="rich")


def register(app: typer.Typer) -> None:
    _store.callback(invoke_without_command=True, epilog=example("farm store"))(store)
    text = "farm store copy --from /srv/farm/store --to s3://models/farm"
    _store.command("copy", epilog=example(text))(copy)
    app.add_typer(_store, name="store", rich_help_panel="Fleet")


def store(context: typer.Context, as_json: Json = False, url: Url = None) -> None:
    """Show the farm's artifact store, and whether it can be read and written.

    Exits with 1 if it can't. To check a worker's own way to it: farm worker --check-store.
    """
    if context.invoked_subcommand is not None:
        return
    found = connect(url).store()
    if as_json:
        show.document(found)
    else:
        free = "" if found.free_bytes is None else f", {show.size(found.free_bytes)} free"
        print(f"store  {found.address}{free}")
        print(f"id     {found.id or 'none'}")
        if found.problem is None:
            print("state  ok")
        else:
            print(f"state  {found.problem.detail}\nhint   {found.problem.hint or 'none'}")
    if found.problem is not None:
        raise typer.Exit(exits.FAILED)


def copy(
    source: Annotated[
        str,
        typer.Option("--from", metavar="STORE", help="The farm's store: a folder or a bucket."),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="STORE",
            help="The new one: a folder, s3://BUCKET/PREFIX, gs://… or az://….",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be copied.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy the farm's artifacts to another store, each verified by its digest.

    It reads the stores themselves: run it where both are reached, by what the environment says of buckets.
    The farm may go on meanwhile. A copy that was interrupted, or is run again, copies what isn't there yet.
    Exits with 1 if files were left out because they are damaged.
    """
    from farm.schemas import storage

    places = [_place(source, "--from"), _place(target, "--to")]
    if places[0] == places[1]:
        raise InvalidRequest("--from and --to are the same store", hint="name another one")
    migration = _migration(*places)
    with transfer.bar(hidden=as_json) as progress:
        arrived_bytes = 0

        def arrived(count: int) -> None:
            nonlocal arrived_bytes
            arrived_bytes += count
            if progress is not None:
                progress("copy", arrived_bytes, migration.total_bytes)

        try:
            done = migration.run(dry_run=dry_run, arrived=arrived)
        except FarmError as err:
            err.hint = f"{err.hint or 'see why'}; then run it again: it goes on where it stopped"
            raise
    copied = storage.StoreCopy(
        source=places[0],
        target=places[1],
        id=done.identity,
        dry_run=dry_run,
        copied=done.files,
        copied_bytes=done.bytes,
        present=done.present,
        damaged=sorted(done.damaged),
        complete=done.is_complete and not dry_run,
    )
    show.document(copied) if as_json else _print(copied)
    if copied.damaged:
        raise typer.Exit(exits.FAILED)


def _migration(source: str, target: str) -> Migration:
    with installed.needs("server"):
        from farm.settings import Settings
        from farm.store.chosen import store_at
        from farm.store.migration import Migration

    settings = Settings()
    return Migration(store_at(source, settings), store_at(target, settings))


def _place(given: str, option: str) -> str:
    try:
        return stores.checked(given)
    except ValueError as err:
        raise InvalidRequest(f"{option}: {err}") from err


def _print(copied: StoreCopy) -> None:
    again = f"farm store copy --from {shlex.quote(copied.source)} --to {shlex.quote(copied.target)}"
    done = "would copy" if copied.dry_run else "copied"
    print(
        f"{done} {counted(copied.copied, 'file')} ({show.size(copied.copied_bytes)}); "
        f"{copied.present} there already"
    )
    for digest in copied.damaged:
        print(f"damaged, and left out: {digest}")
    if copied.damaged:
        print("farm scrub heals what another copy has, and quarantines the rest; then copy again")
    elif copied.dry_run:
        print(f"to copy them: {again}")
    else:
        print(
            "to switch over, so that nothing that is written meanwhile is lost:\n"
            "  1. stop the API and the workers\n"
            f"  2. {again}\n"
            f"  3. start them with FARM_STORE={shlex.quote(copied.target)}\n"
            "  4. farm scrub reads every file there; keep the old store until it has found nothing missing"
        )
