"""Builds and engines by the first characters of their ids, and the newest build as ``last``."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from farm.cli import app, exits
from farm.client import Farm
from farm.database.session import Database
from farm.errors import IdAmbiguous
from farm.specs.scopes import Scope
from tests.contract.live_api import LiveApi, live_api
from tests.keys import bearer
from tests.ledger import Ledger


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A farm with an engine of digits, and seven builds of other models that nothing has built."""
    with live_api(tmp_path_factory.mktemp("home")) as live:
        ledger = Ledger(Database(live.settings.database))
        _submit(live, "digits", b"a model")
        ledger.run_all()
        for number in range(7):
            _submit(live, f"other{number}", b"other %d" % number)
        ledger.db.dispose()
        yield live


def _submit(live: LiveApi, model: str, content: bytes) -> None:
    source = {"digest": live.upload(content), "format": "onnx"}
    body = {"model": model, "source": source, "precisions": ["fp16"], "targets": ["sm_89"]}
    assert live.http.post("/v1/builds", json=body).status_code == 202


@pytest.fixture
def farm(live: LiveApi) -> Iterator[Farm]:
    with Farm(live.url, key=live.key) as farm:
        yield farm


def _shortest(ids: list[str], of: str) -> str:
    """The shortest beginning that is no other id's."""
    return next(
        of[:count] for count in range(1, 17) if sum(one.startswith(of[:count]) for one in ids) == 1
    )


def _run(live: LiveApi, *words: str) -> Result:
    environment = {"FARM_URL": live.url, "FARM_KEY": live.key}
    return CliRunner().invoke(app, list(words), env=environment)


def test_a_build_is_shown_watched_and_cancelled_by_its_first_characters(
    live: LiveApi, farm: Farm
) -> None:
    ids = [build.id for build in farm.builds()]
    begun = _shortest(ids, ids[0])
    assert farm.build(begun).id == ids[0]
    assert farm.build(begun.upper()).id == ids[0]
    for command in ("status", "explain", "cancel"):
        said = _run(live, command, begun, "--json")
        assert said.exit_code == exits.OK, said.output
        assert json.loads(said.stdout)["build" if command == "explain" else "id"] == ids[0]
    answer = live.http.get(f"/v1/builds/{begun}/events")
    assert f'"build":"{ids[0]}"' in answer.text.replace(" ", "")


def test_a_beginning_of_several_ids_is_refused_with_up_to_five_of_them(
    live: LiveApi, farm: Farm
) -> None:
    ids = [build.id for build in farm.builds()]
    with pytest.raises(IdAmbiguous) as caught:
        farm.build("0")
    told = f"the ids of several builds begin with '0': {', '.join(ids[:5])}…"
    assert (caught.value.detail, caught.value.hint) == (told, "give more of it")
    assert caught.value.status == 409
    assert live.http.post("/v1/builds/0/cancel").status_code == 409


@pytest.mark.parametrize("given", ["zzz", "01m7y8mb9kssegkq", "lost", "%25", "0' or 1", "é"])
def test_what_begins_no_id_is_not_found_as_it_was_written(live: LiveApi, given: str) -> None:
    for path in (f"/v1/builds/{given}", f"/v1/engines/{given}"):
        answer = live.http.get(path)
        assert answer.status_code == 404
        assert "there is no" in answer.json()["detail"]


def test_last_is_the_newest_build_of_the_key(live: LiveApi, farm: Farm) -> None:
    assert farm.build("last").id == farm.builds(limit=1)[0].id
    assert _run(live, "status", "last", "--json").exit_code == exits.OK
    other = live.new_key(Scope.READ)
    answer = live.http.get("/v1/builds/last", headers=bearer(other))
    assert answer.status_code == 404
    assert answer.json()["detail"] == "there is no build of this key yet"


def test_an_engine_is_shown_pulled_and_yanked_by_its_first_characters(
    live: LiveApi, farm: Farm
) -> None:
    [engine] = farm.engines("digits")
    assert farm.engine(engine.id[:4]).id == engine.id
    assert farm.match_by_id(engine.id[:4], doubtful=True).engine.id == engine.id
    begun = _shortest([engine.id, *(build.id for build in farm.builds())], engine.id)
    assert json.loads(_run(live, "show", begun, "--json").stdout)["digest"] == engine.digest
    told = _run(live, "show", engine.id[:4])
    assert f"begin with '{engine.id[:4]}': " in told.stderr
    assert "hint: give more of it" in told.stderr
    assert farm.yank_engine(engine.id[:5], "slow").id == engine.id
    assert farm.unyank_engine(engine.id[:5]).yanked is None
    assert live.http.delete(f"/v1/engines/{engine.id[:-1]}").status_code == 404
    gone = _run(live, "delete", engine.id[:6], "--dry-run")
    assert f"engine {engine.id}: fp16" in gone.stdout, gone.output
