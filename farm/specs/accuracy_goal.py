"""What a calibration has to keep of a model's accuracy, and which layers it leaves to the user."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from farm.specs.preprocess import Preprocess
from farm.specs.tasks import Metric, TaskOptions
from farm.specs.values import Value

#: How long a calibration looks for what meets its goal, unless told otherwise.
BUDGET_S = 600
MOST_BUDGET_S = 6 * 3600

#: The time of a quantised forward pass over that of one in fp32.
LatencyRatio = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]

BudgetSeconds = Annotated[int, Field(ge=0, le=MOST_BUDGET_S)]

#: Names of a graph's operators, with ``*`` and ``?``.
Patterns = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=200)], ...],
    Field(max_length=64),
]


class AccuracyGoal(Value):
    """The largest drop of a metric, in each form in which the graph will run."""

    metric: Metric | None = None
    task: TaskOptions = TaskOptions()
    max_drop: float
    max_latency_ratio: LatencyRatio | None = None  #: of the engine for CPUs
    on_cpus: bool = False  #: in integers, with weights of seven bits
    on_gpus: bool = False  #: as the graph is written
    preprocess: Preprocess | None = None  #: of the samples that judge, if they are images
    budget_s: BudgetSeconds = BUDGET_S


class Pins(Value):
    """Operators that stay in floats, and those that stay quantised, whatever a search finds."""

    floats: Patterns = ()
    quantized: Patterns = ()
