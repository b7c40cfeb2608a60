"""A tensor's histogram, with the range taken and those of other methods over it."""

from __future__ import annotations

import math
from collections.abc import Iterator

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

WIDTH, HEIGHT = 380, 270
_TOP, _ROW, _MOST_ROWS = 34, 14, 5
_COLOURS = ("violet", "green", "amber", "teal")
_TAKEN = "red"


def ranges(found: TensorHistogram) -> Picture:
    """Magnitudes on the axis, and the logarithm of how many values have them."""
    marks = _marks(found)
    top = max([found.largest, *(value for _, value, _ in marks)]) or 1.0
    most = math.log10(1 + max(found.counts, default=0)) or 1.0
    rows = min(_MOST_ROWS, len(marks))
    area = plot(WIDTH, HEIGHT, (0, top * 1.02), (0, most * 1.05), top=_TOP + 14 + rows * _ROW)
    made = area.axes(
        "magnitude",
        "values" if found.counts else "",
        ticks(0, top, 5),
        range(int(most) + 1) if found.counts else (),
        y_told=lambda power: _power(int(power)),
    )
    made += _bars(found, area)
    made += _lines(marks, area)
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


def _marks(found: TensorHistogram) -> list[tuple[str, float, str]]:
    """Name, range and colour of each line, the range that was taken first."""
    taken = [] if found.range is None else [(found.method or "taken", found.range, _TAKEN)]
    others = [one for one in found.ranges.items() if found.range is None or one[0] != found.method]
    return taken + [
        (name, value, _COLOURS[at % len(_COLOURS)]) for at, (name, value) in enumerate(others)
    ]


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


def _lines(marks: list[tuple[str, float, str]], area: Plot) -> Iterator[svg.Element]:
    """A line for each range, the taken one solid, and its name above, where it covers no other's."""
    ends = [-math.inf] * _MOST_ROWS
    for name, value, colour in sorted(marks, key=lambda one: one[1]):
        is_taken = colour == _TAKEN
        label = shortened(f"{name} {value:.3g}", 30)
        at, wide = area.x(value), length(label) * (1.1 if is_taken else 1.0)
        left = min(max(at - wide / 2, 2), WIDTH - wide - 2)
        row = next((n for n, end in enumerate(ends) if left > end + 6), _MOST_ROWS - 1)
        ends[row] = left + wide
        y = area.top - 22 - row * _ROW
        yield line(
            at, y + 4, at, area.bottom, colour, width=2.5 if is_taken else 1.5,
            dash="" if is_taken else "5 3",
        )  # fmt: skip
        yield text(left, y, label, colour=colour, bold=is_taken)


def _power(power: int) -> str:
    """A count whose logarithm, with one added, is this."""
    return str(10**power) if 0 < power < 4 else f"1e{power}" if power else "0"
