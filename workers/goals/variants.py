"""Ways to quantise all of a graph that cost an engine no time: plain, biases corrected, channels equal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from farm.errors import FarmError
from farm.specs.accuracy_goal import AccuracyGoal, Pins
from workers.goals import bias, equalised, faster
from workers.goals.judging import BROKEN, Forms, Judged
from workers.goals.pins import pinned
from workers.goals.trail import Trail
from workers.goals.units import Units, units_of, without
from workers.inputs.batch import Shapes
from workers.inputs.samples import Arrays, Runnable
from workers.quantize.magnitudes import Magnitudes


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a search works with.

    Parameters:
        source: the unquantised graph.
        plain: the same quantised.
        again: quantises another form of the source.
        seen: the magnitudes of a quantised graph's values, by which GPUs' types are chosen.
        batches: of the calibration data, as many as bias correction and ranges need.
        shapes: of the inputs at the profile's opt.
    """

    source: onnx.ModelProto
    plain: onnx.ModelProto
    again: Callable[[onnx.ModelProto], onnx.ModelProto]
    seen: Callable[[onnx.ModelProto], Magnitudes]
    batches: Sequence[Arrays]
    shapes: Shapes
    folder: Path


@dataclass(kw_only=True)
class Variant:
    """A way to quantise all of a graph.

    Parameters:
        quantized: with the biases that it had.
    """

    name: str
    source: onnx.ModelProto
    quantized: onnx.ModelProto
    units: Units
    forms: Forms
    floats: frozenset[str]  #: units that the user keeps in floats
    kept: frozenset[str]  #: units that the user keeps quantised
    corrected: bias.Corrected | None = None
    judged: Judged = field(default_factory=lambda: Judged(drop=BROKEN, source=0.0, error=BROKEN))

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
    given: Given, goal: AccuracyGoal, pins: Pins, trail: Trail, has_time: Callable[[], bool]
) -> Iterator[Variant]:
    """Plain first, then each other way, as long as there is time to judge one more."""
    plain = _variant("plain", given, given.source, given.plain, goal, pins)
    yield plain
    if has_time():
        fixed = _corrected(plain, given, trail)
        if fixed is not None:
            yield fixed
    if not has_time():
        return
    trail.phase("equalise channels")
    even = equalised.equalised(given.source, given.batches, given.folder)
    if even is None:
        return
    source, count = even
    print(f"the channels of {count} activations are equalised", flush=True)
    try:
        again = _variant("equalised", given, source, given.again(source), goal, pins)
    except FarmError as err:
        print(f"the equalised graph can't be quantised: {err.detail}", flush=True)
        return
    yield again
    fixed = _corrected(again, given, trail) if has_time() else None
    if fixed is not None:
        yield fixed


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


def _corrected(variant: Variant, given: Given, trail: Trail) -> Variant | None:
    trail.phase("correct biases")
    made = bias.corrected(variant.quantized, variant.units, given.batches, given.folder)
    if made is None:
        return None
    is_plain = variant.name == "plain"
    return Variant(
        name="biases corrected" if is_plain else f"{variant.name}, biases corrected",
        source=variant.source,
        quantized=variant.quantized,
        units=variant.units,
        forms=variant.forms,
        floats=variant.floats,
        kept=variant.kept,
        corrected=made,
    )
