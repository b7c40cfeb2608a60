"""How much harm each unit of a Q/DQ graph does: how far the outputs move when it alone is quantised.

Where several units each ruin a graph, leaving one of them out changes nothing; alone, each shows its harm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from workers.goals.costs import Costs
from workers.goals.toggles import Toggled
from workers.goals.trail import Trail
from workers.goals.units import units_of
from workers.inputs.samples import Arrays
from workers.quantize import cpu_integers, trials
from workers.quantize.cpu_integers import Ranges

#: The share of the seconds left that this may take.
_SHARE = 0.35
#: Batches on which it is measured.
_MOST_BATCHES = 8
#: More units than this are measured, and given back, several at once.
_MOST_GROUPS = 400
_LEAST_GROUPS = 8
#: Stands for the time that a unit saves which takes more in integers than in floats.
_NOTHING = 1e-12

Group = frozenset[str]


def of_units(
    judged: onnx.ModelProto,
    before: Mapping[str, str],
    free: Sequence[str],
    batches: Sequence[Arrays],
    trail: Trail,
    folder: Path,
) -> dict[Group, float]:
    """The harm of each of these units, or of groups of them where time is short.

    Parameters:
        before: weights that were rounded anew → those that units in floats have.

    Raises:
        InvalidModel: ONNX Runtime can't toggle this graph.
    """
    trail.phase("measure each layer's harm")
    toggled = Toggled(judged, units_of(judged).renamed(before), folder)
    start = time.monotonic()
    expected = [toggled.run(batches[0], ())]
    toggled.run(batches[0], free)
    each = max((time.monotonic() - start) / 2, 1e-6)
    allowed = _SHARE * max(0.0, trail.left_s)
    groups = _grouped(free, int(min(_MOST_GROUPS, max(_LEAST_GROUPS, allowed / each))))
    fitting = int(allowed / (each * max(1, len(groups))))
    batches = batches[: max(1, min(fitting, _MOST_BATCHES))]
    expected += [toggled.run(batch, ()) for batch in batches[1:]]
    found: dict[Group, float] = {}
    for number, group in enumerate(groups):
        if trail.left_s <= 0:
            break
        trail.phase(f"measure each layer's harm, {number + 1} of {len(groups)}")
        found[group] = trials.distance(expected, [toggled.run(one, group) for one in batches])
    print(f"harm of {len(found)} units measured in {time.monotonic() - start:.1f} s", flush=True)
    return found


def orders(harm: Mapping[Group, float], costs: Costs) -> list[list[Group]]:
    """Groups of units, the first to be floats first: by harm for the time saved, and by harm alone."""
    saved = {group: sum(costs.saved[unit] for unit in group) for group in harm}
    return [
        sorted(harm, key=lambda group: -harm[group] / max(saved[group], _NOTHING)),
        sorted(harm, key=lambda group: -harm[group]),
    ]


def as_judged(quantized: onnx.ModelProto, ranges: Ranges | None) -> onnx.ModelProto:
    """A Q/DQ graph with what its form in integers will round besides.

    Parameters:
        ranges: of results that integer kernels round; None where no CPU runs it.
    """
    if ranges is None:
        return quantized
    made = cpu_integers.with_results_quantized(quantized, ranges)
    narrow(made)
    # Weights that only units in floats read, if there are any, are none of an engine's.
    there = {tensor.name for tensor in made.graph.initializer}
    made.graph.initializer.extend(
        tensor for tensor in quantized.graph.initializer if tensor.name not in there
    )
    return made


def narrow(quantized: onnx.ModelProto) -> None:
    """Round weights to the seven bits that CPUs get, in place."""
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    scales = {
        node.input[1]
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in constants
    }
    for name in scales & constants.keys():
        wide = numpy_helper.to_array(constants[name])
        less = (wide * np.float32(cpu_integers.narrowed_by())).astype(wide.dtype)
        constants[name].CopyFrom(numpy_helper.from_array(less, name))


def _grouped(units: Sequence[str], most: int) -> list[Group]:
    """At most so many groups of neighbours."""
    size = -(-len(units) // most) if units else 1
    return [frozenset(units[at : at + size]) for at in range(0, len(units), size)]
