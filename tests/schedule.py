"""What a process of ``pytest -n`` runs as one piece, and which pieces are begun first.

A piece is a module, so that what it makes once is made once, or several modules that share a farm or would
disturb each other. xdist's ``--dist loadgroup`` takes groups from tests' ids, which it can't write with
pytest 9.2: its groups are silently none.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

#: Modules of one piece, by its name.
TOGETHER = {
    # One farm of processes serves them all.
    "farm": (
        "tests/e2e/test_main_job.py",
        "tests/e2e/test_triton.py",
        "tests/e2e/test_bad_input.py",
        "tests/e2e/test_hostile.py",
        "tests/e2e/test_crashes.py",
        "tests/e2e/test_compression.py",
        "tests/e2e/test_flower.py",
    ),
    # Likewise, another one.
    "pages": (
        "tests/e2e/test_bench.py",
        "tests/e2e/test_infer.py",
        "tests/e2e/test_registry.py",
        "tests/e2e/test_retention.py",
        "tests/e2e/test_verify.py",
    ),
    # The network that `digits` learns, exports and calibrates.
    "digits": (
        "tests/integration/test_builder_options.py",
        "tests/integration/test_profiles.py",
        "tests/integration/test_stage_build.py",
        "tests/integration/test_stage_calibrate.py",
        "tests/integration/test_stage_cast.py",
        "tests/integration/test_stage_export.py",
        "tests/integration/test_stage_measure.py",
    ),
    # Each attacks what it has started, and would disturb the others.
    "attacked": (
        "tests/contract/test_stalls.py",
        "tests/contract/test_shares.py",
        "tests/contract/test_flower.py",
    ),
}
#: The dearest pieces in the order in which they are begun, so that none is left to the end. While farms
#: start, which are waited for, another process computes.
FIRST = ("farm", "digits", "pages", "attacked")

_PIECES = {module: name for name, modules in TOGETHER.items() for module in modules}


def piece(nodeid: str) -> str:
    """The piece that a test belongs to."""
    module = nodeid.partition("::")[0]
    return _PIECES.get(module, module)


def in_order(items: list[pytest.Item]) -> None:
    """Sort tests so that the dearest pieces come first, and each is in one piece."""
    rank = {name: at for at, name in enumerate(FIRST)}
    for item in items:
        rank.setdefault(piece(item.nodeid), len(rank))
    items.sort(key=lambda item: rank[piece(item.nodeid)])


class Pieces(LoadScopeScheduling):
    """Hands out pieces in the order of the tests."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False  # by the number of tests, which says little
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return piece(nodeid)
