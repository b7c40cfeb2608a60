"""The committed reference pages are what the code gives."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from farm.settings import Settings
from farm.specs.states import JOB_TRANSITIONS
from scripts import make_docs

PAGES = make_docs.pages()


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_what_the_code_gives(name):
    path = make_docs.REFERENCE / name
    committed = path.read_text() if path.exists() else ""
    changes = difflib.unified_diff(
        committed.splitlines(), PAGES[name].splitlines(), "committed", "made", lineterm="", n=0
    )
    assert committed == PAGES[name], f"run `make docs`: {name} has changed\n" + "\n".join(changes)


def test_nothing_else_lies_among_the_reference_pages():
    assert {path.name for path in make_docs.REFERENCE.iterdir()} == set(PAGES)


def test_pages_are_the_same_each_time():
    assert make_docs.pages() == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_carries_nothing_of_this_machine(name):
    for path in (make_docs.REFERENCE.parent.parent, Path.home(), Path.cwd()):
        if path != Path("/"):
            assert f"{path}/" not in PAGES[name]


def test_settings_names_every_setting():
    for name in Settings.model_fields:
        assert f"| `FARM_{name.upper()}` |" in PAGES["settings.md"]


def test_cli_shows_every_command_with_an_example():
    for name, command in make_docs.commands():
        assert f"### {name}\n" in PAGES["cli.md"]
        assert str(command.epilog).startswith(f"Example: {name}")


def test_states_draws_every_transition():
    for old, new in JOB_TRANSITIONS:
        assert f"    {old} --> {new}" in PAGES["states.md"]
