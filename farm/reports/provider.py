"""How an ONNX Runtime engine for a GPU was made fast: what was tried there, and what was chosen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.reports.records import Count, Number, OpenRecord, Text, Word

_MOST_OPTIONS = 32
_MOST_TRIED = 32

Options = Annotated[dict[Word, Word], Field(max_length=_MOST_OPTIONS)]


class Trial(OpenRecord):
    """One way to run the graph, timed at the first profile's ``opt`` batch on the GPU of the build."""

    options: Options  #: of the provider
    fused_attention: bool
    p50_ms: Number | None = None
    cuda_graph: bool | None = None  #: whether it was timed as one
    reason: Text | None = None  #: why it has no figure, or wasn't taken


class ProviderChoice(OpenRecord):
    """The provider options an engine runs with, and why."""

    options: Options  #: pass these to ``CUDAExecutionProvider``; they are in the file too
    fused_attention: Count = 0  #: places where attention is one operator
    batch: Count | None = None
    budget_s: Number | None = None
    tried: Annotated[list[Trial], Field(max_length=_MOST_TRIED, fail_fast=True)] = []
