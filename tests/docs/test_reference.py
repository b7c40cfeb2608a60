"""The committed reference pages are what the code gives."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from farm.settings import Settings
from farm.specs.states import JOB_TRANSITIONS
from scripts import make_docs

NAMES = sorted(path.name for path in make_docs.REFERENCE.iterdir())


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return make_docs.pages()


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_what_the_code_gives(name, pages):
    path = make_docs.REFERENCE / name
    committed, made = path.read_text(), pages.get(name, "")
    changes = difflib.unified_diff(
        committed.splitlines(), made.splitlines(), "committed", "made", lineterm="", n=0
    )
    assert committed == made, f"run `make docs`: {name} has changed\n" + "\n".join(changes)


def test_all_that_the_code_gives_lies_among_the_reference_pages_and_nothing_else(pages):
    assert set(pages) == set(NAMES), "run `make docs`"


def test_pages_are_the_same_each_time(pages):
    assert make_docs.pages() == pages


@pytest.mark.parametrize("name", NAMES)
def test_a_page_carries_nothing_of_this_machine(name, pages):
    for path in (make_docs.REFERENCE.parent.parent, Path.home(), Path.cwd()):
        if path != Path("/"):
            assert f"{path}/" not in pages[name]


def test_settings_names_every_setting(pages):
    for name in Settings.model_fields:
        assert f"| `FARM_{name.upper()}` |" in pages["settings.md"]


def test_cli_shows_every_command_with_an_example(pages):
    for name, command in make_docs.commands():
        assert f"### {name}\n" in pages["cli.md"]
        assert str(command.epilog).startswith(f"Example: {name}")


def test_states_draws_every_transition(pages):
    for old, new in JOB_TRANSITIONS:
        assert f"    {old} --> {new}" in pages["states.md"]
