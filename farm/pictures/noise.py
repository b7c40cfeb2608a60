"""Signal to noise by layer, as bars."""

from __future__ import annotations

from collections.abc import Mapping

import svg

from farm.pictures.canvas import Picture, fill, line, plot, shortened, text, ticks, written
from farm.specs.counted import counted

_WIDTH, _HEIGHT = 760, 250
#: A ratio at which, as far as it was measured, there is no noise; and no signal below the negative.
_NONE_DB = 150.0


def noise(snr_db: Mapping[str, float]) -> Picture:
    """The ratio of each tensor in the graph's order.

    Parameters:
        snr_db: at least one.
    """
    worst, ratio = min(snr_db.items(), key=lambda one: one[1])
    measured = [one for one in snr_db.values() if abs(one) < _NONE_DB] or [0.0]
    low, high = min(0.0, *measured), max(10.0, *measured) * 1.05
    area = plot(_WIDTH, _HEIGHT, (0, len(snr_db)), (low, high), top=44)
    step = (area.right - area.left) / len(snr_db)
    places = [max(1, round(at)) for at in ticks(1, len(snr_db), 12)]
    made = area.axes(
        f"{counted(len(snr_db), 'quantised tensor')}, in the graph’s order",
        "dB",
        [place - 0.5 for place in dict.fromkeys(places)],
        ticks(low, high, 5),
        x_told=lambda at: f"{at + 0.5:g}",
    )
    zero = area.y(0)
    for at, (name, one) in enumerate(snr_db.items()):
        end = area.y(one)
        made.append(
            svg.Rect(
                x=round(area.left + step * (at + 0.1), 2),
                y=round(min(zero, end), 2),
                width=round(step * 0.8, 2),
                height=round(max(1.0, abs(zero - end)), 2),
                elements=[svg.Title(text=written(f"{name}: {_told(one)}"))],
                **fill("red" if name == worst else "blue"),
            )
        )
    made.append(line(area.left, zero, area.right, zero, "dim"))
    lowest = f"lowest: {_told(ratio)}, {shortened(worst, 70)}"
    made.append(text(4, 14, lowest, colour="red", bold=True))
    return Picture(
        title="Signal to noise by layer",
        description=f"Bars for {counted(len(snr_db), 'quantised tensor')} in the graph’s order; {lowest}.",
        width=_WIDTH,
        height=_HEIGHT,
        elements=made,
    )


def _told(ratio: float) -> str:
    if ratio >= _NONE_DB:
        return "no noise"
    return "no signal" if ratio <= -_NONE_DB else f"{ratio:.1f} dB"
