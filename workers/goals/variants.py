"""Ways to quantise all of a graph that cost an engine no time.

Plain, biases corrected, channels equal, and weights rounded by what their products read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from farm.errors import FarmError
from farm.specs.accuracy_goal import AccuracyGoal, Pins
from workers.goals import bias, equalised, faster, harm, rounding
from workers.goals.judging import Forms, Judged
from workers.goals.pins import pinned
from workers.goals.trail import Trail
from workers.goals.units import Units, units_of, without
from workers.inputs.batch import Batch, Shapes
from workers.inputs.samples import Arrays, Runnable
from workers.quantize.magnitudes import Magnitudes

#: The share of the seconds left that rounding weights may take.
_SHARE = 0.35


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a search works with.

    Parameters:
        source: the unquantised graph.
        plain: the same quantised.
        again: quantises another form of the source.
        seen: the magnitudes of a quantised graph's values, by which GPUs' types are chosen.
        batches: of the calibration data, as many as bias correction and ranges need.
        batch: says where a batch may be cut.
        shapes: of the inputs at the profile's opt.
    """

    source: onnx.ModelProto
    plain: onnx.ModelProto
    again: Callable[[onnx.ModelProto], onnx.ModelProto]
    seen: Callable[[onnx.ModelProto], Magnitudes]
    batches: Sequence[Arrays]
    batch: Batch
    shapes: Shapes
    folder: Path


@dataclass(kw_only=True)
class Variant:
    """A way to quantise all of a graph.

    Parameters:
        quantized: with the biases that it had.
        before: weights that were rounded anew → those that they were made from, which it has besides.
    """

    name: str
    source: onnx.ModelProto
    quantized: onnx.ModelProto
    units: Units
    forms: Forms
    floats: frozenset[str]  #: units that the user keeps in floats
    kept: frozenset[str]  #: units that the user keeps quantised
    before: Mapping[str, str] = field(default_factory=dict)
    corrected: bias.Corrected | None = None
    judged: Judged = field(default_factory=Judged.unknown)

    def without(self, floats: Collection[str]) -> onnx.ModelProto:
        """The quantised graph in which these units compute in floats."""
        model = self.corrected.without(floats) if self.corrected else self.quantized
        return without(model, self.units, floats)

    def on_cpu(self, floats: Collection[str]) -> Runnable:
        """The engine for CPUs of the graph in which these units compute in floats."""
        return self.forms.on_cpu(self.without(floats))

    def latency_ratio(self, floats: Collection[str], batch: Arrays) -> float:
        """The engine's time for this batch over that of the source's, both on this machine's CPU."""
        return faster.ratio(self.on_cpu(floats), self.forms.source_on_cpu(), batch)

    def int8(self, floats: Collection[str]) -> list[str]:
        """The units that are quantised beside these floats."""
        return [unit.id for unit in self.units.all if unit.id not in floats]

    def int8_products(self, floats: Collection[str]) -> int:
        return sum(unit.id not in floats for unit in self.units.products)

    def words(self, floats: Collection[str]) -> str:
        """How the trail names the graph in which these units compute in floats."""
        chosen = [unit for unit in self.units.all if unit.id in floats]
        if not chosen:
            return self.name
        products = sum(unit.is_product for unit in chosen)
        told = f"{self.name}, {products} of {len(self.units.products)} layers in floats"
        pairs = len(chosen) - products
        return f"{told} and {pairs} tensors unrounded" if pairs else told


def variants(
    given: Given, goal: AccuracyGoal, pins: Pins, trail: Trail, has_time: Callable[[float], bool]
) -> Iterator[Variant]:
    """Plain first, then each other way, as long as there is time to judge one more.

    Each is judged by whoever takes it, before it asks for the next.

    Parameters:
        has_time: whether there is so much time besides what it takes to judge one.
    """
    made = []
    for one in _whole(given, goal, pins, trail, has_time):
        made.append(one)
        yield one
    if has_time(0.0):
        best = min(made, key=lambda one: one.judged.rank)
        again = _rounded(best, given, goal, trail, has_time)
        if again is not None:
            yield again


def _whole(
    given: Given, goal: AccuracyGoal, pins: Pins, trail: Trail, has_time: Callable[[float], bool]
) -> Iterator[Variant]:
    """Plain and equalised, each also with corrected biases."""
    variant: Variant | None = _variant("plain", given, given.source, given.plain, goal, pins)
    while variant is not None:
        yield variant
        fixed = _corrected(variant, given, goal, trail) if has_time(0.0) else None
        if fixed is not None:
            yield fixed
        is_last = variant.source is not given.source or not has_time(0.0)
        variant = None if is_last else _equalised(given, goal, pins, trail)


def _equalised(given: Given, goal: AccuracyGoal, pins: Pins, trail: Trail) -> Variant | None:
    trail.phase("equalise channels")
    even = equalised.equalised(given.source, given.batches, given.folder)
    if even is None:
        return None
    source, count = even
    print(f"the channels of {count} activations are equalised", flush=True)
    try:
        return _variant("equalised", given, source, given.again(source), goal, pins)
    except FarmError as err:
        print(f"the equalised graph can't be quantised: {err.detail}", flush=True)
        return None


def _variant(
    name: str,
    given: Given,
    source: onnx.ModelProto,
    quantized: onnx.ModelProto,
    goal: AccuracyGoal,
    pins: Pins,
) -> Variant:
    units = units_of(quantized)
    floats, kept = pinned(quantized, units, pins)
    return Variant(
        name=name,
        source=source,
        quantized=quantized,
        units=units,
        forms=Forms(goal, source, given.batches, given.seen, given.folder),
        floats=frozenset(floats),
        kept=frozenset(kept),
    )


def _corrected(variant: Variant, given: Given, goal: AccuracyGoal, trail: Trail) -> Variant | None:
    trail.phase("correct biases")
    made = bias.corrected(
        variant.quantized, variant.units, given.batches, given.folder, seven_bits=goal.on_cpus
    )
    if made is None:
        return None
    is_plain = variant.name == "plain"
    name = "biases corrected" if is_plain else f"{variant.name}, biases corrected"
    return replace(variant, name=name, corrected=made, judged=Judged.unknown())


def _rounded(
    variant: Variant,
    given: Given,
    goal: AccuracyGoal,
    trail: Trail,
    has_time: Callable[[float], bool],
) -> Variant | None:
    """The same with weights rounded anew, and with biases corrected for those."""
    trail.phase("round weights")
    until_s = trail.left_s * (1 - _SHARE)
    ranges = variant.forms.ranges(variant.quantized) if goal.on_cpus else None
    found = rounding.rounded(
        variant.quantized,
        harm.as_judged(variant.quantized, ranges),
        variant.units,
        given.batches,
        given.batch,
        given.folder,
        seven_bits=goal.on_cpus,
        has_time=lambda: has_time(until_s),
    )
    if found is None:
        return None
    made = bias.corrected(
        found.model, variant.units, given.batches, given.folder, seven_bits=goal.on_cpus
    )
    return replace(
        variant,
        name="rounded by GPTQ" if variant.source is given.source else "equalised, rounded by GPTQ",
        quantized=found.model,
        before=found.before,
        corrected=made,
        judged=Judged.unknown(),
    )
