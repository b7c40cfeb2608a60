"""Counts the statements that a database is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, event


@contextmanager
def counted(engine: type[Engine] | Engine) -> Iterator[list[str]]:
    """The statements of a block on one engine, or on every engine, each as often as it is run."""
    statements: list[str] = []

    def count(*args: object) -> None:
        statements.append(str(args[2]))

    event.listen(engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", count)


def of_work(statements: list[str]) -> list[str]:
    beside = ("BEGIN", "PRAGMA", "NOTIFY")  # what isn't a round trip, and what another thread says
    return [one for one in statements if not one.startswith(beside)]
