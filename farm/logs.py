"""How the farm's own processes log: one line an event, to standard error."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure(level: str = "INFO") -> None:
    logging.basicConfig(level=level.upper(), format=FORMAT, force=True)
    for noisy in ("httpx2", "httpcore2", "alembic.runtime.migration"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
