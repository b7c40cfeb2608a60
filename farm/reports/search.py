"""How a calibration looked for what keeps the accuracy: the trail of what it tried."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.reports.records import MOST_LISTED, Count, Name, Number, Record, Share, Text, Word
from farm.specs.counted import counted


class Tried(Record):
    """One way to quantise a graph."""

    what: Text
    drop: Number | None = Field(
        None,
        description="of the metric, on the samples to choose by; null if its outputs are broken",
    )
    held_out_drop: Number | None = Field(None, description="on the samples held out")
    error: Number | None = Field(
        None, description="RMS error of the outputs over their standard deviation"
    )
    int8_share: Share | None = Field(None, description="of all multiplications")
    predicted_time: Number | None = Field(
        None, description="of convolutions and matrix products, over their time in floats"
    )
    latency_ratio: Number | None = Field(
        None, description="the measured time of a forward pass over that in floats, on a CPU"
    )
    seconds: Number | None = None
    kept: bool = Field(False, description="whether the search went on from it")


class Search(Record):
    """What a goal led to."""

    metric: Word | None = None
    max_drop: Number
    max_latency_ratio: Number | None = None
    source: Number | None = Field(None, description="the metric of the unquantised graph")
    budget_s: Count
    spent_s: Number
    samples: Count = Field(description="that it chose by")
    held_out: Count = Field(description="by which nothing was chosen")
    drop: Number | None = Field(None, description="on all samples, of what was kept")
    held_out_drop: Number | None = None
    int8_share: Share | None = None
    predicted_time: Number | None = None
    latency_ratio: Number | None = Field(
        None,
        description="the measured time of a forward pass over that in floats, in ONNX Runtime on the CPU of "
        "the worker that searched; null unless a largest one was asked",
    )
    measured_times: bool = Field(
        False, description="whether operators' times were measured, else counted in multiplications"
    )
    method: Word | None = Field(None, description="what the assignment started from")
    units: Count | None = Field(None, description="parts that could be in floats or not")
    in_floats: Annotated[list[Name], Field(max_length=MOST_LISTED)] = Field(
        [], description="operators and tensors that could be quantised and aren't"
    )
    in_fp32: Annotated[list[Name], Field(max_length=MOST_LISTED)] = Field(
        [],
        description="operators that GPUs compute in fp32, since in fp16 the goal was missed",
    )
    tried: Annotated[list[Tried], Field(max_length=MOST_LISTED)] = []
    cut_short: bool = Field(False, description="whether the budget ended the search")

    @property
    def chosen(self) -> int | None:
        """The number, from 1, of the way that was taken: the last that the search went on from."""
        kept = [number for number, one in enumerate(self.tried, start=1) if one.kept]
        return kept[-1] if kept else None

    @property
    def told(self) -> str:
        """``top1 may drop by 0.01 and drops by 0.004, with 96% of the multiplications in int8; …``."""
        share = (
            ""
            if self.int8_share is None
            else f", with {self.int8_share:.0%} of the multiplications in int8"
        )
        drop = (
            "nobody knows by how much it does" if self.drop is None else f"drops by {self.drop:.4f}"
        )
        speed = (
            ""
            if self.latency_ratio is None
            else f", and takes {self.latency_ratio:.2f} of floats' time on a CPU"
            + ("" if self.max_latency_ratio is None else f" of {self.max_latency_ratio:g} allowed")
        )
        ended = ", which was all it might take" if self.cut_short else ""
        return (
            f"{self.metric or 'top1'} may drop by {self.max_drop:g} and {drop}{share}{speed}; "
            f"{counted(len(self.tried), 'way')} tried in {self.spent_s:.0f} s{ended}"
        )
