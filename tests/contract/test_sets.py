"""What the client matches for several targets at once: of one version, with the reason of each choice."""

from __future__ import annotations

import pytest

from farm.client import Farm
from farm.client.pulls import OneVersion
from farm.errors import NotFound
from tests.contract.conftest import OverTheApi, request
from tests.ledger import Ledger

TARGETS = ["tensorrt-rtx:sm_89", "tensorrt-rtx:sm_120"]


@pytest.fixture
def farm(api):
    return Farm("http://localhost", key=api.key, transport=OverTheApi(api))


@pytest.fixture
def two_versions(api, db):
    """Versions 1 and 2 of ``digits`` for two GPUs each; ``prod`` is version 1."""
    Ledger(db).worker()
    for content in (b"a model", b"another"):
        source = {"digest": api.upload(content), "format": "onnx"}
        answer = api.post("/v1/builds", json=request(api, targets=TARGETS, source=source))
        assert answer.status_code == 202, answer.text
    Ledger(db).run_all()
    promote(api, 1)


def promote(api, version):
    answer = api.request(
        "PUT", "/v1/models/digits/aliases/prod", json={"version": version, "partial": True}
    )
    assert answer.status_code == 200, answer.text


def test_only_what_the_user_asked_for_is_called_requested(farm, two_versions):
    def whys(**asked):
        found = farm.match_all_targets(asked.pop("model", "digits"), **asked)
        assert len(found.matches) == 2
        return {one.why for one in found.matches}

    for why in whys():
        assert "version 1 is prod" in why
        assert "requested" not in why
    for why in whys(model="digits@prod", runtime="tensorrt-rtx"):
        assert "version 1 is prod" in why
        assert "requested" not in why
    for why in whys(version=2, precisions=["fp16"]):
        assert "version 2 as requested; fp16 as requested" in why


def test_a_set_stays_at_one_version_though_another_is_promoted(api, farm, two_versions):
    of = OneVersion(farm.http, "digits")
    assert of.match("sm_89").engine.version == 1
    promote(api, 2)
    second = of.match("sm_120")
    assert (second.engine.version, second.why) == (1, "of version 1, like those before it")
    with pytest.raises(NotFound):
        of.match("sm_86")
