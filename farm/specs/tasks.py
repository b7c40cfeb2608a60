"""A task's metrics: what an engine's outputs are judged by where there are labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from farm.specs.values import Value
from farm.specs.words import AnyCase, Folded


class Metric(Folded):
    TOP1 = "top1"  #: the class with the largest score is right
    TOP5 = "top5"  #: the right class is among the five largest scores
    MIOU = "miou"  #: intersection over union, the mean over classes
    F1 = "f1"  #: harmonic mean of precision and recall, the mean over classes
    MAP = "map"  #: of detectors: average precision, the mean over classes and overlaps 0.5 to 0.95
    MAP50 = "map50"  #: the same at an overlap of 0.5
    COSINE = "cosine"  #: mean cosine similarity to the labels
    RECALL1 = "recall@1"  #: of embeddings: the nearest other sample has the same label
    RECALL5 = "recall@5"  #: one of the five nearest others has the same label
    CER = "cer"  #: edits per symbol of the labels
    WER = "wer"  #: edits per word of the labels
    MAE = "mae"  #: mean absolute error
    RMSE = "rmse"  #: root of the mean squared error


#: For these lower is better, and a drop is a rise.
ERRORS = frozenset({Metric.CER, Metric.WER, Metric.MAE, Metric.RMSE})
#: In the labels' own units: their drop has no upper limit, and the farm's gate for it is relative.
IN_UNITS = frozenset({Metric.MAE, Metric.RMSE})
#: Those whose labels are floats; all others' are integers.
OF_FLOATS = frozenset({Metric.MAE, Metric.RMSE, Metric.COSINE})
OF_BOXES = frozenset({Metric.MAP, Metric.MAP50})


class TaskOptions(Value):
    """How outputs are read for the metric."""

    output: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="the output that is judged; by default the first that fits the labels"
    )
    blank: Annotated[int, Field(ge=0)] = Field(
        0, description="cer, wer: the class that CTC emits between symbols"
    )
    space: Annotated[int, Field(ge=0)] | None = Field(
        None, description="wer: the class between words; required"
    )
    boxes: Annotated[Literal["xyxy", "cxcywh"], AnyCase] = Field(
        "xyxy", description="map, map50: what the four numbers of a predicted box are"
    )
    nms_overlap: Annotated[float, Field(gt=0, le=1)] = Field(
        0.65,
        description="map, map50: of two boxes of one class that overlap more, the weaker is dropped; "
        "1 keeps all",
    )
