"""What operators do to their values, as far as half precision has to know it."""

from __future__ import annotations

#: What exponentiates or sums up inside, or whose type an attribute says.
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
#: Of these the square of the input must fit.
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
#: What only moves values, or picks some.
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
#: Of these an input, by its position, mustn't be rounded to zero.
NOT_ZERO = {"Div": 1, "Reciprocal": 0, "Log": 0}
#: What a denominator is made of, and may be small before it is one.
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
#: What a sum of squares is made of.
KEEPS_SQUARES = MOVES | {"Add", "Clip", "Max", "Mul", "ReduceMean", "ReduceSum", "Sub", "Sum"}
