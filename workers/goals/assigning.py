"""Which of a variant's units are floats: those that harm most for the time they save, as few as it takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from farm.errors import FarmError
from workers.goals import faster, harm
from workers.goals.attempts import Attempts, Found, Miss
from workers.goals.faster import kinds_of
from workers.goals.harm import Group
from workers.goals.variants import Variant

#: A kind of units stays in floats if that takes less than this share of the time.
_GAIN = 0.97


def assigned(variant: Variant, attempts: Attempts) -> Found | None:
    """The fastest assignment found that meets the goal."""
    order = _order(variant, attempts)
    if order is None:
        return None
    best: tuple[float, frozenset[str], list[Group]] | None = None
    for ranked in order:
        floats = _fewest(variant, ranked, attempts)
        if floats is not None:
            time_ratio = attempts.predicted(variant, floats)
            if best is None or time_ratio < best[0]:
                best = time_ratio, floats, ranked
        if not attempts.has_time():
            break
    if best is None:
        return None
    floats = in_floats_where_faster(
        variant, _put_back(variant, best[1], best[2], attempts), attempts
    )
    return _until_it_holds(variant, floats, order[0], attempts)


def in_floats_where_faster(
    variant: Variant, floats: frozenset[str], attempts: Attempts
) -> frozenset[str]:
    """Leave in floats what a CPU computes faster so, as measured: kinds of units, one after another."""
    goal = attempts.goal
    if not goal.on_cpus or goal.on_gpus:
        return floats
    kinds = kinds_of(variant.quantized, variant.units, attempts.costs_of(variant))
    for kind, units in kinds.items():
        more = floats | (units - variant.kept)
        if more == floats or not variant.int8_products(more):
            continue
        if not attempts.has_time(2 * faster.MOST_S):
            break
        attempts.trail.phase(f"time {kind} in floats")
        ratio = faster.ratio(
            variant.on_cpu(more), variant.on_cpu(floats), attempts.given.batches[0]
        )
        print(f"with {kind} in floats it takes {ratio:.2f} of the time", flush=True)
        if ratio < _GAIN and attempts.meets(variant, more):
            floats = more
    return floats


def _order(variant: Variant, attempts: Attempts) -> list[list[Group]] | None:
    """Groups of units, the first to be floats first: by harm for the time saved, and by harm."""
    given, trail = attempts.given, attempts.trail
    free = [u.id for u in variant.units.all if u.id not in variant.floats | variant.kept]
    ranges = variant.forms.ranges(variant.quantized) if attempts.goal.on_cpus else None
    judged = harm.as_judged(variant.quantized, ranges)
    try:
        found = harm.of_units(judged, variant.before, free, given.batches, trail, given.folder)
    except FarmError as err:  # what can't be toggled can't be ranked
        print(f"units can't be quantised one by one: {err.detail}", flush=True)
        return None
    attempts.cut_short |= trail.left_s <= 0
    return harm.orders(found, attempts.costs_of(variant)) if found else None


def _fewest(variant: Variant, ranked: Sequence[Group], attempts: Attempts) -> frozenset[str] | None:
    """The shortest beginning of the order that meets the goal, by bisection; None without one."""
    # None of it misses, as was seen before.
    low, high = 0, _most_groups(variant, ranked, variant.floats) + 1
    best: frozenset[str] | None = None
    while high - low > 1:
        if not attempts.has_time():
            break
        middle = (low + high) // 2
        floats = variant.floats.union(*ranked[:middle])
        if attempts.meets(variant, floats):
            best, high = floats, middle
        else:
            low = middle
    return best


def _most_groups(variant: Variant, ranked: Sequence[Group], given: Collection[str]) -> int:
    """How many more than those given may be floats so that a product is left in integers."""
    floats = set(given)
    for number, group in enumerate(ranked):
        floats |= group
        if not variant.int8_products(floats):
            return number
    return len(ranked)


def _put_back(
    variant: Variant, floats: frozenset[str], order: Sequence[Group], attempts: Attempts
) -> frozenset[str]:
    """Quantise again what the goal doesn't miss: the least harmful first, half of them at once."""
    costs = attempts.costs_of(variant)
    freed = [
        group
        for group in reversed(order)
        if group <= floats - variant.floats and sum(costs.saved[unit] for unit in group) > 0
    ]
    waiting = [freed]
    while waiting and attempts.has_time():
        part = waiting.pop(0)
        fewer = floats.difference(*part)
        if not part:
            continue
        # All of it was seen to miss.
        if len(part) < len(freed) and attempts.meets(variant, fewer):
            floats = fewer
        elif len(part) > 1:
            half = (len(part) + 1) // 2
            waiting += [part[:half], part[half:]]
    return floats


def _until_it_holds(
    variant: Variant, floats: frozenset[str], order: Sequence[Group], attempts: Attempts
) -> Found | None:
    """Give more units to floats until the goal is met where it is held out, too."""
    step = 1
    while True:
        done = attempts.confirmed(variant, floats)
        if isinstance(done, Found):
            return done
        if done is Miss.LATENCY:  # and more of it in floats takes no less
            return None
        rest = [group for group in order if not group <= floats]
        step = min(step, _most_groups(variant, rest, floats))
        if not step or not attempts.has_time():
            return None
        floats, step = floats.union(*rest[:step]), 2 * step
