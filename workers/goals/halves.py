"""What isn't quantised, in fp16 as GPUs compute it: whether the goal is met so, and which operators lose it.

A search judges its graphs with that part in fp32, which takes less time here. What it would take is judged
in fp16, each result rounded as a GPU stores it. Where that alone misses the goal, operators are fp32: all of
them at first, then those are fp16 again with which it is still met, half of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx

from workers.goals.units import name_of
from workers.graphs import walk
from workers.quantize.magnitudes import Magnitudes
from workers.quantize.remainder import for_gpus


class Halved:
    """A Q/DQ graph in the forms that GPUs get.

    Parameters:
        quantized: with its weights stored as integers.
    """

    def __init__(self, quantized: onnx.ModelProto, magnitudes: Magnitudes) -> None:
        self._quantized, self._magnitudes = quantized, magnitudes

    @property
    def operators(self) -> list[str]:
        """What is fp16, or bf16, in the graph's order, by first outputs."""
        low = for_gpus(self._quantized, self._magnitudes).low
        nodes = walk.all_nodes(self._quantized.graph)
        return [node.output[0] for node in nodes if node.output and node.output[0] in low]

    def forms(self, wide: Collection[str] = ()) -> list[onnx.ModelProto]:
        """The graph for GPUs without bf16, and with it if that differs, these operators in fp32.

        Raises:
            CalibrationFailed: it can't be typed.
        """
        return for_gpus(self._quantized, self._magnitudes, wide).forms

    def names(self, wide: Collection[str]) -> list[str]:
        """How these operators are named, but for those that only round."""
        return [
            name_of(node)
            for node in walk.all_nodes(self._quantized.graph)
            if node.output and node.output[0] in wide and node.op_type not in walk.QDQ_OPS
        ]


def in_fp32(
    operators: Sequence[str],
    meets: Callable[[frozenset[str]], bool],
    has_time: Callable[[], bool],
) -> frozenset[str]:
    """Few of the operators with which, in fp32, the goal is met; all of them where time is short.

    Parameters:
        operators: with all of them in fp32 it is met, with none it isn't.
    """
    wide = frozenset(operators)
    waiting = [operators]
    while waiting and has_time():
        part = waiting.pop(0)
        if len(part) < len(operators) and meets(wide.difference(part)):
            wide = wide.difference(part)
        elif len(part) > 1:
            half = (len(part) + 1) // 2
            waiting += [part[:half], part[half:]]
    return wide
