"""What pictures are drawn with: texts, scales and axes.

Colours are attributes, so that any program shows them. A browser in dark mode takes others: by the style in a
file, or by the page's own, since the page's policy allows no style in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import svg

from farm.specs import texts

#: Name → the colour in light and in dark, as in the page's style.
PALETTE = {
    "back": ("#ffffff", "#0e1116"),
    "front": ("#1b1f24", "#e6e9ed"),
    "dim": ("#57606a", "#a3acb8"),
    "line": ("#d0d7de", "#363d47"),
    "blue": ("#0b5cad", "#7cb8ff"),
    "violet": ("#8a3ea8", "#d9a2f0"),
    "red": ("#b3261e", "#ff9a90"),
    "green": ("#176f2c", "#6fd08a"),
    "amber": ("#7a4b00", "#f0c36a"),
    "teal": ("#00696f", "#6fd3d8"),
}
FONT = 12
_WIDE = 0.6  #: of a letter, of the font's size, on average
#: What XML can't hold.
_NOT_XML = re.compile("[\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawing, and what it says in words."""

    title: str
    description: str
    width: float
    height: float
    elements: Sequence[svg.Element] = field(repr=False)

    def inline(self, name: str) -> str:
        """As a part of a page, which has the style.

        Parameters:
            name: unique on the page.
        """
        return self._drawn(name, ()).as_str()

    def file(self) -> str:
        dark = "".join(
            f".f-{name}{{fill:{dark}}}.s-{name}{{stroke:{dark}}}"
            for name, (_, dark) in PALETTE.items()
        )
        style = svg.Style(text=f"@media (prefers-color-scheme:dark){{{dark}}}")
        back = svg.Rect(width=self.width, height=self.height, **fill("back"))
        return self._drawn("picture", (style, back), width=self.width, height=self.height).as_str()

    def nested(self, y: float) -> svg.SVG:
        """As a part of a larger picture."""
        return self._drawn(f"at-{y:.0f}", (), y=y, width=self.width, height=self.height)

    def _drawn(self, name: str, first: Sequence[svg.Element], **more: Any) -> svg.SVG:
        named = (
            svg.Title(id=f"{name}-title", text=written(self.title)),
            svg.Desc(id=f"{name}-said", text=written(self.description)),
        )
        return svg.SVG(
            viewBox=svg.ViewBoxSpec(0, 0, self.width, self.height),
            extra={
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-said",
                "font-family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif",
                "font-size": str(FONT),
            },
            elements=[*named, *first, *self.elements],
            **more,
        )


def written(text: str) -> str:
    """Anybody's text, as text in XML."""
    return escape(_NOT_XML.sub("�", str(texts.escaped(text))))


def shortened(text: str, most: int) -> str:
    """The end of a name, which tells more than its beginning."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def length(text: str) -> float:
    """About how wide a text is."""
    return len(text) * FONT * _WIDE


def fill(colour: str) -> dict[str, Any]:
    return {"fill": PALETTE[colour][0], "class_": [f"f-{colour}"]}


def stroke(colour: str, width: float = 1.0) -> dict[str, Any]:
    return {
        "stroke": PALETTE[colour][0],
        "stroke_width": width,
        "class_": [f"s-{colour}"],
    }


def text(
    x: float, y: float, said: str, *, colour: str = "dim", anchor: str = "start", bold: bool = False
) -> svg.Text:
    return svg.Text(
        x=round(x, 1),
        y=round(y, 1),
        text=written(said),
        text_anchor=anchor,  # type: ignore[arg-type]
        font_weight="bold" if bold else None,
        **fill(colour),
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dash: str = ""
) -> svg.Line:
    return svg.Line(
        x1=round(x1, 1),
        y1=round(y1, 1),
        x2=round(x2, 1),
        y2=round(y2, 1),
        stroke_dasharray=[float(one) for one in dash.split()] or None,
        **stroke(colour, width),
    )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values → places on an axis; outside of it, its ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.0
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from one to the other, about so many."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / max(1, most)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next((unit * by for by in (1, 2, 5) if unit * by >= rough), unit * 10)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The area of a chart, with its axes."""

    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale

    def axes(
        self,
        x_name: str,
        y_name: str,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_told: Callable[[float], str] = "{:g}".format,
        y_told: Callable[[float], str] = "{:g}".format,
    ) -> list[svg.Element]:
        made: list[svg.Element] = []
        for one in y_ticks:
            at = self.y(one)
            made.append(line(self.left, at, self.right, at, "line"))
            made.append(text(self.left - 6, at + 4, y_told(one), anchor="end"))
        for one in x_ticks:
            at = self.x(one)
            made.append(line(at, self.bottom, at, self.bottom + 4, "dim"))
            made.append(text(at, self.bottom + 17, x_told(one), anchor="middle"))
        made.append(line(self.left, self.bottom, self.right, self.bottom, "dim"))
        made.append(text(self.right, self.bottom + 33, x_name, anchor="end"))
        made.append(text(4, self.top - 8, y_name))
        return made


def plot(
    width: float,
    height: float,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    top: float = 26,
    left: float = 52,
) -> Plot:
    right, bottom = width - 16, height - 42
    return Plot(
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        x=Scale(low=x[0], high=x[1], start=left, end=right),
        y=Scale(low=y[0], high=y[1], start=bottom, end=top),
    )
