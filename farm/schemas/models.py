"""Models and their versions."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from farm.reports.interfaces import Interface
from farm.schemas.aliases import AliasView, Beside
from farm.schemas.base import Answer, Digest, Page, Said, SaidLabels
from farm.schemas.builds import BuildSummary
from farm.schemas.engines import EngineView
from farm.specs.precision import Precision
from farm.specs.shapes import FixedInputs
from farm.specs.source import Architecture, SourceFormat


class ModelView(Answer):
    name: str
    labels: SaidLabels = {}
    note: Said | None = None
    versions: list[int]
    engines: int
    created_at: datetime


class ModelPage(Page):
    items: list[ModelView]


class VersionView(Answer):
    """A source, with the inputs that are fixed in it and the architecture that it is of."""

    version: int
    source_digest: Digest
    source_format: SourceFormat
    fixed_inputs: FixedInputs = {}
    architecture: Architecture | None = None
    labels: SaidLabels = {}
    note: Said | None = None
    engines: int
    yanked: Said | None = Field(None, description="why no pull takes it by default")
    changes: list[str] = Field(
        [], description="how its inputs and outputs differ from those of the version before it"
    )
    interface: Interface | None = Field(
        None,
        description="its inputs and outputs, once they are known; of the versions in `detailed`",
    )
    complete: bool | None = Field(
        None,
        description="whether of one of its builds that ended, an engine for each GPU passed its gates; null "
        "for versions that aren't in `detailed`",
    )
    missing: list[str] = Field(
        [],
        description="what is missing to that, by the newest build; also of a complete version the "
        "builds that haven't ended",
    )
    held_back: bool = Field(
        False,
        description="nobody has said that they may (`new_inputs`): no pull takes it by default, "
        "and no alias names it",
    )
    created_at: datetime


class Verdict(StrEnum):
    """What came of a version's engines for a GPU in a precision: the best of them."""

    PASSED = "passed"
    DOUBTFUL = "doubtful"
    YANKED = "yanked"


class Cell(Answer):
    version: int
    verdict: Verdict
    engines: list[str] = Field(description="the ids of the engines that have it, newest first")


class MatrixRow(Answer):
    """A GPU and a precision, with every version that has engines for them."""

    gpu: str
    precision: Precision
    cells: list[Cell]


class Behind(Answer):
    """What an alias's version lacks beside the newest one that may be pulled."""

    version: int
    newest: int
    targets: list[str] = Field(
        description="GPU and precision of engines that passed, for which it has none",
        examples=[["h100 fp16"]],
    )
    better: list[Beside] = Field(
        description="the newest's engines that are faster, or better at the task on the same data"
    )


class ModelDetail(Answer):
    name: str
    created_at: datetime
    labels: SaidLabels = {}
    note: Said | None = None
    aliases: list[AliasView] = []
    versions: list[VersionView]
    engines: list[EngineView] = Field(description="the newest version's engines")
    detailed: list[int] = Field(
        [], description="the versions that are shown in detail: the newest, and those with an alias"
    )
    matrix: list[MatrixRow] = Field([], description="of the versions in `detailed`")
    prod_lacks: Behind | None = Field(
        None, description="null without the alias `prod`, or if it names the newest version"
    )
    running: list[BuildSummary] = Field([], description="its builds that haven't ended")
