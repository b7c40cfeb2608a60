"""All pictures of a calibration, below each other in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import svg

from farm.errors import NotFound
from farm.pictures import ranges as of_ranges
from farm.pictures.canvas import Picture, text
from farm.pictures.noise import noise
from farm.pictures.ranges import ranges
from farm.pictures.tried import tried
from farm.reports.quantization import Quantization

#: Histograms in one file, and on a page: the noisiest tensors'.
MOST_RANGES = 6
_GAP, _HEADING = 16, 26


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures of what is known."""

    noise: Picture | None
    ranges: Sequence[Picture]
    tried: Picture | None


def drawn(found: Quantization) -> Drawn:
    histograms = found.histograms.tensors[:MOST_RANGES] if found.histograms else []
    return Drawn(
        noise=noise(found.snr_db) if found.snr_db else None,
        ranges=[ranges(one) for one in histograms],
        tried=tried(found.search) if found.search and found.search.tried else None,
    )


def of(found: Quantization) -> str:
    """An SVG file of all of them; what isn't known is said."""
    made = drawn(found)
    parts: list[svg.Element] = []
    at = 0.0

    def heading(said: str) -> None:
        nonlocal at
        parts.append(text(4, at + 18, said, colour="front", bold=True))
        at += _HEADING

    heading("Signal to noise by layer")
    if made.noise is None:
        parts.append(text(4, at + 12, found.snr_reason or "unknown"))
        at += _HEADING
    else:
        parts.append(made.noise.nested(at))
        at += made.noise.height + _GAP
    heading("Ranges over the values’ histograms, the noisiest tensors first")
    if not made.ranges:
        parts.append(text(4, at + 12, found.histograms_reason or "unknown"))
        at += _HEADING
    for row in range(0, len(made.ranges), 2):
        for column, one in enumerate(made.ranges[row : row + 2]):
            nested = one.nested(at)
            nested.x = column * of_ranges.WIDTH
            parts.append(nested)
        at += of_ranges.HEIGHT + _GAP
    if made.tried is not None:
        heading("Accuracy against time of each mix tried")
        parts.append(made.tried.nested(at))
        at += made.tried.height + _GAP
    told = [one.description for one in (made.noise, *made.ranges, made.tried) if one is not None]
    return Picture(
        title="How the engine was quantised",
        description=" ".join(told) or "Nothing of it was measured.",
        width=2 * of_ranges.WIDTH,
        height=at,
        elements=parts,
    ).file()


def of_tensor(found: Quantization, tensor: str) -> str:
    """An SVG file of one tensor's histogram and ranges.

    Raises:
        NotFound: it has none.
    """
    histograms = found.histograms.tensors if found.histograms else []
    for one in histograms:
        if one.tensor == tensor:
            return ranges(one).file()
    known = ", ".join(repr(one.tensor[:60]) for one in histograms[:10])
    raise NotFound(
        f"there is no histogram of {tensor[:100]!r}",
        hint=f"there are those of {known}"
        if known
        else found.histograms_reason or "there are none",
    )
