"""A build's report on its engine: its interface, its types, and how it was built."""

from __future__ import annotations

from farm.reports.layers import ComputeView
from farm.reports.provider import ProviderChoice
from farm.reports.records import Count, OpenRecord, Record
from farm.specs.options import BuilderOptions
from farm.specs.shapes import Profile, TensorSpec


class TimingCacheUse(OpenRecord):
    """The timing cache a build started from, and what it found there."""

    digest: str | None = None
    revision: Count | None = None
    taken: bool | None = None
    entries_before: Count | None = None
    entries_after: Count | None = None
    misses: Count | None = None
    hit: bool | None = None


class Description(Record):
    """Kept with an engine's row. Inputs and outputs are as the runtime reports them."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    profiles: list[Profile]
    differences: list[str] | None = None
    compute: ComputeView | None = None
    options: BuilderOptions | None = None
    timing_cache: TimingCacheUse | None = None
    provider: ProviderChoice | None = None
    peak_memory_bytes: Count | None = None
    same: str | None = None  #: common to all judgements of one engine; older rows have none
