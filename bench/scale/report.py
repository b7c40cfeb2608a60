"""Writes what the bench measured as a page: tables, and curves that Markdown's viewers draw."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.scale.run import Point, Result

#: Where figures go in the page; what is around them is written by hand.
BEGIN, END = "<!-- figures: python -m bench scale -->", "<!-- end of figures -->"


def written(result: Result, page: Path) -> None:
    """Put the figures between the marks of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before + BEGIN, "", *lines(result), "", END + after]))


def lines(result: Result) -> Iterator[str]:
    plan, points = result.plan, result.points
    yield (
        f"{plan.jobs:,} jobs asked for on {os.cpu_count()} cores of {platform.machine()}, Postgres "
        f"{result.postgres.split()[0]}, in {result.took_s / 60:.0f} minutes: {result.ran:,} ran, "
        f"{result.joined:,} were joined while in flight, {result.cached:,} were found done."
    )
    yield ""
    yield from _rates(points)
    yield ""
    yield from _curves(points[: len(plan.history)])
    yield "Reads, in milliseconds, the median of five:"
    yield ""
    yield from _table(
        ["read", *(_short(point) for point in points)],
        [[name, *(f"{p.reads_ms[name]:.0f}" for p in points)] for name in points[0].reads_ms],
    )
    yield ""
    yield "Where the database's bytes are, at the end:"
    yield ""
    yield from _table(
        ["table", "rows", "MB", "of them indexes", "bytes a job that ran"],
        [
            [name, f"{rows:,}", f"{size / 1e6:.1f}", f"{of / 1e6:.1f}", f"{size / result.ran:.0f}"]
            for name, rows, size, of in result.tables
        ],
    )


def _rates(points: Sequence[Point]) -> Iterator[str]:
    head = ["history", "jobs/s", "submissions/s", "start at half of it: p50", "p99"]
    head += ["a job's wait: p50", "p99", "CPU a job: Postgres", "Python", "dead rows"]
    head += ["database", "deadlocks"]
    yield from _table(head, [_rate(point) for point in points])


def _rate(point: Point) -> list[str]:
    fill, jobs = point.fill, max(point.fill.finished, 1)
    return [
        point.told,
        f"{fill.finished / fill.seconds:.0f}",
        f"{fill.submissions / fill.seconds:.0f}",
        *(f"{ms:.0f} ms" for ms in (*point.start_ms, *point.wait_ms)),
        *(f"{1000 * s / jobs:.1f} ms" for s in (fill.postgres_s, fill.python_s)),
        f"{point.dead:,}",
        f"{point.bytes / 1e6:.0f} MB",
        str(point.deadlocks),
    ]


def _curves(points: Sequence[Point]) -> Iterator[str]:
    asked = [f"{point.asked / 1000:.0f}" for point in points]
    rates = [point.fill.finished / point.fill.seconds for point in points]
    yield from _curve("Jobs a second by thousands of jobs asked for", asked, "jobs/s", [rates])
    halves = [[point.start_ms[n] for point in points] for n in (0, 1)]
    what = "From submission to start at half of that rate, p50 and p99"
    yield from _curve(what, asked, "ms", halves)


def _curve(
    title: str, across: Sequence[str], unit: str, series: Sequence[Sequence[float]]
) -> Iterator[str]:
    yield "```mermaid"
    yield "xychart-beta"
    yield f'    title "{title}"'
    yield f"    x-axis [{', '.join(across)}]"
    yield f'    y-axis "{unit}" 0 --> {max(map(max, series)) * 1.1:.0f}'
    for values in series:
        yield f"    line [{', '.join(f'{value:.1f}' for value in values)}]"
    yield "```"
    yield ""


def _short(point: Point) -> str:
    return f"{point.asked / 1000:.0f} k" if point.told.endswith("for") else point.told


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"
