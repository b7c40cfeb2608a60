"""The forms of a Q/DQ graph for GPUs: what it doesn't quantise in fp16, or in fp32 where fp16 can't hold it.

Products whose values leave fp16 are bf16 in a second form, for GPUs that have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from farm.errors import CalibrationFailed, FarmError
from farm.specs.precision import Precision
from farm.specs.source import DataKind
from workers.graphs import casting, check, interface, opsets, walk
from workers.inputs.samples import Arrays
from workers.quantize import choosing, magnitudes
from workers.quantize.choosing import Chosen
from workers.quantize.magnitudes import Magnitude, Magnitudes

_NAMES = {
    TensorProto.FLOAT: str(Precision.FP32),
    TensorProto.FLOAT16: str(Precision.FP16),
    TensorProto.BFLOAT16: str(Precision.BF16),
}
_LOSES = "in fp16 it loses too much"


@dataclass(frozen=True, kw_only=True)
class ForGpus:
    """A Q/DQ graph as GPUs get it.

    Parameters:
        fp16: for those without bf16.
        half: for the others; None where it is the same.
        why: how many operators of ``fp16`` are fp32, by the reason.
        low: operators that are fp16 or bf16 in either form, by their first outputs.
        types: how many operators of the last form's remainder have each type.
    """

    fp16: onnx.ModelProto
    half: onnx.ModelProto | None
    why: Mapping[str, int]
    low: frozenset[str]
    types: Mapping[str, int]

    @property
    def forms(self) -> list[onnx.ModelProto]:
        return [self.fp16] if self.half is None else [self.fp16, self.half]


def measured(
    quantized: onnx.ModelProto,
    batches: Sequence[Arrays],
    folder: Path,
    largest: Mapping[str, float],
) -> dict[str, Magnitude]:
    """What its types are chosen by: as ``workers.quantize.magnitudes.measured``.

    Raises:
        CalibrationFailed: onnx can't infer the graph's types.
        InvalidModel: it can't run on the data.
    """
    with _failing():
        return magnitudes.measured(quantized, batches, folder, largest)


def for_gpus(quantized: onnx.ModelProto, found: Magnitudes, wide: Collection[str] = ()) -> ForGpus:
    """The graph's forms.

    Parameters:
        quantized: with its weights stored as integers.
        found: the magnitudes of its values.
        wide: operators that are fp32 although fp16 holds their values, by their first outputs.

    Raises:
        CalibrationFailed: onnx can't infer or convert it.
    """
    with _failing():
        fp16, chosen = _typed(quantized, found, None, wide)
        half, newer, also = None, quantized, chosen
        if choosing.products_out_of_range(quantized, chosen):
            # The names of the measured tensors stay the same.
            newer = opsets.upgraded(quantized, casting.BF16_OPSET)
            half, also = _typed(newer, found, TensorProto.BFLOAT16, wide)
        return ForGpus(
            fp16=fp16,
            half=half,
            why=chosen.counts(),
            low=frozenset(chosen.types) | frozenset(also.types),
            types=_counts(newer, also),
        )


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except FarmError:
        raise
    except Exception as err:  # onnx's inference and converter may raise anything
        raise CalibrationFailed(
            f"the remainder of the quantised graph can't be typed: {check.brief(err)}",
            hint="choose fp16 or bf16, and report the graph's operators",
        ) from err


def _typed(
    quantized: onnx.ModelProto, found: Magnitudes, instead: int | None, wide: Collection[str]
) -> tuple[onnx.ModelProto, Chosen]:
    chosen = choosing.choose(
        quantized, found, TensorProto.FLOAT16, DataKind.CALIBRATION, instead=instead
    )
    lost = chosen.types.keys() & set(wide)
    chosen = Chosen(
        types={name: kind for name, kind in chosen.types.items() if name not in lost},
        why={**chosen.why, **dict.fromkeys(lost, _LOSES)},
    )
    made = casting.typed(quantized, chosen.types)
    check.check_model(made)
    interface.keep_axis_ranges(made, interface.axis_ranges(quantized))
    return made, chosen


def _counts(quantized: onnx.ModelProto, chosen: Chosen) -> dict[str, int]:
    """Operators by type: type → count, without Q/DQ."""
    counts: Counter[str] = Counter({str(Precision.FP16): 0})
    for node in walk.all_nodes(quantized.graph):
        name = node.output[0] if node.output else ""
        if node.op_type not in walk.QDQ_OPS and (name in chosen.types or name in chosen.why):
            counts[_NAMES[chosen.types.get(name, TensorProto.FLOAT)]] += 1
    return dict(counts)
