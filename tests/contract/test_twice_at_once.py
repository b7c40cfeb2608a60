"""Every change, asked for several times at once: no answer is a bug's, and one is as if it were alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tests.again import until_served
from tests.contract.conftest import Api
from tests.contract.test_audit import CHANGES

_TIMES = 4


class Eager(Api):
    """Sends each change several times at once; of the best answers, gives the one that says most."""

    def __init__(self, app, key="") -> None:
        super().__init__(app, key)
        self.told = []

    def request(self, method, path, **options):
        # Bytes for an upload are added to it as often as they come, unless they say where they belong.
        if method in ("GET", "HEAD") or ("/blobs/uploads/" in path and "content" in options):
            return super().request(method, path, **options)
        start, answers = Barrier(_TIMES), []

        def send() -> None:
            start.wait()
            ask = super(Eager, self).request
            answers.append(until_served(lambda: ask(method, path, **options)))

        with ThreadPoolExecutor(_TIMES) as pool:
            for done in [pool.submit(send) for _ in range(_TIMES)]:
                done.result()
        self.told += [(method, path, one.status_code, one.text) for one in answers]
        return min(answers, key=lambda one: (one.status_code, -len(one.content)))


@pytest.mark.parametrize("change", CHANGES.values(), ids=lambda change: change.__name__)
def test_of_a_change_asked_for_several_times_at_once_one_is_made(api, monkeypatch, caplog, change):
    eager = Eager(api.app, api.key)
    change(eager, api.app.state.services.db, monkeypatch)
    assert [one for one in eager.told if one[2] >= 500] == []
    assert "lost a race" not in caplog.text
