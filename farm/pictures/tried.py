"""What a search for an accuracy tried: the drop of its metric against the predicted time."""

from __future__ import annotations

import svg

from farm.pictures.canvas import (
    Picture,
    Plot,
    fill,
    line,
    plot,
    shortened,
    stroke,
    text,
    ticks,
    written,
)
from farm.reports.search import Search, Tried

_WIDTH, _HEIGHT, _ROW = 760, 300, 16
_KEYED = 12


def tried(search: Search) -> Picture:
    """A point for each mix, by the number that it has in the table."""
    chosen = search.chosen
    placed = [(n, one) for n, one in enumerate(search.tried, 1) if one.predicted_time is not None]
    drops = [one.drop for _, one in placed if one.drop is not None]
    times = [one.predicted_time or 0.0 for _, one in placed]
    high = max([search.max_drop, *drops, 0.0])
    low = min([search.max_drop, *drops, 0.0])
    pad = (high - low) * 0.15 or 0.01
    keyed = placed if len(placed) <= _KEYED else [one for one in placed if one[0] == chosen]
    height = _HEIGHT + len(keyed) * _ROW
    area = plot(
        _WIDTH,
        _HEIGHT,
        (min([0.9, *times]) - 0.05, max([1.0, *times]) + 0.02),
        (low - pad, high + pad),
    )
    made = area.axes(
        "predicted time of the products (in floats: 1)",
        f"drop of {search.metric or 'top1'}",
        ticks(area.x.low, area.x.high, 8),
        ticks(area.y.low, area.y.high, 5),
    )
    made += _goal(search, area)
    for number, one in placed:
        made += _point(number, one, area, is_chosen=number == chosen)
    for row, (number, one) in enumerate(keyed):
        told = f"{shortened(one.what, 84)}: {_drop(one)}{', chosen' if number == chosen else ''}"
        y, bold = _HEIGHT + 8 + row * _ROW, number == chosen
        made.append(text(area.left + 18, y, str(number), colour="front", anchor="end", bold=bold))
        made.append(text(area.left + 28, y, told, colour="front", bold=bold))
    return Picture(
        title="Accuracy against time of each mix tried",
        description=f"{search.told}. {_chosen(search, chosen)}",
        width=_WIDTH,
        height=height,
        elements=made,
    )


def _chosen(search: Search, chosen: int | None) -> str:
    if chosen is None:
        return "None is marked as chosen."
    one = search.tried[chosen - 1]
    return f"Chosen: {shortened(one.what, 100)}, with {_drop(one)}."


def _drop(one: Tried) -> str:
    return "broken outputs" if one.drop is None else f"drop {one.drop:.4f}"


def _goal(search: Search, area: Plot) -> list[svg.Element]:
    at = area.y(search.max_drop)
    return [
        line(area.left, at, area.right, at, "red", width=1.5, dash="6 4"),
        text(area.left + 6, at - 5, f"goal: at most {search.max_drop:g}", colour="red"),
    ]


def _point(number: int, one: Tried, area: Plot, *, is_chosen: bool) -> list[svg.Element]:
    x = round(area.x(one.predicted_time or 0.0), 1)
    y = round(area.top if one.drop is None else area.y(one.drop), 1)
    told = svg.Title(text=written(f"{number} {one.what}: {_drop(one)}"))
    made: list[svg.Element] = []
    if one.drop is None:
        cross = [svg.M(x - 4, y - 4), svg.l(8, 8), svg.m(-8, 0), svg.l(8, -8)]
        made.append(svg.Path(d=cross, fill="none", elements=[told], **stroke("red", 2)))
    else:
        colour = "green" if is_chosen else "blue"
        made.append(
            svg.Circle(cx=x, cy=y, r=6 if is_chosen else 4, elements=[told], **fill(colour))
        )
    if is_chosen:
        made.append(svg.Circle(cx=x, cy=y, r=10, fill="none", **stroke("green", 2)))
    label = f"{number} chosen" if is_chosen else str(number)
    # Below the point, since the goal's line is above what meets it.
    where = (x + 7, y + 24) if is_chosen and y + 28 < area.bottom else (x + 12, y - 6)
    made.append(text(*where, label, colour="front", bold=is_chosen))
    return made
