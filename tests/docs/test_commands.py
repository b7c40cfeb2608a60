"""What the documents tell a reader to type exists: commands, options, make targets, files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from farm.settings import Settings
from tests import farm_lines

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MARKDOWN = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "shared" for part in path.relative_to(ROOT).parts)
)
SHELL = {"sh", "bash", "shell", "console"}
#: Variables that aren't settings of the farm's processes.
OTHER_VARIABLES = {
    "FARM_URL",
    "FARM_KEY",
    "FARM_TOKEN",
    "FARM_FROM_KEY",
    "FARM_PINNED_KEY",
    "FARM_JOIN_TOKEN",
    "FARM_TEST_DATABASE_URL",
    "FARM_TEST_BROKER_URL",
    *(f"FARM_BENCH_{name}" for name in ("MODELS", "BATCHES", "PRECISIONS", "SECONDS", "BUDGET_S")),
}

_FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)>\s]+)>?[^)]*\)")
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


class Block(NamedTuple):
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    return [Block(m[2], m[3]) for m in _FENCE.finditer(path.read_text())]


def prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text())


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda p: p.relative_to(ROOT).as_posix())


@named(DOCUMENTS)
def test_every_farm_command_line_parses(path):
    for block in blocks(path):
        if block.language in SHELL:
            for words in farm_lines.farm_commands(block.text):
                farm_lines.parse(words)


@named(DOCUMENTS)
def test_every_farm_command_in_the_prose_exists(path):
    for code in _INLINE.findall(prose(path)):
        if re.match(r"farm( [a-z]|$)", code):
            farm_lines.check_options(code.split()[1:])


@named(DOCUMENTS)
def test_every_make_target_exists(path):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shell = [block.text for block in blocks(path) if block.language in SHELL]
    inline = [code for code in _INLINE.findall(prose(path)) if code.startswith("make ")]
    for text in (*shell, *inline):
        for words in farm_lines.simple_commands(text):
            if words[:1] == ["make"]:
                asked = {word for word in words[1:] if "=" not in word and word[0] != "-"}
                assert asked <= targets, f"{' '.join(words)}: no such target"


@named(DOCUMENTS)
def test_every_variable_is_a_setting(path):
    settings = {f"FARM_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"\bFARM_[A-Z_]*[A-Z]\b", path.read_text()))
    assert used <= settings | OTHER_VARIABLES


@named(MARKDOWN)
def test_every_relative_link_leads_somewhere(path):
    for link in _LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{file or path.name} has no heading #{anchor}"


def anchors(path: Path) -> set[str]:
    """The anchors of a file's headings, as GitHub makes them."""
    titles = _HEADING.findall(prose(path))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("farm up", [["up"]]),
        ("FARM_HOME=/x .venv/bin/farm up --port 0 &", [["up", "--port", "0"]]),
        ("id=$(farm submit m.onnx --gpu cpu --json | jq -r .id)", [None]),
        ("farm submit m.onnx \\\n  --gpu cpu", [["submit", "m.onnx", "--gpu", "cpu"]]),
        ("echo 'farm up'  # farm down", []),
        ("farm up  # and then\n$ farm workers\n", [["up"], ["workers"]]),
        ("curl -d '{\n  1}' | jq\nfarm builds", [["builds"]]),
    ],
)
def test_command_lines_are_found_in_shell(line, found):
    words = list(farm_lines.farm_commands(line))
    assert len(words) == len(found)
    for given, expected in zip(words, found, strict=True):
        assert expected is None or given == expected
        farm_lines.parse(given)


@pytest.mark.parametrize("line", ["fly", "up --prot 1", "submit", "db downgrade", "up --port x"])
def test_a_wrong_command_line_is_found(line):
    with pytest.raises(AssertionError, match="farm "):
        farm_lines.parse(line.split())


PYTHON = [
    pytest.param(block.text, id=f"{path.name}-{number}")
    for path in (ROOT / "docs/how-to/test.md",)
    for number, block in enumerate(b for b in blocks(path) if b.language == "python")
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_of_the_page_on_fakes_runs_as_it_stands(text):
    exec(compile(text, "docs/how-to/test.md", "exec"), {})
