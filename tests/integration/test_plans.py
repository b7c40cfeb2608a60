"""What is read of one build, or one model, costs the same however much history lies around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, update
from sqlalchemy.orm import Session

from farm.builds import events
from farm.builds.history import History, Sought
from farm.database.base import now
from farm.database.tables import Build, EngineRow
from farm.keeping import retention
from farm.specs.retention import Retention
from tests.ledger import Ledger
from tests.statements import counted, of_work


@contextmanager
def heard(session: Session) -> Iterator[list[tuple[str, Any]]]:
    found: list[tuple[str, Any]] = []

    def hear(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        found.append((statement, parameters))

    event.listen(session.get_bind(), "before_cursor_execute", hear)
    yield found
    event.remove(session.get_bind(), "before_cursor_execute", hear)


def plan(session: Session, statement: str, parameters: Any) -> str:
    """How the database reads it where reading everything isn't cheaper."""
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "\n".join(row[3] for row in rows)
    for way in ("seqscan", "bitmapscan"):
        connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
    return "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())


def test_a_builds_events_are_read_by_the_build_and_by_its_jobs(ledger: Ledger) -> None:
    build_id = ledger.submit()
    ledger.run_all()
    with ledger.db.read() as session:
        with heard(session) as statements:
            assert len(events.history(session, build_id, 0, 2**62)) > 5
        [told] = [one for one in statements if "FROM events LEFT" in one[0].replace("\n", "")]
        seen = plan(session, *told)
    assert "ix_events_build_id_id" in seen
    assert "ix_events_job_id_id" in seen


@pytest.mark.parametrize("runtime", [None, "tensorrt-rtx"])
def test_a_jobs_like_are_read_in_the_order_of_their_index(
    ledger: Ledger, runtime: str | None
) -> None:
    ledger.submit()
    ledger.run_all()
    sought = Sought("export", runtime, "fp32", None, 10)
    with ledger.db.read() as session:
        with heard(session) as statements:
            History().forecast(session, sought)
        asked = [one for one in statements if "peak_memory_bytes" in str(one)]
        assert len(asked) == 2
        for one in asked:
            seen = plan(session, *one)
            assert "ix_jobs_like" in seen
            assert not {"Sort", "USE TEMP B-TREE FOR ORDER BY"} & set(_words(seen))


def _words(seen: str) -> list[str]:
    return [line.strip(" ->").split("  ")[0] for line in seen.splitlines()]


def test_what_the_rules_let_go_takes_as_many_statements_for_one_version_as_for_five(
    ledger: Ledger,
) -> None:
    rule = Retention(newest=0, engines_days=90, intermediates_days=14)
    costs = []
    for number in range(5):
        ledger.submit(source=ledger.upload(number))
        ledger.run_all()
        with ledger.db.write() as session:
            session.execute(update(EngineRow).values(created_at=now() - timedelta(days=100)))
            session.execute(update(Build).values(finished_at=now() - timedelta(days=100)))
        with counted(ledger.db.engine) as statements, ledger.db.read() as session:
            assert len(retention.due(session, rule, at=now())) == 2 * (number + 1)
        costs.append(len(of_work(statements)))
    assert len(set(costs)) == 1
