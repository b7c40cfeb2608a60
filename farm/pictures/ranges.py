"""A tensor's histogram, with the range taken and those of other methods over it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import svg

from farm.pictures.canvas import (
    Picture,
    Plot,
    fill,
    length,
    line,
    plot,
    shortened,
    text,
    ticks,
)
from farm.reports.histograms import TensorHistogram

WIDTH, HEIGHT = 380, 260
_TOP, _ROW, _MOST_ROWS = 34, 14, 5
_COLOURS = ("violet", "green", "amber", "teal")
_TAKEN = "red"


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """A range, as a line and a name above it."""

    name: str
    value: float
    colour: str

    @property
    def is_taken(self) -> bool:
        return self.colour == _TAKEN

    @property
    def label(self) -> str:
        return shortened(f"{self.name} {self.value:.3g}", 30)


def ranges(found: TensorHistogram) -> Picture:
    """Magnitudes on the axis, and the logarithm of how many values have them."""
    marks = _marks(found)
    top = max([found.largest, *(one.value for one in marks)]) or 1.0
    most = math.log10(1 + max(found.counts, default=0)) or 1.0
    x, y = (0, top * 1.02), (0, most * 1.05)
    labels = _labels(marks, plot(WIDTH, HEIGHT, x, y))
    rows = max((row for _, _, row in labels), default=0)
    area = plot(WIDTH, HEIGHT, x, y, top=_TOP + 20 + rows * _ROW)
    made = area.axes(
        "magnitude",
        "values" if found.counts else "",
        ticks(0, top, 5),
        range(int(most) + 1) if found.counts else (),
        y_told=lambda power: _power(int(power)),
    )
    made += _bars(found, area)
    for one, left, row in labels:
        at = area.x(one.value)
        width, dash = (2.5, "") if one.is_taken else (1.5, "5 3")
        made.append(line(at, area.top - 4, at, area.bottom, one.colour, width=width, dash=dash))
        y_at = _TOP + (rows - row) * _ROW
        made.append(text(left, y_at, one.label, colour=one.colour, bold=one.is_taken))
    made.append(text(4, 15, shortened(found.tensor, 44), colour="front", bold=True))
    if not found.counts:
        middle = (area.top + area.bottom) / 2
        made.append(text(area.left + 12, middle, "its values weren’t counted"))
    return Picture(
        title=f"Range of {shortened(found.tensor, 100)}",
        description=f"{found.told}.",
        width=WIDTH,
        height=HEIGHT,
        elements=made,
    )


def _marks(found: TensorHistogram) -> list[_Mark]:
    """The range that was taken, and those of other methods."""
    taken = []
    if found.range is not None:
        taken = [_Mark(name=found.method or "taken", value=found.range, colour=_TAKEN)]
    others = [one for one in found.ranges.items() if not taken or one[0] != found.method]
    return taken + [
        _Mark(name=name, value=value, colour=_COLOURS[at % len(_COLOURS)])
        for at, (name, value) in enumerate(others)
    ]


def _labels(marks: Iterable[_Mark], area: Plot) -> list[tuple[_Mark, float, int]]:
    """Where each label begins, and its row from below, so that none covers another."""
    ends = [-math.inf] * _MOST_ROWS
    found = []
    for one in sorted(marks, key=lambda mark: mark.value):
        wide = length(one.label) * (1.1 if one.is_taken else 1.0)
        left = min(max(area.x(one.value) - wide / 2, 2), WIDTH - wide - 2)
        row = next((n for n, end in enumerate(ends) if left > end + 6), _MOST_ROWS - 1)
        ends[row] = left + wide
        found.append((one, left, row))
    return found


def _bars(found: TensorHistogram, area: Plot) -> Iterator[svg.Element]:
    """One path: a step for each bin."""
    if not any(found.counts):
        return
    width = found.largest / len(found.counts)
    steps: list[svg.PathData] = [svg.M(round(area.x(0), 1), round(area.bottom, 1))]
    for at, count in enumerate(found.counts):
        steps.append(svg.V(round(area.y(math.log10(1 + count)), 1)))
        steps.append(svg.H(round(area.x(width * (at + 1)), 1)))
    steps += [svg.V(round(area.bottom, 1)), svg.Z()]
    yield svg.Path(d=steps, fill_opacity=0.75, **fill("blue"))


def _power(power: int) -> str:
    """A count whose logarithm, with one added, is this."""
    return str(10**power) if 0 < power < 4 else f"1e{power}" if power else "0"
