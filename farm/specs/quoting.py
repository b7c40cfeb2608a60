"""Texts as literals of Python source."""

from __future__ import annotations


def quoted(text: str) -> str:
    """The text as a Python literal in ASCII, in double quotes where it has none itself.

    Nothing in it ends the literal or the line, whatever a stranger's model calls its inputs.
    """
    literal = ascii(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in literal else literal
