"""How a quantised engine does and how it was quantised, in a few lines and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from farm.cli import show
from farm.errors import NotFound

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.reports.quantization import Quantization
    from farm.reports.search import Search
    from farm.schemas.engines import EngineView

_NAMED = 10


def lines(view: EngineView) -> list[str]:
    """The gate's figures with their intervals, and a line on its quantisation if it is quantised."""
    accuracy, said = view.accuracy, []
    if accuracy.task:
        metric = "top1 " if accuracy.task.metric == "top1" else ""
        drop = show.drop_interval(accuracy.task)
        said.append(f"{metric}{show.task(accuracy.task)}{f', drop {drop}' if drop else ''}")
    agrees = show.agrees(accuracy)
    if agrees:
        said.append(f"{agrees}, judged on {show.judged_on(accuracy)} samples")
    if not said:
        said.append("accuracy unknown: nothing was compared")
    if view.quantization is not None:
        said.append(view.quantization.told(view.precision.computes_in))
    return said


def known(farm: Farm, view: EngineView) -> Quantization | None:
    """All that the farm knows of it; None if it isn't quantised, or an older farm knows nothing."""
    from farm.specs.precision import QUANTIZED

    if view.precision not in QUANTIZED:
        return None
    try:
        return farm.quantization(view.id)
    except NotFound:
        return None


def details(found: Quantization) -> None:
    """Which layers quantisation hurts most, and which rules left some in floats."""
    for rule, names in found.left_in_float.items():
        listed = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        show.line(f"left in floats, {rule}: {listed}")
    if found.search is not None:
        _search(found.search)
    kept = found.tensors[:_NAMED]
    if not kept:
        return
    show.line(f"the noisiest of {len(found.tensors)} quantised tensors:")
    rows = [
        (
            show.NONE if one.snr_db is None else f"{one.snr_db:.1f} dB",
            one.name,
            *((one.histogram.taken if one.histogram else show.NONE,) if found.histograms else ()),
        )
        for one in kept
    ]
    headers = ("signal to noise", "tensor", "range")
    show.table(headers[: len(rows[0])], rows, keep=headers[:1])
    if found.histograms is None and found.histograms_reason:
        show.line(f"ranges {found.histograms_reason}")


def _search(search: Search) -> None:
    """What was tried to keep the accuracy."""
    show.line(search.told)
    rows = [
        (
            "broken" if one.drop is None else f"{one.drop:.4f}",
            "" if one.int8_share is None else f"{one.int8_share:.0%}",
            "" if one.predicted_time is None else f"{one.predicted_time:.2f}",
            "" if one.latency_ratio is None else f"{one.latency_ratio:.2f}",
            f"{one.what} (chosen)" if number == search.chosen else one.what,
        )
        for number, one in enumerate(search.tried, start=1)
    ]
    if rows:
        figures = ("drop", "int8", "time", "measured")
        show.table((*figures, "tried"), rows, keep=figures)


def draw(farm: Farm, engine: str, tensor: str | None, path: Path, *, as_json: bool) -> None:
    """Write the farm's picture of it.

    Raises:
        NotFound: it isn't quantised, or the tensor has no histogram.
        OSError
    """
    path.write_bytes(farm.quantization_picture(engine, tensor))
    if as_json:
        show.document({"picture": str(path)})
    else:
        show.line(str(path))
