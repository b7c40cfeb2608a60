"""What a pull's choice costs in a registry of 100,000 engines over what it costs in one of 100.

Of random models, GPUs and precisions; half of the pulls name no precision and so rank four engines. The time
is that of ``best_match`` in a session of its own, as the API calls it.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import shelf
from bench.processes import fresh_database, kinds
from bench.table import Row, row
from farm.database import migrate
from farm.database.session import Database
from farm.registry.match import best_match
from farm.settings import Settings

FEW, MANY = 100, 100_000
_OF_MODEL = 100
PULLS = 400
_DIGEST = f"sha256:{'1' * 64}"


def ratio() -> Iterator[Row]:
    """Medians; the two databases take turns."""
    for kind in kinds():
        for models, told in ((MANY // _OF_MODEL, "of 1,000 models"), (1, "of one model")):
            many, few = _measure(kind, models)
            yield row(
                f"choosing among {MANY:,} engines {told} over {FEW}, p50, {kind}",
                many * 1000,
                few * 1000,
                " ms",
                digits=2,
                most=3,
            )


def _measure(kind: str, models: int) -> tuple[float, float]:
    """The median seconds of a choice among many engines and among few."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        registries = [
            _Registry(stack.enter_context(fresh_database(kind, Path(folder))), *size)
            for size in ((MANY, models), (FEW, 1))
        ]
        for registry in registries:
            stack.callback(registry.db.dispose)
            registry.pull()  # the first makes the statements
        times = [[registry.pull() for registry in registries] for _ in range(PULLS)]
    many, few = (median(side) for side in zip(*times, strict=True))
    return many, few


class _Registry:
    """A registry of so many engines."""

    def __init__(self, url: str, engines: int, models: int) -> None:
        migrate.upgrade(Settings(database_url=url))
        self.db = Database(url)
        self._models = shelf.fill(self.db, engines, models=models, digest=_DIGEST, size=7)
        self._chance = random.Random(0)

    def pull(self) -> float:
        """The seconds that one choice takes."""
        model, gpu = self._chance.choice(self._models), self._chance.choice(shelf.GPUS)
        precision = self._chance.choice((None, self._chance.choice(shelf.PRECISIONS)))
        start = time.perf_counter()
        with self.db.read() as session:
            best_match(session, model, gpu, precision=precision)
        return time.perf_counter() - start
