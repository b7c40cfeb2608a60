"""``python -m tests.chaos [--store folder|s3|http|mixed] [--seed N] [--builds N] …``: a long storm."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from farm.settings import Settings
from tests.chaos.audit import Findings, audit
from tests.chaos.crowd import Crowd
from tests.chaos.places import PLACES
from tests.chaos.site import Site
from tests.chaos.storm import Storm
from tests.e2e.conftest import fresh_settings

#: Short, so that what a crash interrupted goes on soon; and a storm may hit a job many times.
QUICK = {
    "lease_ttl_s": 4.0,
    "sweep_interval_s": 0.5,
    "ring_again_s": 5.0,
    "retry_first_s": 1.25,
    "retry_longest_s": 5.0,
    "max_attempts": 50,
}


def weather(
    settings: Settings,
    *,
    seed: int,
    builds: int,
    models: int,
    pause_s: tuple[float, float],
    strikes: int,
    place: str = "folder",
) -> tuple[Findings, Storm, Crowd]:
    """Let a storm go over a farm at work, then look whether all is right.

    The crowd goes on until the storm has done each of its acts.

    Parameters:
        builds: at a time.
        pause_s: the shortest and the longest time between two strikes.
        strikes: how many at most. Each death costs a worker its imports again: a storm without an
            end could kill the workers of a slow machine faster than they start.
        place: where the artifacts are, and how workers reach them.

    Raises:
        AssertionError: with what is broken.
    """
    site = Site(settings, place)
    try:
        site.start()
        crowd = Crowd(site.url, site.key, seed, builds=builds, models=models)
        storm = Storm(site, seed, pause_s=pause_s, strikes=strikes)
        storm.start()
        try:
            ended = crowd.run(patience_s := 600 + 10.0 * builds)
            while storm.has_more_to_show:
                ended += crowd.run(patience_s)
        finally:
            storm.end()
        return audit(site, ended), storm, crowd
    finally:
        site.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--store",
        choices=sorted(PLACES),
        default="folder",
        help="of the artifacts; mixed: in a bucket, which one worker reaches itself, the other by the API",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--builds", type=int, default=300)
    parser.add_argument("--models", type=int, default=24)
    parser.add_argument("--strikes", type=int, default=300)
    parser.add_argument("--home", type=Path, help="kept, to look into; by default a temporary one")
    options = parser.parse_args()
    print(
        f"seed {options.seed}, {options.builds} builds of {options.models} models, store: {options.store}",
        flush=True,
    )
    start = time.monotonic()
    home = options.home or Path(tempfile.mkdtemp(prefix="farm-chaos-"))
    with fresh_settings(home, **QUICK) as settings:
        findings, storm, crowd = weather(
            settings,
            seed=options.seed,
            builds=options.builds,
            models=options.models,
            pause_s=(0.5, 4.0),
            strikes=options.strikes,
            place=options.store,
        )
    for name, count in sorted(storm.done.items()):
        print(f"{count:6} × {name}")
    print(findings, f"retried by clients: {next(crowd.retries)}, pulls: {next(crowd.pulls)}")
    print(f"all is right after {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
