"""A farm's words can't do anything to a terminal, nor its names to a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm.client import Farm
from farm.client.plain import plain, plain_json
from farm.errors import DigestMismatch
from farm.schemas.engines import EngineView, Match
from farm.testing.documents import rtx_plan
from farm.testing.stub_farm import StubFarm

PLAN = rtx_plan()
NAME = "digits-v1-int8-sm_89.engine"
TITLE = "\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (TITLE, "\\x1b]0;owned\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("50%\r100%\r\nnext", "50%\n100%\nnext"),
        ("tab\tand line\n", "tab\tand line\n"),
        ("txt.\u202eexe", "txt.\\u202eexe"),
        ("ä 模型 é", "ä 模型 é"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_instead(said: str, shown: str) -> None:
    assert plain(said) == shown
    for ascii_only in (True, False):
        content = json.dumps({"a": [said]}, ensure_ascii=ascii_only).encode()
        assert json.loads(plain_json(content)) == {"a": [shown]}


@pytest.mark.parametrize("content", [b'{"a": "b"}', b'{"a": "\\u00e9 \\\\u001b"}', b"[1.5e300]"])
def test_json_without_them_keeps_its_meaning(content: bytes) -> None:
    assert json.loads(plain_json(content)) == json.loads(content)


def test_answers_hold_nothing_that_a_terminal_would_obey(farm: Farm, stub: StubFarm) -> None:
    stub.add(PLAN, doubts=[f"doubt {TITLE}"], state="doubtful")
    match = farm.match("digits", "sm_89", doubtful=True)
    assert match.engine.doubts == ["doubt \\x1b]0;owned\\x07"]


@pytest.mark.parametrize(
    "model", ["../../x", "/etc/cron.d/x", "..", ".bashrc", "a/b", "a\\b", "a b", "a\x00b", ""]
)
def test_a_name_from_the_farm_chooses_no_path(
    farm: Farm, stub: StubFarm, tmp_path: Path, model: str
) -> None:
    engine = EngineView.model_validate(stub.add(PLAN, model=model))
    folder = tmp_path / "a" / "b" / "engines"
    folder.mkdir(parents=True)
    with pytest.raises(DigestMismatch, match="may lead elsewhere"):
        farm.fetch(Match(engine=engine, why="the best"), folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", [NAME, f"{NAME}.partial", f"{NAME}.json"])
def test_links_in_the_folder_are_replaced_and_not_followed(
    farm: Farm, stub: StubFarm, tmp_path: Path, name: str
) -> None:
    stub.add(PLAN)
    precious, folder = tmp_path / "precious", tmp_path / "engines"
    folder.mkdir()
    precious.write_bytes(PLAN if name == NAME else b"mine")
    before = precious.read_bytes()
    (folder / name).symlink_to(precious)
    pulled = farm.pull("digits", "sm_89", folder)
    assert pulled.path.read_bytes() == PLAN
    assert precious.read_bytes() == before
    assert not any(path.is_symlink() for path in folder.iterdir())
