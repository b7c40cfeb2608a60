"""Runs a function as a stage's child in a sandbox, and says what became of it."""

from __future__ import annotations

import time
from pathlib import Path

from workers.runner.child import Child
from workers.runner.child_events import Line

ROOT = Path(__file__).parents[1]


def run(function, argument, box, *, timeout_s=180, **options):
    """What a child gives, and all that it told on the way."""
    with Child(function, argument, timeout_s=timeout_s, sandbox=box, **options) as child:
        events = list(child.events())
        return child.result(), events


def result_of(function, argument, box):
    result, _ = run(function, argument, box)
    return result


def printed(events):
    return "".join(one.text for one in events if isinstance(one, Line))


def wait_for(condition, seconds=180.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def outcome(attempt):
    """What an attempt gives, or the error's name."""
    try:
        return repr(attempt())
    except OSError as err:
        return type(err).__name__
