"""A log with its noise folded: progress bars, lines that repeat, warnings of libraries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

#: Fewer lines than this aren't worth a fold.
_FEWEST_REPEATED, _FEWEST_PROGRESS = 3, 2
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_PROGRESS = re.compile(
    r"\d{1,3}(\.\d+)?\s?%\s*[|\[(]"  # 40%|████   |
    r"|[|\[][=#>\-█▏▎▍▌▋▊▉.\s]{5,}[\]|].*\d"  # [=====>    ] 3/7
    r"|\b(it|s|B|iB|kB|MB)/(s|it)\b"  # 12.3it/s
    r"|^\W*\d{1,3}(\.\d+)?\s?%\W*$"  # 40 %
)
#: The line after the first of these is the source line that Python shows.
_PYTHON_WARNING = re.compile(r"^\S.*:\d+: \w*Warning: ")
_WARNING = re.compile(
    r"^\S.*:\d+: \w*Warning: "  # file.py:12: UserWarning: …
    r"|^\[?W\d{4}\b|^\[W:|^\[W\]|^\S+ \[W:"  # glog, torch, onnxruntime
    r"|^(\[?\d{4}-\d\d-\d\d\S*( \S+)? )?(\[?WARN(ING)?\]?)[\s:\]]"
    r"|^\d{4}-\d\d-\d\d \S+ - .* - WARNING - "  # modelopt, and whoever formats as Python's guide does
    r"|\[TRT\] \[W\]|\[W\] \[TRT\]",
)


class Noise(StrEnum):
    PROGRESS = "progress"
    REPEATED = "repeated"
    WARNINGS = "warnings"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Lines that are shown, or folded if they are noise."""

    lines: Sequence[str]
    noise: Noise | None = None

    @property
    def summary(self) -> str:
        """What a fold says of its lines."""
        count = len(self.lines)
        if self.noise is Noise.PROGRESS:
            return f"progress, {count} lines; the last: {self.lines[-1].strip()}"
        if self.noise is Noise.REPEATED:
            return f"{count} lines like: {self.lines[0].strip()}"
        first = next((one for one in self.lines if _WARNING.search(one)), self.lines[0])
        more = sum(bool(_WARNING.search(one)) for one in self.lines) - 1
        others = f", and {more} more" if more > 0 else ""
        return f"warning of a library{others}: {first.strip()}"


def folded(text: str) -> list[Part]:
    """A log in parts, in order. Nothing is lost but colours and empty updates."""
    parts: list[Part] = []
    for noise, lines in _by_noise(_lines(text)):
        if noise is Noise.PROGRESS and len(lines) < _FEWEST_PROGRESS:
            noise = None
        made = [Part(lines=lines, noise=noise)] if noise else _repeats(lines)
        for part in made:
            if part.noise is None and parts and parts[-1].noise is None:
                parts[-1] = Part(lines=[*parts[-1].lines, *part.lines])
            else:
                parts.append(part)
    return parts


def _lines(text: str) -> list[str]:
    shown = _COLOUR.sub("", text).expandtabs().split("\n")
    if shown and not shown[-1]:
        shown.pop()
    return [one for line in shown for one in _written(line)]


def _written(line: str) -> list[str]:
    """A line that goes back to its start is as many, of which a terminal shows the last."""
    states = [one for one in line.split("\r") if one.strip()]
    return states or [""]


def _by_noise(lines: Sequence[str]) -> Iterator[tuple[Noise | None, list[str]]]:
    kinds: list[Noise | None] = []
    for number, line in enumerate(lines):
        is_source = (
            number > 0
            and kinds[-1] is Noise.WARNINGS
            and bool(_PYTHON_WARNING.search(lines[number - 1]))
            and line.startswith("  ")
        )
        kinds.append(Noise.WARNINGS if is_source else _noise(line))
    for kind, group in groupby(zip(kinds, lines, strict=True), key=lambda pair: pair[0]):
        yield kind, [line for _, line in group]


def _noise(line: str) -> Noise | None:
    if _WARNING.search(line):
        return Noise.WARNINGS
    return Noise.PROGRESS if _PROGRESS.search(line) else None


def _repeats(lines: Sequence[str]) -> list[Part]:
    parts = []
    for alike, group in groupby(lines, key=lambda line: _NUMBER.sub("0", line).strip()):
        found = list(group)
        is_noise = bool(alike) and len(found) >= _FEWEST_REPEATED
        parts.append(Part(lines=found, noise=Noise.REPEATED if is_noise else None))
    return parts
