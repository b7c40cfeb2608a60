"""Nothing is lost and nothing is built twice, whatever is killed: a short storm of a fixed seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import QUICK, weather
from tests.e2e.conftest import fresh_settings

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1200)]


def test_every_build_ends_and_each_key_succeeds_once_in_a_storm(tmp_path: Path) -> None:
    with fresh_settings(tmp_path, **QUICK) as settings:
        findings, storm, _ = weather(
            settings, seed=7, builds=24, models=4, pause_s=(0.3, 2.5), strikes=40
        )
    assert len(storm.done) >= 14, storm.done
    assert findings.engines > 10
    assert findings.attempts_by_joined > 0


def test_so_do_farms_whose_parts_share_nothing_but_the_network(tmp_path: Path) -> None:
    with fresh_settings(tmp_path, **QUICK) as settings:
        findings, storm, crowd = weather(
            settings, seed=7, builds=8, models=3, pause_s=(0.2, 1.0), strikes=24, place="mixed"
        )
    assert {"kill S3", "S3 gone for a while", "kill a machine", "kill the API"} <= set(storm.done)
    assert findings.engines > 5
    assert findings.attempts_by_joined > 0
    assert next(crowd.pulls) > 5
