"""What a graph's units take in floats and in integers: measured where that worked, else counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from workers.backends.ort import cpu
from workers.goals.units import Units, name_of
from workers.graphs import files
from workers.graphs.compute import compute_of
from workers.inputs.batch import Arrays, Shapes

#: An operator's time in integers over that in floats, as ``make bench ARGS=int8`` measures them.
_RATIOS = {"Conv": 0.5, "ConvTranspose": 0.7}
_OF_MATRICES, _OF_DEPTHWISE = 0.35, 1.3
#: A pair's time over that of a mean product.
_OF_PAIRS = 0.002
_RUNS = 3
_KERNEL = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Times of products, in seconds or in multiplications: only their ratios mean anything."""

    in_floats: Mapping[str, float]  #: unit → what its product takes in floats
    saved: Mapping[str, float]  #: unit → what integers save
    macs: Mapping[str, int]  #: unit → its multiplications
    all_macs: int  #: of the whole graph
    all_floats: float  #: what all of its products take in floats
    measured: bool

    def predicted(self, int8: Collection[str]) -> float:
        """The time of the graph's products with these units in integers, over that in floats."""
        if not self.all_floats:
            return 1.0
        return 1 - sum(self.saved[unit] for unit in int8) / self.all_floats

    def share(self, int8: Collection[str]) -> float:
        """The share of all multiplications that these units have."""
        return sum(self.macs[unit] for unit in int8) / self.all_macs if self.all_macs else 0.0


def costs_of(
    quantized: onnx.ModelProto,
    units: Units,
    shapes: Shapes,
    plain: onnx.ModelProto,
    batch: Arrays,
    folder: Path,
) -> Costs:
    """The costs of a graph's units.

    Parameters:
        shapes: of the inputs, for the multiplications.
        plain: the graph in floats, which is timed on this batch.
    """
    products = compute_of(quantized, shapes).products
    macs = {one.name: one.macs or 0 for one in products}
    nodes = {node.output[0]: node for node in quantized.graph.node if node.output}
    timed = _timed(plain, batch, folder)
    of_all = {name: timed[name] for name in macs if timed.get(name)}
    # Where a few couldn't be timed, by what the others take for a multiplication.
    rate = sum(of_all.values()) / max(1, sum(macs[name] for name in of_all)) if of_all else 1.0
    times = {name: of_all.get(name, count * rate) for name, count in macs.items()}
    mean = sum(times.values()) / max(1, len(times))
    in_floats, saved, counts = {}, {}, {}
    for unit in units.all:
        if unit.is_product:
            in_floats[unit.id] = times.get(unit.name, 0.0)
            saved[unit.id] = in_floats[unit.id] * (1 - _ratio(nodes[unit.id]))
            counts[unit.id] = macs.get(unit.name, 0)
        else:
            in_floats[unit.id] = saved[unit.id] = _OF_PAIRS * mean
            counts[unit.id] = 0
    return Costs(
        in_floats=in_floats,
        saved=saved,
        macs=counts,
        all_macs=sum(macs.values()),
        all_floats=sum(times.values()),
        measured=bool(of_all),
    )


def _ratio(node: onnx.NodeProto) -> float:
    if node.op_type not in _RATIOS:
        return _OF_MATRICES
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return _OF_DEPTHWISE if groups > 1 else _RATIOS[node.op_type]


def _timed(plain: onnx.ModelProto, batch: Arrays, folder: Path) -> Mapping[str, float]:
    """Operator → its seconds on this machine; nothing if they can't be measured."""
    names = {name_of(node) for node in plain.graph.node}
    options = cpu.session_options("extended")
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "timed")
    found: Counter[str] = Counter()
    try:
        with files.written(plain, folder / "timed.onnx") as file:
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        for _ in range(_RUNS):
            session.run(None, batch)
        profile = Path(session.end_profiling())
        events = json.loads(profile.read_text())
        profile.unlink()
    except Exception as err:  # pybind classes of ONNX Runtime with no common public base
        print(f"operators aren't timed: {cpu.brief(err)}", flush=True)
        return {}
    for event in events:
        name = str(event.get("name", "")).removesuffix(_KERNEL)
        if event.get("cat") == "Node" and name in names and event["name"].endswith(_KERNEL):
            found[name] += event["dur"] / 1e6 / _RUNS
    return found
