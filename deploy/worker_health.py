"""Is a worker container well? Every worker that runs in it must answer Celery's ping.

The question goes over the broker, to each worker's main process: one that hangs, or has lost the
broker, is ill, and one that is busy with an hour's build answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from farm.queue.celery_app import create_celery
from farm.settings import Settings

PATIENCE_S = 5.0


def started(proc: Path = Path("/proc")) -> set[str]:
    """The names of the workers whose processes run here: ``… -m workers --one cpu --name cpu@host``."""
    names = set()
    for cmdline in proc.glob("[0-9]*/cmdline"):
        try:
            arguments = cmdline.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended meanwhile, or isn't ours
        if "--one" in arguments and "--name" in arguments[:-1]:
            names.add(arguments[arguments.index("--name") + 1])
    return names


def answering(names: set[str]) -> set[str]:
    """Those of the workers that answer a ping."""
    inspect = create_celery(Settings()).control.inspect(list(names), timeout=PATIENCE_S)
    # It stops to wait when so many have answered.
    inspect.limit = len(names)
    return set(inspect.ping() or {})


def main() -> int:
    names = started()
    if not names:
        print("no worker runs here", file=sys.stderr)
        return 1
    try:
        silent = names - answering(names)
    except Exception as err:  # whatever it is, this is how Docker gets to know
        print(f"the broker can't be asked: {err!r}", file=sys.stderr)
        return 1
    if silent:
        print(f"no answer from {', '.join(sorted(silent))}", file=sys.stderr)
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
