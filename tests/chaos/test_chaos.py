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
    assert len(storm.done) >= 5, storm.done
    assert findings.engines > 10
