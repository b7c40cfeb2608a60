"""What a job's process costs: a child of ``workers.runner.child`` over a process that imports the same.

``python -m bench.children`` prints both times in seconds, as JSON. It's a process of its own since a
child imports its parent's main module, and a worker's is light.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from workers.__main__ import PRELOADED
from workers.runner.child import Child, await_preload
from workers.runner.forks import preload
from workers.runner.inside import Link

CHILDREN, SPAWNED = 20, 4


def cost() -> Iterator[dict[str, str]]:
    """From before the start to after the end of a process that does nothing: one forked from the
    fork server that has imported the stages, over a Python that imports them."""
    from bench.table import row

    done = subprocess.run(
        [sys.executable, "-m", "bench.children"], capture_output=True, text=True, check=True
    )
    forked, spawned = json.loads(done.stdout)
    yield row(
        "a job's process: forked from the preloaded server, over spawned and importing",
        forked,
        spawned,
        " s",
        digits=3,
    )


def main() -> None:
    preload(PRELOADED)
    await_preload()
    forked, spawned = [], []
    for _ in range(SPAWNED):
        spawned.append(_time_spawn())
        forked += [_time_child() for _ in range(CHILDREN // SPAWNED)]
    print(json.dumps([median(forked), median(spawned)]))


def _nothing(_argument: None, _link: Link) -> None:
    return None


def _time_child() -> float:
    start = time.perf_counter()
    with Child(_nothing, None, timeout_s=60) as child:
        for _ in child.events():
            pass
        child.result()
    return time.perf_counter() - start


def _time_spawn() -> float:
    start = time.perf_counter()
    imports = "; ".join(f"import {module}" for module in PRELOADED)
    subprocess.run([sys.executable, "-c", imports], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
