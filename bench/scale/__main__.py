"""The command: ``python -m bench scale``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.processes import ROOT
from bench.scale import report
from bench.scale.run import Plan, run

PAGE = ROOT / "docs" / "why" / "scale.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench, and print or write its figures."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    parser.add_argument("--jobs", type=int, default=plan.jobs, help="asked for by submissions")
    parser.add_argument("--workers", type=int, default=plan.workers, help="simulated ones")
    parser.add_argument(
        "--steady", type=float, default=plan.steady_s, metavar="SECONDS", help="at half of the rate"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=plan.most_s / 60,
        help="after which it submits no more, and reports what it has",
    )
    parser.add_argument(
        "--plans", type=Path, metavar="FILE", help="for the plans of all reads, as they ran"
    )
    parser.add_argument("--write", action="store_true", help=f"the figures into {PAGE.name}")
    given = parser.parse_args(arguments)
    result = run(
        Plan(
            jobs=given.jobs,
            workers=given.workers,
            steady_s=given.steady,
            most_s=60 * given.minutes,
            explain=given.plans is not None,
        )
    )
    if given.plans is not None:
        given.plans.write_text("\n\n".join(result.plans))
    print("\n".join(report.lines(result)))
    if given.write:
        report.written(result, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
