"""``farm``, the command line. One module per noun; each command imports what it needs when it runs,
so that ``farm --help`` and completion stay fast."""

from farm.cli import (
    aliases,
    bench,
    builds,
    compare,
    delete,
    du,
    fleet,
    gc,
    infer,
    inspect,
    keys,
    label,
    limits,
    mirror,
    overview,
    page,
    plugins,
    pull,
    registry,
    retention,
    scrub,
    search,
    serve,
    signing,
    speed,
    store,
    submit,
    sync,
    top,
    verify,
    watch,
    which,
    yank,
)
from farm.cli.app import app

__all__ = ["app", "main"]

for noun in (
    submit,
    bench,
    builds,
    watch,
    page,
    registry,
    overview,
    search,
    aliases,
    compare,
    which,
    verify,
    yank,
    delete,
    retention,
    label,
    inspect,
    speed,
    pull,
    infer,
    sync,
    mirror,
    fleet,
    top,
    plugins,
    du,
    gc,
    scrub,
    store,
    keys,
    limits,
    signing,
    serve,
):
    noun.register(app)


def main() -> None:
    """Run the command line, and exit with one of the codes in ``farm.cli.exits``."""
    app(prog_name="farm")
