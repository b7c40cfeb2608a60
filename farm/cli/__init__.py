"""``farm``, the command line. One module per noun; each command imports what it needs when it runs,
so that ``farm --help`` and completion stay fast."""

from farm.cli import (
    aliases,
    bench,
    builds,
    compare,
    fleet,
    gc,
    inspect,
    keys,
    mirror,
    plugins,
    pull,
    registry,
    scrub,
    serve,
    speed,
    submit,
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
    registry,
    aliases,
    compare,
    which,
    yank,
    inspect,
    speed,
    pull,
    mirror,
    fleet,
    plugins,
    gc,
    scrub,
    keys,
    serve,
):
    noun.register(app)


def main() -> None:
    """Run the command line, and exit with one of the codes in ``farm.cli.exits``."""
    app(prog_name="farm")
