"""What a search tries: judged, told, and within its seconds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

import onnx

from farm.errors import AccuracyDropped, LatencyMissed, StageFailed
from farm.reports.records import MOST_LISTED
from farm.reports.search import Search
from farm.specs.accuracy_goal import AccuracyGoal
from farm.specs.counted import counted
from workers.goals import faster, halves
from workers.goals.costs import Costs, costs_of
from workers.goals.halves import Halved
from workers.goals.judging import BROKEN, Judged, Jury
from workers.goals.trail import Trail
from workers.goals.variants import Given, Variant
from workers.quantize import placement

#: How much longer a judgement may take than the last one did.
_MARGIN = 1.5


@dataclass(frozen=True, kw_only=True)
class Found:
    """What meets the goal.

    Parameters:
        wide: operators that GPUs compute in fp32 for that, by their first outputs.
    """

    quantized: onnx.ModelProto
    report: Search
    wide: frozenset[str] = frozenset()


class Miss(Enum):
    """Why something isn't what the search looks for."""

    DROP = "drop"  #: it loses too much
    LATENCY = "latency"  #: it keeps the metric, and takes too long


@dataclass(frozen=True, kw_only=True)
class _Slow:
    """What keeps the metric, and takes too long."""

    latency_ratio: float
    drop: float
    what: str


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """A graph as engines are built of it.

    Parameters:
        held: where it is held out.
        whole: on all samples.
        wide: operators in fp32 that fp16 holds, by their first outputs; ``names`` by their names.
    """

    quantized: onnx.ModelProto
    held: Judged
    whole: Judged
    wide: frozenset[str]
    names: list[str]


class Attempts:
    """Judges graphs for a search, and remembers what came closest."""

    def __init__(self, given: Given, goal: AccuracyGoal, jury: Jury, trail: Trail) -> None:
        self.given, self.goal, self.trail = given, goal, trail
        self.cut_short = False  #: whether something was left out for want of time
        self._jury = jury
        self._costs: dict[str, Costs] = {}
        self._closest: tuple[Judged, str] | None = None
        self._fastest: _Slow | None = None

    def judge(self, variant: Variant, best: Variant | None) -> None:
        """Judge all of a variant quantised, beside the best before it."""
        since = self.trail.spent_s
        self.trail.phase(f"judge {variant.name}")
        variant.judged = self._judged(variant, variant.floats)
        is_best = best is None or variant.judged.rank < best.judged.rank
        self._tell(variant, variant.floats, variant.judged, since, kept=is_best)

    def meets(self, variant: Variant, floats: Collection[str]) -> bool:
        """Whether a variant meets the goal with these units in floats, where the search chooses."""
        since = self.trail.spent_s
        self.trail.phase(f"try {variant.words(floats)}")
        judged = self._judged(variant, floats)
        met = self.holds(judged)
        self._tell(variant, floats, judged, since, kept=met)
        return met

    def holds(self, judged: Judged) -> bool:
        return judged.drop <= self.goal.max_drop

    def confirmed(self, variant: Variant, floats: frozenset[str]) -> Found | Miss:
        """What was found, if it also meets the goal where it is held out, and on the whole."""
        since = self.trail.spent_s
        self.trail.phase("check what is held out")
        ended = self._ended(variant, floats)
        miss = None if self.holds(ended.held) and self.holds(ended.whole) else Miss.DROP
        latency_ratio, most = None, self.goal.max_latency_ratio
        if most is not None and miss is None:
            self.trail.phase("time it beside floats")
            latency_ratio = variant.latency_ratio(floats, self.given.batches[0])
            if latency_ratio > most:
                miss = Miss.LATENCY
                self._remember(latency_ratio, ended.whole.drop, variant.words(floats))
        self._tell(
            variant,
            floats,
            ended.whole,
            since,
            kept=miss is None,
            held=ended.held,
            latency_ratio=latency_ratio,
            wide=len(ended.names),
        )
        if miss is not None:
            return miss
        report = self._report(variant, floats, ended, latency_ratio)
        return Found(quantized=ended.quantized, report=report, wide=ended.wide)

    def _ended(self, variant: Variant, floats: frozenset[str]) -> _Ended:
        """How it does as its engines are built, with what loses too much in fp16 in fp32."""
        quantized = variant.without(floats)
        forms, wide = variant.forms, frozenset[str]()
        halved = forms.halved(quantized)
        held, whole = self._jury.finally_(forms.ends(quantized, halved))
        if halved is not None and not (self.holds(held) and self.holds(whole)):
            wide = self._in_fp32(variant, halved)
            if wide:
                self.trail.phase("check what is held out")
                held, whole = self._jury.finally_(forms.ends(quantized, halved, wide))
        names = halved.names(wide) if halved else []
        return _Ended(quantized=quantized, held=held, whole=whole, wide=wide, names=names)

    def _in_fp32(self, variant: Variant, halved: Halved) -> frozenset[str]:
        """Operators that miss the goal in fp16 where the search chooses; none if it isn't fp16 that does."""

        def meets(wide: frozenset[str]) -> bool:
            subjects = variant.forms.in_halves(halved, wide)
            return self.holds(self._jury.judge(subjects))

        self.trail.phase("find what misses in fp16")
        operators = halved.operators
        for wide, is_met in ((frozenset[str](), False), (frozenset(operators), True)):
            if not self.has_time() or meets(wide) is not is_met:
                return frozenset()
        return halves.in_fp32(operators, meets, self.has_time)

    def _remember(self, latency_ratio: float, drop: float, what: str) -> None:
        if self._fastest is None or latency_ratio < self._fastest.latency_ratio:
            self._fastest = _Slow(latency_ratio=latency_ratio, drop=drop, what=what)

    def has_time(self, seconds: float = 0.0) -> bool:
        """Whether there is time for this, another judgement, and a check of what is held out after it."""
        jury = self._jury
        counts = jury.chosen_by.count + jury.all.count
        if jury.held is not jury.all:
            counts += jury.held.count
        if self.goal.max_latency_ratio is not None:
            seconds += faster.MOST_S
        if self.trail.left_s > seconds + _MARGIN * jury.seconds * counts:
            return True
        self.cut_short = True
        return False

    def costs_of(self, variant: Variant) -> Costs:
        if variant.name not in self._costs:
            self._costs[variant.name] = costs_of(
                variant.quantized,
                variant.units,
                self.given.shapes,
                placement.without_pairs(variant.quantized),
                self.given.batches[0],
                self.given.folder,
            )
        return self._costs[variant.name]

    def predicted(self, variant: Variant, floats: Collection[str]) -> float:
        """The time of the products with these units in floats, over that of all in floats."""
        return self.costs_of(variant).predicted(variant.int8(floats))

    def missed(self) -> StageFailed:
        """What came closest, as the error of the search."""
        metric = self.goal.metric or "top1"
        tried = len(self.trail.tried) + self.trail.left_out
        cut = f", which ended the {self.goal.budget_s} s it may take" if self.cut_short else ""
        seconds = (
            ", or give the search more seconds (--calibration-budget)" if self.cut_short else ""
        )
        if self._fastest is not None:
            slow = self._fastest
            return LatencyMissed(
                f"no quantised graph that keeps {metric} within {self.goal.max_drop:g} takes "
                f"{self.goal.max_latency_ratio:g} of the time in floats or less: of {tried} tried{cut}, the "
                f"closest takes {slow.latency_ratio:.2f}, with a drop of {slow.drop:.4f} ({slow.what})",
                hint="raise max_latency_ratio or max_drop, or build where the CPU multiplies integers "
                f"faster (AVX-512 VNNI){seconds}",
            )
        assert self._closest is not None
        judged, what = self._closest
        drop = (
            "outputs that are broken" if judged.drop >= BROKEN else f"a drop of {judged.drop:.4f}"
        )
        return AccuracyDropped(
            f"no quantised graph keeps {metric} within {self.goal.max_drop:g} of its {judged.source:.4f}: "
            f"of {tried} tried{cut}, the closest has {drop} ({what})",
            hint=f"choose fp16, raise max_drop, add calibration data{seconds}",
        )

    def _judged(self, variant: Variant, floats: Collection[str]) -> Judged:
        judged = self._jury.judge(variant.forms.of(variant.without(floats)))
        if self._closest is None or judged.rank < self._closest[0].rank:
            self._closest = judged, variant.words(floats)
        return judged

    def _tell(
        self,
        variant: Variant,
        floats: Collection[str],
        judged: Judged,
        since_s: float,
        *,
        kept: bool,
        held: Judged | None = None,
        latency_ratio: float | None = None,
        wide: int = 0,
    ) -> None:
        what = variant.words(floats)
        what += f", {counted(wide, 'operator')} in fp32" if wide else ""
        self.trail.add(
            what if held is None else f"{what}, all samples",
            judged,
            share=self.costs_of(variant).share(variant.int8(floats)),
            time_ratio=self.predicted(variant, floats),
            since_s=since_s,
            kept=kept,
            held=held,
            latency_ratio=latency_ratio,
        )

    def _report(
        self,
        variant: Variant,
        floats: Collection[str],
        ended: _Ended,
        latency_ratio: float | None,
    ) -> Search:
        costs, jury = self.costs_of(variant), self._jury
        names = [unit.name for unit in variant.units.all if unit.id in floats]
        return Search(
            metric=str(self.goal.metric or "top1"),
            max_drop=self.goal.max_drop,
            max_latency_ratio=self.goal.max_latency_ratio,
            latency_ratio=latency_ratio,
            source=ended.whole.source,
            budget_s=self.goal.budget_s,
            spent_s=round(self.trail.spent_s, 3),
            samples=jury.chosen_by.count,
            held_out=jury.held.count if jury.held is not jury.all else 0,
            drop=ended.whole.drop,
            held_out_drop=ended.held.drop,
            int8_share=costs.share(variant.int8(floats)),
            predicted_time=self.predicted(variant, floats),
            measured_times=costs.measured,
            method=variant.name,
            units=len(variant.units.all),
            in_floats=[name[:4096] for name in names[:MOST_LISTED]],
            in_fp32=[name[:4096] for name in ended.names[:MOST_LISTED]],
            tried=self.trail.tried,
            cut_short=self.cut_short,
        )
