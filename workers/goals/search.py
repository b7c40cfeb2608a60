"""Looks for the fastest way to quantise a graph that keeps a metric.

Plain first. If that loses too much, what costs no time in the engine: corrected biases, equalised channels,
weights rounded by what their products read. If that isn't enough, units are given back to floats. Each unit's
harm is measured by quantising it alone, in one session; then those that harm most for the time they save are
floats first, as many as the goal takes. What turns out to be harmless together is quantised again. All within
a budget of seconds. What keeps the metric may have to be fast, too: then it is timed beside floats, and if it
isn't, the next way is tried.
"""

from __future__ import annotations

from farm.specs.accuracy_goal import AccuracyGoal, Pins
from workers.goals.assigning import assigned, in_floats_where_faster
from workers.goals.attempts import Attempts, Found, Miss
from workers.goals.judging import Jury
from workers.goals.trail import Trail
from workers.goals.variants import Given, Variant, variants


def found(given: Given, goal: AccuracyGoal, pins: Pins, jury: Jury, trail: Trail) -> Found:
    """The fastest graph found that meets the goal.

    Raises:
        AccuracyDropped: nothing that was tried keeps the metric; says what came closest.
        LatencyMissed: nothing that does is fast enough; says what came closest.
        CalibrationFailed: a pin names nothing.
        InvalidData: the labels don't fit the outputs.
    """
    attempts = Attempts(given, goal, jury, trail)
    best: Variant | None = None
    last: Found | Miss | None = None
    for variant in variants(given, goal, pins, trail, attempts.has_time):
        attempts.judge(variant, best)
        if best is None or variant.judged.rank < best.judged.rank:
            best = variant
        if attempts.holds(variant.judged):
            last = _whole(variant, attempts)
            if isinstance(last, Found):
                return last
    assert best is not None
    # What takes too long with nothing in floats does so with more of it there.
    made = None if last is Miss.LATENCY else assigned(best, attempts)
    if made is None:
        raise attempts.missed()
    return made


def _whole(variant: Variant, attempts: Attempts) -> Found | Miss:
    """All of a variant quantised, but for what is faster in floats, if the goal is met so."""
    floats = in_floats_where_faster(variant, variant.floats, attempts)
    done = attempts.confirmed(variant, floats)
    if done is Miss.DROP and floats != variant.floats:
        done = attempts.confirmed(variant, variant.floats)
    return done
