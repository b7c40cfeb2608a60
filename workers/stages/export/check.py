"""Checks that the ONNX graph reproduces the source's outputs, on the user's samples or random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from farm.errors import ExportDiverged
from farm.specs.shapes import Profile, TensorSpec
from farm.specs.source import DataKind
from farm.stages import Check, ExportParams
from workers.backends.ort.cpu import OrtModel
from workers.graphs import floats
from workers.inputs.batch import Arrays, Batch
from workers.inputs.samples import Runnable, samples_for
from workers.inputs.standins import tried
from workers.measure.difference import NO_DIFFERENCE, Difference, difference
from workers.stages.base import Stage

#: A larger error, as a share of the output's largest magnitude, is more than rounding.
TOLERANCE = 1e-3
#: For sources in these types, which frameworks round in different places: 16 steps of the type.
HALF_TOLERANCES = {"float16": 2.0**-6, "bfloat16": 2.0**-3}
#: If a profile allows many sizes, a batch this small is enough to show that the batch is dynamic.
SMALL_BATCH = 2
SEED = 0


def tolerance_of(model: onnx.ModelProto) -> float:
    """The largest error allowed for the graph's types, as a share of the output's largest magnitude."""
    return max(HALF_TOLERANCES.get(name, TOLERANCE) for name in floats.float_types(model) or [""])


def has_samples(stage: Stage) -> bool:
    """Whether the user supplied any samples."""
    return not stage.inputs.keys().isdisjoint((DataKind.CALIBRATION, DataKind.EVALUATION))


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data for source and graph: some batches, the number of samples in each, and their kind."""

    batches: list[Arrays]
    sizes: list[int]
    kind: DataKind
    random: list[str]  #: how random ones were drawn

    def check(self, **found: Any) -> Check:
        """A check on these data, with its results."""
        drawn = {"random": self.random} if self.random else {}
        return Check(data=str(self.kind), batches=self.sizes, **drawn, **found)


def data_for(
    stage: Stage, source: Runnable, inputs: Sequence[TensorSpec], profiles: Sequence[Profile]
) -> Data:
    """The user's samples, which have the first profile's shapes, and random ones for other profiles or
    without samples: at two batch sizes if the batch is dynamic."""
    params = stage.params
    assert isinstance(params, ExportParams)
    batches: list[Arrays] = []
    sizes: list[int] = []
    drawn: list[str] = []
    kind = DataKind.RANDOM
    for number, profile in enumerate(profiles):
        batch = Batch.of(inputs, profile)
        sizes += batch_sizes(batch)
        if number == 0 and has_samples(stage):
            samples, kind = samples_for(
                stage.inputs,
                inputs,
                profile,
                preprocess=params.preprocess,
                fixed=params.fixed_inputs,
            )
            count = batch.count(samples)
            for size in batch_sizes(batch):
                batches.append(batch.take(samples, [one % count for one in range(size)]))
            continue
        for size in batch_sizes(batch):
            arrays, how = tried(
                source, inputs, batch.at(profile, size), seed=SEED + len(batches), profile=profile
            )
            batches.append(arrays)
            drawn.append(str(how))
    return Data(batches=batches, sizes=sizes, kind=kind, random=list(dict.fromkeys(drawn)))


def compare(
    stage: Stage,
    expected: Runnable,
    actual: OrtModel,
    inputs: Sequence[TensorSpec],
    profiles: Sequence[Profile],
    tolerance: float = TOLERANCE,
) -> Check:
    """Compare the outputs of source and graph, and return the record of the check.

    Raises:
        ExportDiverged: if the outputs differ by more than the tolerance.
    """
    total: Difference = NO_DIFFERENCE
    data = data_for(stage, expected, inputs, profiles)
    for arrays in data.batches:
        total = total.merged(difference(expected.run(arrays), actual.run(arrays)))
    why = total.beyond(tolerance)
    if why:
        raise ExportDiverged(
            f"the ONNX graph's outputs aren't the source's: {why}",
            hint="put the model in eval mode before torch.export, and check for random operators",
        )
    return data.check(max_abs_error=total.max_abs_error, max_rel_error=total.max_rel_error)


def batch_sizes(batch: Batch) -> list[int]:
    """The batch sizes to check: two if the batch is dynamic."""
    if not batch.is_dynamic:
        return [batch.opt]
    other = max(batch.min, min(SMALL_BATCH, batch.max))
    another = batch.min if batch.min != batch.opt else batch.max
    return list(dict.fromkeys([other if other != batch.opt else another, batch.opt]))
