"""Looks for the fastest way to quantise a graph that keeps a metric.

Plain first. If that loses too much, what costs no time in the engine: corrected biases, equalised channels.
If that isn't enough, units are given back to floats. Each unit's harm is measured by quantising it alone, in
one session; then those that harm most for the time they save are floats first, as many as the goal takes.
What turns out to be harmless together is quantised again. All within a budget of seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from farm.errors import AccuracyDropped, FarmError
from farm.reports.records import MOST_LISTED
from farm.reports.search import Search
from farm.specs.accuracy_goal import AccuracyGoal, Pins
from workers.goals import bias, equalised, faster, harm
from workers.goals.costs import Costs, costs_of
from workers.goals.faster import kinds_of
from workers.goals.harm import Group
from workers.goals.judging import BROKEN, Forms, Judged, Jury
from workers.goals.pins import pinned
from workers.goals.trail import Trail
from workers.goals.units import Units, units_of, without
from workers.inputs.batch import Shapes
from workers.inputs.samples import Arrays, Runnable
from workers.quantize import placement

#: How much longer a judgement may take than the last one did.
_MARGIN = 1.5
#: A kind of units stays in floats if that takes less than this share of the time.
_GAIN = 0.97


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a search works with.

    Parameters:
        source: the unquantised graph.
        plain: the same quantised.
        again: quantises another form of the source.
        batches: of the calibration data, as many as bias correction and ranges need.
        shapes: of the inputs at the profile's opt.
    """

    source: onnx.ModelProto
    plain: onnx.ModelProto
    again: Callable[[onnx.ModelProto], onnx.ModelProto]
    batches: Sequence[Arrays]
    shapes: Shapes
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Found:
    quantized: onnx.ModelProto
    report: Search


@dataclass(kw_only=True)
class _Variant:
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
    corrected: bias.Corrected | None = None
    judged: Judged = field(default_factory=lambda: Judged(drop=BROKEN, source=0.0, error=BROKEN))

    def without(self, floats: Collection[str]) -> onnx.ModelProto:
        """The quantised graph in which these units compute in floats."""
        model = self.corrected.without(floats) if self.corrected else self.quantized
        return without(model, self.units, floats)


def found(given: Given, goal: AccuracyGoal, pins: Pins, jury: Jury, trail: Trail) -> Found:
    """The fastest graph found that meets the goal.

    Raises:
        AccuracyDropped: nothing that was tried does; says what came closest.
        CalibrationFailed: a pin names nothing.
        InvalidData: the labels don't fit the outputs.
    """
    return _Searcher(given, goal, pins, jury, trail).found()


class _Searcher:
    def __init__(
        self, given: Given, goal: AccuracyGoal, pins: Pins, jury: Jury, trail: Trail
    ) -> None:
        self._given, self._goal, self._pins = given, goal, pins
        self._jury, self._trail = jury, trail
        self._costs: dict[str, Costs] = {}
        self._closest: tuple[Judged, str] | None = None
        self._cut_short = False

    def found(self) -> Found:
        best: _Variant | None = None
        for variant in self._variants():
            self._judge_variant(variant, best)
            if best is None or variant.judged.rank < best.judged.rank:
                best = variant
            if self._meets(variant.judged):
                faster_so = self._faster(variant, variant.floats)
                done = self._confirmed(variant, faster_so)
                if done is None and faster_so != variant.floats:
                    done = self._confirmed(variant, variant.floats)
                if done is not None:
                    return done
        assert best is not None
        made = self._assigned(best)
        if made is None:
            raise self._missed()
        return made

    # What costs no time in the engine.

    def _variants(self) -> Iterator[_Variant]:
        given = self._given
        plain = self._variant("plain", given.source, given.plain)
        yield plain
        if self._has_time(self._to_judge()):
            fixed = self._corrected(plain)
            if fixed is not None:
                yield fixed
        if not self._has_time(self._to_judge()):
            return
        self._trail.phase("equalise channels")
        even = equalised.equalised(given.source, given.batches, given.folder)
        if even is None:
            return
        source, count = even
        print(f"the channels of {count} activations are equalised", flush=True)
        try:
            again = self._variant("equalised", source, given.again(source))
        except FarmError as err:
            print(f"the equalised graph can't be quantised: {err.detail}", flush=True)
            return
        yield again
        fixed = self._corrected(again) if self._has_time(self._to_judge()) else None
        if fixed is not None:
            yield fixed

    def _variant(self, name: str, source: onnx.ModelProto, quantized: onnx.ModelProto) -> _Variant:
        units = units_of(quantized)
        floats, _ = pinned(quantized, units, self._pins)
        forms = Forms(self._goal, source, self._given.batches, self._given.folder)
        return _Variant(
            name=name,
            source=source,
            quantized=quantized,
            units=units,
            forms=forms,
            floats=frozenset(floats),
        )

    def _corrected(self, variant: _Variant) -> _Variant | None:
        self._trail.phase("correct biases")
        made = bias.corrected(
            variant.quantized, variant.units, self._given.batches, self._given.folder
        )
        if made is None:
            return None
        name = (
            "biases corrected" if variant.name == "plain" else f"{variant.name}, biases corrected"
        )
        fixed = self._variant(name, variant.source, variant.quantized)
        fixed.corrected = made
        return fixed

    def _judge_variant(self, variant: _Variant, best: _Variant | None) -> None:
        since = self._trail.spent_s
        self._trail.phase(f"judge {variant.name}")
        variant.judged = self._judged(variant, variant.floats)
        self._tell(
            variant,
            variant.floats,
            variant.name,
            variant.judged,
            since,
            kept=best is None or variant.judged.rank < best.judged.rank,
        )

    # Which units are floats.

    def _assigned(self, variant: _Variant) -> Found | None:
        """The fastest assignment found that meets the goal."""
        order = self._order(variant)
        if order is None:
            return None
        best: tuple[float, frozenset[str], list[Group]] | None = None
        for ranked in order:
            floats = self._fewest(variant, ranked)
            if floats is not None:
                time_ratio = self._costs_of(variant).predicted(self._int8(variant, floats))
                if best is None or time_ratio < best[0]:
                    best = time_ratio, floats, ranked
            if not self._has_time(self._to_judge()):
                break
        if best is None:
            return None
        floats = self._faster(variant, self._put_back(variant, best[1], best[2]))
        return self._until_it_holds(variant, floats, order[0])

    def _order(self, variant: _Variant) -> list[list[Group]] | None:
        """Groups of units, the first to be floats first: by harm for the time saved, and by harm."""
        pins = pinned(variant.quantized, variant.units, self._pins)
        free = [u.id for u in variant.units.all if u.id not in pins[0] | pins[1]]
        ranges = variant.forms.ranges(variant.quantized) if self._goal.on_cpus else None
        judged = harm.as_judged(variant.quantized, ranges)
        try:
            found = harm.of_units(
                judged, free, self._given.batches, self._trail, self._given.folder
            )
        except FarmError as err:  # what can't be toggled can't be ranked
            print(f"units can't be quantised one by one: {err.detail}", flush=True)
            return None
        self._cut_short |= self._trail.left_s <= 0
        return harm.orders(found, self._costs_of(variant)) if found else None

    def _fewest(self, variant: _Variant, ranked: Sequence[Group]) -> frozenset[str] | None:
        """The shortest beginning of the order that meets the goal, by bisection; None without one."""
        low, high = (
            0,
            self._most_groups(variant, ranked, variant.floats) + 1,
        )  # none misses, as was seen before
        best: frozenset[str] | None = None
        while high - low > 1:
            if not self._has_time(self._to_judge()):
                break
            middle = (low + high) // 2
            floats = variant.floats.union(*ranked[:middle])
            if self._meets(self._try(variant, floats)):
                best, high = floats, middle
            else:
                low = middle
        return best

    def _most_groups(
        self, variant: _Variant, ranked: Sequence[Group], given: Collection[str]
    ) -> int:
        """How many more than those given may be floats so that a product is left in integers."""
        floats = set(given)
        for number, group in enumerate(ranked):
            floats |= group
            if not self._int8_products(variant, floats):
                return number
        return len(ranked)

    def _put_back(
        self, variant: _Variant, floats: frozenset[str], order: Sequence[Group]
    ) -> frozenset[str]:
        """Quantise again what the goal doesn't miss: the least harmful first, half of them at once."""
        costs = self._costs_of(variant)
        freed = [
            group
            for group in reversed(order)
            if group <= floats - variant.floats and sum(costs.saved[unit] for unit in group) > 0
        ]
        waiting = [freed]
        while waiting and self._has_time(self._to_judge()):
            part = waiting.pop(0)
            fewer = floats.difference(*part)
            if not part:
                continue
            # All of it was seen to miss.
            if len(part) < len(freed) and self._meets(self._try(variant, fewer)):
                floats = fewer
            elif len(part) > 1:
                half = (len(part) + 1) // 2
                waiting += [part[:half], part[half:]]
        return floats

    def _faster(self, variant: _Variant, floats: frozenset[str]) -> frozenset[str]:
        """Leave in floats what a CPU computes faster so, as measured: kinds of units, one after another."""
        if not self._goal.on_cpus or self._goal.on_gpus:
            return floats
        _, kept = pinned(variant.quantized, variant.units, self._pins)
        for kind, units in kinds_of(
            variant.quantized, variant.units, self._costs_of(variant)
        ).items():
            more = floats | (units - kept)
            if more == floats or not self._int8_products(variant, more):
                continue
            if not self._has_time(self._to_judge() + 2 * faster.MOST_S):
                break
            self._trail.phase(f"time {kind} in floats")
            ratio = faster.ratio(
                self._engine(variant, more), self._engine(variant, floats), self._given.batches[0]
            )
            print(f"with {kind} in floats it takes {ratio:.2f} of the time", flush=True)
            if ratio < _GAIN and self._meets(self._try(variant, more)):
                floats = more
        return floats

    def _engine(self, variant: _Variant, floats: frozenset[str]) -> Runnable:
        return variant.forms.on_cpu(variant.without(floats))

    def _until_it_holds(
        self, variant: _Variant, floats: frozenset[str], order: Sequence[Group]
    ) -> Found | None:
        """Give more units to floats until the goal is met where it is held out, too."""
        step = 1
        while True:
            done = self._confirmed(variant, floats)
            if done is not None:
                return done
            rest = [group for group in order if not group <= floats]
            step = min(step, self._most_groups(variant, rest, floats))
            if not step or not self._has_time(self._to_judge()):
                return None
            more, step = floats.union(*rest[:step]), 2 * step
            floats = more

    # Trying.

    def _try(self, variant: _Variant, floats: frozenset[str]) -> Judged:
        since = self._trail.spent_s
        what = self._words(variant, floats)
        self._trail.phase(f"try {what}")
        judged = self._judged(variant, floats)
        self._tell(variant, floats, what, judged, since, kept=self._meets(judged))
        return judged

    def _confirmed(self, variant: _Variant, floats: frozenset[str]) -> Found | None:
        """What was found, if it also meets the goal where it is held out, and on the whole."""
        since = self._trail.spent_s
        what = self._words(variant, floats)
        self._trail.phase("check what is held out")
        quantized = variant.without(floats)
        held, whole = self._jury.finally_(variant.forms.of(quantized))
        meets = self._meets(held) and self._meets(whole)
        self._tell(variant, floats, f"{what}, all samples", whole, since, kept=meets, held=held)
        if not meets:
            return None
        costs = self._costs_of(variant)
        int8 = self._int8(variant, floats)
        names = [unit.name for unit in variant.units.all if unit.id in floats]
        report = Search(
            metric=str(self._goal.metric or "top1"),
            max_drop=self._goal.max_drop,
            source=whole.source,
            budget_s=self._goal.budget_s,
            spent_s=round(self._trail.spent_s, 3),
            samples=self._jury.chosen_by.count,
            held_out=self._jury.held.count if self._jury.held is not self._jury.all else 0,
            drop=whole.drop,
            held_out_drop=held.drop,
            int8_share=costs.share(int8),
            predicted_time=costs.predicted(int8),
            measured_times=costs.measured,
            method=variant.name,
            units=len(variant.units.all),
            in_floats=[name[:4096] for name in names[:MOST_LISTED]],
            tried=self._trail.tried,
            cut_short=self._cut_short,
        )
        return Found(quantized=quantized, report=report)

    def _judged(self, variant: _Variant, floats: Collection[str]) -> Judged:
        quantized = variant.without(floats)
        judged = self._jury.judge(variant.forms.of(quantized))
        if self._closest is None or judged.rank < self._closest[0].rank:
            self._closest = judged, self._words(variant, frozenset(floats))
        return judged

    def _meets(self, judged: Judged) -> bool:
        return judged.drop <= self._goal.max_drop

    def _to_judge(self) -> float:
        """The seconds that another judgement will take, and a check of what is held out after it."""
        jury = self._jury
        counts = jury.chosen_by.count + jury.all.count
        if jury.held is not jury.all:
            counts += jury.held.count
        return _MARGIN * jury.seconds * counts

    def _has_time(self, seconds: float) -> bool:
        if self._trail.left_s > seconds:
            return True
        self._cut_short = True
        return False

    def _tell(
        self,
        variant: _Variant,
        floats: frozenset[str],
        what: str,
        judged: Judged,
        since_s: float,
        *,
        kept: bool,
        held: Judged | None = None,
    ) -> None:
        costs, int8 = self._costs_of(variant), self._int8(variant, floats)
        self._trail.add(
            what,
            judged,
            share=costs.share(int8),
            time_ratio=costs.predicted(int8),
            since_s=since_s,
            kept=kept,
            held=held,
        )

    def _costs_of(self, variant: _Variant) -> Costs:
        if variant.name not in self._costs:
            self._costs[variant.name] = costs_of(
                variant.quantized,
                variant.units,
                self._given.shapes,
                placement.without_pairs(variant.quantized),
                self._given.batches[0],
                self._given.folder,
            )
        return self._costs[variant.name]

    def _int8(self, variant: _Variant, floats: Collection[str]) -> list[str]:
        return [unit.id for unit in variant.units.all if unit.id not in floats]

    def _int8_products(self, variant: _Variant, floats: Collection[str]) -> int:
        return sum(unit.id not in floats for unit in variant.units.products)

    def _words(self, variant: _Variant, floats: frozenset[str]) -> str:
        chosen = [unit for unit in variant.units.all if unit.id in floats]
        if not chosen:
            return variant.name
        products = sum(unit.is_product for unit in chosen)
        told = f"{variant.name}, {products} of {len(variant.units.products)} layers in floats"
        pairs = len(chosen) - products
        return f"{told} and {pairs} tensors unrounded" if pairs else told

    def _missed(self) -> AccuracyDropped:
        assert self._closest is not None
        judged, what = self._closest
        metric = self._goal.metric or "top1"
        drop = (
            "outputs that are broken" if judged.drop >= BROKEN else f"a drop of {judged.drop:.4f}"
        )
        tried = len(self._trail.tried) + self._trail.left_out
        cut = f", which ended the {self._goal.budget_s} s it may take" if self._cut_short else ""
        return AccuracyDropped(
            f"no quantised graph keeps {metric} within {self._goal.max_drop:g} of its {judged.source:.4f}: "
            f"of {tried} tried{cut}, the closest has {drop} ({what})",
            hint="choose fp16, raise max_drop, add calibration data"
            + (
                ", or give the search more seconds (--calibration-budget)"
                if self._cut_short
                else ""
            ),
        )
