"""Command lines of ``farm``, held against its real parser without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import typer

from farm.cli import app

ROOT = typer.main.get_command(app)
_HELP = {"-h", "--help", "--version"}
_SEPARATORS = "();<>|&\n"
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)
_PROMPT = re.compile(r"^\$ ", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=.*", re.DOTALL)


def farm_commands(script: str) -> Iterator[list[str]]:
    """The words after ``farm`` of each use of it in a piece of shell."""
    for words in simple_commands(script):
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        if words and words[0].rpartition("/")[2] == "farm":
            yield words[1:]


def simple_commands(script: str) -> Iterator[list[str]]:
    """``a=$(b c) && d | e`` → ``b c``, ``d``, ``e``; what quotes hold stays one word."""
    text = _PROMPT.sub("", _COMMENT.sub("", script)).replace("\\\n", " ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_SEPARATORS)
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for token in lexer:
        if set(token) <= set(_SEPARATORS):
            if words:
                yield words
            words = []
        else:
            words.append(token)
    if words:
        yield words


def parse(words: Sequence[str]) -> None:
    """Raise AssertionError unless these words after ``farm`` are a whole, valid command line."""
    command, rest = find(words)
    if _HELP & set(rest) or hasattr(command, "commands"):
        check_options(words)
        return
    try:
        command.make_context(command.name, list(rest))
    except Exception as err:
        raise AssertionError(f"farm {' '.join(words)}: {err}") from err


def check_options(words: Sequence[str]) -> None:
    """Raise AssertionError unless the command and the options named exist."""
    command, rest = find(words)
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    for word in rest:
        option = word.strip("[],.").partition("=")[0]
        if re.match(r"-{1,2}[a-z]", option):
            assert option in known | _HELP, f"farm {' '.join(words)}: no option {option}"


def find(words: Sequence[str]):
    """The command that these words name, and what is left of them."""
    command, rest = ROOT, list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith(("-", "[")):
        name = rest.pop(0)
        assert name in command.commands, f"farm {' '.join(words)}: no command {name!r}"
        command = command.commands[name]
    return command, rest
