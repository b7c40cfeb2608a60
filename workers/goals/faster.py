"""Units that a CPU may compute faster in floats, and whether it does: timed, as no rule holds everywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx

from workers.goals.costs import Costs
from workers.goals.units import Units
from workers.inputs.batch import Arrays
from workers.inputs.samples import Runnable

_ROUNDS = 11
#: That one comparison may take.
MOST_S = 2.0
#: Shares of all multiplications that the smallest products have together.
_SMALL = (0.05, 0.2, 0.5)


def kinds_of(model: onnx.ModelProto, units: Units, costs: Costs) -> Mapping[str, frozenset[str]]:
    """Kinds of units, those in the first that gain least from integers."""
    nodes = {node.output[0]: node for node in model.graph.node if node.output}
    with_weights = {edge.consumer for edge in units.edges if edge.is_constant}
    depthwise = {
        unit.id
        for unit in units.products
        if any(one.name == "group" and one.i > 1 for one in nodes[unit.id].attribute)
    }
    found = {
        "products of two activations": {u.id for u in units.products} - with_weights,
        "depthwise convolutions": depthwise,
    }
    for share in _SMALL:
        found[f"the smallest products, {share:.0%} together,"] = _smallest(units, costs, share)
    found["tensors between products"] = {u.id for u in units.all if not u.is_product}
    return {name: frozenset(ids) for name, ids in found.items() if ids}


def _smallest(units: Units, costs: Costs, share: float) -> set[str]:
    """The products that have up to this share of all multiplications together."""
    found, sum_ = set(), 0
    for unit in sorted(units.products, key=lambda one: costs.macs[one.id]):
        sum_ += costs.macs[unit.id]
        if sum_ > share * costs.all_macs:
            break
        found.add(unit.id)
    return found


def ratio(one: Runnable, other: Runnable, batch: Arrays) -> float:
    """The first's median time over the second's, taken in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    start = time.monotonic()
    for number in range(_ROUNDS + 1):
        for subject, times in zip((one, other), taken, strict=True):
            began = time.perf_counter()
            subject.run(batch)
            if number:  # the first run prepares
                times.append(time.perf_counter() - began)
        if number and time.monotonic() - start > MOST_S:
            break
    return float(np.median(taken[0]) / np.median(taken[1]))
