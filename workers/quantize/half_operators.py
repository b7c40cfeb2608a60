"""Facts about operators that half precision depends on."""

from __future__ import annotations

#: Operators that exponentiate or sum internally, or take their type from an attribute.
NEVER_HALF = {
    "BlackmanWindow",
    "ConstantOfShape",
    "CumSum",
    "DFT",
    "DynamicQuantizeLinear",
    "EyeLike",
    "HammingWindow",
    "HannWindow",
    "LogSoftmax",
    "MelWeightMatrix",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "STFT",
    "Softplus",
}
#: Operators that need the square of their input to fit.
SQUARE_INSIDE = {
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "ReduceL2",
    "ReduceSumSquare",
}
#: Operators that only move or select values.
MOVES = {
    "Cast",
    "Compress",
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Pad",
    "QuantizeLinear",
    "Reshape",
    "ReverseSequence",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
#: Operators with an input, by position, that mustn't be rounded to zero.
NOT_ZERO = {"Div": 1, "Reciprocal": 0, "Log": 0}
#: Operators between a small value and the denominator made from it.
KEEPS_SMALL = MOVES | {
    "Abs",
    "Add",
    "Clip",
    "Max",
    "Mul",
    "Pow",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Sqrt",
}
#: Operators whose result is still made of squares if their input is.
KEEPS_SQUARES = MOVES | {"Add", "Clip", "Max", "Mul", "ReduceMean", "ReduceSum", "Sub", "Sum"}
