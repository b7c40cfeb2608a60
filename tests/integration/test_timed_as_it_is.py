"""Checks of a program's kernels take time: it is timed without them, once it has run with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from farm.specs.shapes import ShapeRange, TensorSpec
from workers.clocks.host import Pace
from workers.inputs.batch import Batch
from workers.measure import cpu
from workers.programs.guard import checked

INPUTS = [TensorSpec(name="x", dtype="float32", shape=("batch", 3))]
PROFILE = {"x": ShapeRange(min=(1, 3), opt=(2, 3), max=(4, 3))}
SAMPLES = {"x": np.zeros((4, 3), np.float32)}


class Program:
    """Notes for each run how large its batch was, and whether it was checked."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, bool]] = []
        self.refuses = False

    def run(self, arrays):
        with checked({"grid_sampler"}):
            is_checked = _get_current_dispatch_mode() is not None
        if self.refuses and is_checked:
            raise ValueError("the arguments don't belong together")
        self.runs.append((len(arrays["x"]), is_checked))
        return {"y": arrays["x"]}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name in ("LATENCY_PACE", "THROUGHPUT_PACE"):
        monkeypatch.setattr(cpu, name, Pace(duration_s=0.01))


def test_each_batch_is_run_checked_first_and_then_timed_as_it_is():
    engine, eager = Program(), Program()
    cpu.metrics(engine, eager, Batch.of(INPUTS, PROFILE), SAMPLES)
    for program in (engine, eager):
        for size in (1, 2, 4):
            runs = [is_checked for batch, is_checked in program.runs if batch == size]
            assert runs[0]
            assert not runs[-1]
    with checked({"grid_sampler"}):
        assert _get_current_dispatch_mode() is not None


def test_what_the_checks_refuse_is_not_timed():
    engine = Program()
    engine.refuses = True
    with pytest.raises(ValueError, match="belong together"):
        cpu.metrics(engine, None, Batch.of(INPUTS, PROFILE), SAMPLES)
    assert not engine.runs


def test_lstms_run_by_the_kernels_that_pytorch_chooses_when_they_are_timed():
    seen = []

    class Recurrent(Program):
        def run(self, arrays):
            with checked({"lstm"}):
                seen.append(torch.backends.mkldnn.enabled)
            return super().run(arrays)

    cpu.metrics(Recurrent(), None, Batch.of(INPUTS, PROFILE), SAMPLES)
    assert seen[0] is False
    assert seen[-1] is True


def test_a_share_of_the_usual_time_is_what_the_figures_say_was_taken():
    found = cpu.metrics(Program(), None, Batch.of(INPUTS, PROFILE), SAMPLES, timing_share=0.5)
    for taken in (found.settings.latency, found.settings.throughput):
        assert (taken.duration_s, taken.warmup_s, taken.min_iterations) == (0.005, 0.1, 10)
