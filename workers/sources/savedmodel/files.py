"""Unpacks a SavedModel and cleans its graph before TensorFlow may see it.

A SavedModel is a program: TensorFlow's operators read and write files, map them into memory, load
libraries and call Python. Some run as soon as it is loaded. So the graph is first read here, without
TensorFlow, and must consist of the operators listed below: those that tf2onnx converts, and those needed
for variables and calls. The functions that save and restore variables use others and are dropped:
TensorFlow reads the variables' files by itself. The checked graph is rewritten, and only that is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from farm.errors import InvalidModel
from farm.formats import packs, sources

_SAVE_AGAIN = "save it with TensorFlow 2's tf.saved_model.save, and submit that folder"
_CONVERT = "convert it to ONNX yourself, and submit that"
#: Operators with file names; they occur in functions that only the graph's saver calls.
_SAVERS = frozenset("SaveV2 RestoreV2 MergeV2Checkpoints ShardedFilename".split())
#: Excludes tables, queues, iterators and strings.
_OPERATORS = frozenset(
    """
    Abs Acos Acosh Add AddN AddV2 AdjustContrastv2 AdjustHue AdjustSaturation All Any ArgMax ArgMin
    Asin Asinh Assert AssignAddVariableOp AssignSubVariableOp AssignVariableOp Atan Atan2 Atanh
    AvgPool AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd BiasAddV1
    Bincount BitwiseAnd BitwiseOr BitwiseXor BroadcastArgs BroadcastTo CTCGreedyDecoder Cast Ceil
    CheckNumerics ClipByValue CombinedNonMaxSuppression ComplexAbs Concat ConcatV2 Const Conv2D
    Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cos Cosh CropAndResize CudnnRNN Cumprod Cumsum
    DenseBincount DepthToSpace DepthwiseConv2dNative DisableCopyOnRead Div DivNoNan
    DynamicPartition DynamicStitch Einsum Elu EmptyTensorList EnsureShape Equal Erf Exp ExpandDims
    Expm1 ExtractImagePatches FFT FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars Fill Floor
    FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2
    Greater GreaterEqual Identity IdentityN If Invert InvertPermutation IsFinite IsInf IsNan L2Loss
    LRN LSTMBlockCell LeakyRelu LeftShift Less LessEqual LinSpace Log Log1p LogSoftmax LogicalAnd
    LogicalNot LogicalOr MatMul MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPart
    MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixInverse MatrixSetDiagV3 Max
    MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax Maximum Mean Min Minimum MirrorPad Mul Multinomial
    Neg NoOp NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5
    NotEqual OneHot OnesLike Pack Pad PadV2 ParallelDynamicStitch PartitionedCall Placeholder
    PlaceholderV2 PlaceholderWithDefault Pow PreventGradient Prod RFFT RFFT2D RaggedGather
    RaggedRange RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor
    RaggedTensorToVariant RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt Range
    Rank ReadVariableOp RealDiv Reciprocal Relu Relu6 Reshape ResizeArea ResizeBicubic
    ResizeBilinear ResizeNearestNeighbor ResourceGather ReverseSequence ReverseV2 RightShift Rint
    RngReadAndSkip Roll Round Rsqrt ScatterNd SegmentMax SegmentMean SegmentMin SegmentProd
    SegmentSum Select SelectV2 Selu Shape ShapeN Sigmoid Sign Sin Sinh Size Slice Softmax
    SoftmaxCrossEntropyWithLogits Softplus Softsign SpaceToBatchND SpaceToDepth
    SparseFillEmptyRows SparseReshape SparseSegmentMean SparseSegmentSqrtN SparseSegmentSum
    SparseSoftmaxCrossEntropyWithLogits SparseToDense Split SplitV Sqrt Square SquaredDifference
    Squeeze StatefulPartitionedCall StatelessIf StatelessRandomGetKeyCounter
    StatelessRandomUniformV2 StatelessWhile StopGradient StridedSlice Sub Sum Tan Tanh
    TensorListFromTensor TensorListGetItem TensorListLength TensorListReserve TensorListResize
    TensorListSetItem TensorListStack TensorScatterAdd TensorScatterMax TensorScatterMin
    TensorScatterSub TensorScatterUpdate Tile TopKV2 Transpose TruncateDiv Unique UniqueWithCounts
    Unpack UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum
    VarHandleOp VarIsInitializedOp VariableShape Where While Xlogy ZerosLike
    """.split()
)

#: The parts of TensorFlow's messages read here: field, number, and the message type, otherwise bytes.
#: Protobuf keeps unlisted fields as they are.
_SCHEMA = {
    "Saved": [("graphs", 2, "Meta")],
    "Meta": [("graph", 2, "Graph"), ("objects", 7, "")],
    "Graph": [("node", 1, "Node"), ("library", 2, "Library")],
    "Library": [("function", 1, "Function"), ("gradient", 2, ""), ("registered", 3, "")],
    "Function": [("signature", 1, "Signature"), ("node", 3, "Node")],
    "Signature": [("name", 1, "")],
    "Node": [("op", 2, "")],
}
_REPEATED = frozenset({"graphs", "node", "function", "gradient", "registered"})
#: protobuf's limit for one message.
_MAX_BYTES = 2**31 - 1


def unpack(pack: Path, folder: Path) -> Path:
    """Unpack a SavedModel below ``folder``, with only listed operators in its graph.

    Raises:
        InvalidModel
    """
    whole, clean = folder / "unpacked", folder / "savedmodel"
    try:
        root = sources.savedmodel_root(packs.members(pack))
        packs.unpack(pack, whole)
    except packs.MalformedPack as err:
        raise InvalidModel(f"this archive isn't a SavedModel: {err}", hint=_SAVE_AGAIN) from err
    if (whole / root / sources.SAVED_MODEL).stat().st_size > _MAX_BYTES:
        raise InvalidModel("saved_model.pb has more than 2 GiB", hint=_SAVE_AGAIN)
    clean.mkdir()
    (clean / sources.SAVED_MODEL).write_bytes(
        cleaned((whole / root / sources.SAVED_MODEL).read_bytes())
    )
    variables = whole / root / "variables"
    if variables.is_dir():
        variables.rename(clean / "variables")
    return clean


def cleaned(saved_model: bytes) -> bytes:
    """The same SavedModel without the functions that save and restore it.

    Raises:
        InvalidModel: it is damaged, from TensorFlow 1, or has unlisted operators.
    """
    model = message("Saved")()
    try:
        model.ParseFromString(saved_model)
    except DecodeError as err:
        raise InvalidModel("saved_model.pb is damaged", hint=_SAVE_AGAIN) from err
    if len(model.graphs) != 1 or not model.graphs[0].HasField("objects"):
        raise InvalidModel("this isn't a single TensorFlow 2 SavedModel", hint=_SAVE_AGAIN)
    graph = model.graphs[0].graph
    del graph.node[:]  # TensorFlow 2 only runs the functions
    del graph.library.gradient[:]  # unused here, and they name functions to run
    del graph.library.registered[:]
    functions = graph.library.function
    dropped = _drop_savers(functions)
    if any(name in function.SerializeToString() for function in functions for name in dropped):
        raise InvalidModel("it saves or restores files when run", hint=_SAVE_AGAIN)
    others = sorted(set(_operators(functions)) - _OPERATORS)
    if others:
        raise InvalidModel(
            f"its graph has the operators {', '.join(others[:8])}, which the farm doesn't run: it accepts "
            "what tf2onnx converts, but nothing that could access files or run code",
            hint=f"save a module with only numeric operators, or {_CONVERT}",
        )
    return bytes(model.SerializeToString())


def _drop_savers(functions: Any) -> list[bytes]:
    """Drop the savers; return their names. TensorFlow can't load a function that calls one of them."""
    dropped = []
    for index in reversed(range(len(functions))):
        if any(_text(node.op) in _SAVERS for node in functions[index].node):
            dropped.append(functions[index].signature.name)
            del functions[index]
    return dropped


def _operators(functions: Any) -> Iterator[str]:
    for function in functions:
        for node in function.node:
            yield _text(node.op)


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


@cache
def message(name: str) -> Any:
    """The class for one of TensorFlow's messages, with the fields read here."""
    file = descriptor_pb2.FileDescriptorProto(name="savedmodel.proto", syntax="proto2")
    for kind, fields in _SCHEMA.items():
        made = file.message_type.add(name=kind)
        for field, number, inner in fields:
            made.field.add(
                name=field,
                number=number,
                label=3 if field in _REPEATED else 1,
                type=11 if inner else 12,
                type_name=f".{inner}" if inner else None,
            )
    pool = descriptor_pool.DescriptorPool()  # a separate pool: TensorFlow registers the same names
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
