"""ONNX as people have it: each case is built whole, at the sizes of its profile, and is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from farm.errors import InvalidModel, ProfileMismatch
from farm.specs.precision import Precision
from farm.specs.shapes import ShapeRange
from farm.stages import JobKind
from tests.zoo import runner
from workers.graphs import interface
from workers.graphs.intake import described
from workers.inputs.batch import Batch
from workers.inputs.profiles import AxisRange, resolve_profiles
from workers.inputs.samples import check_samples

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(0)
Shape = Sequence[int | str | None]


def weights(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * 0.2).astype(np.float32)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    output: Shape | None,
    tensors: Mapping[str, np.ndarray],
    *,
    opset: int = 20,
) -> Path:
    """A graph from these inputs to ``y``; of an opset of IR version 3 with weights as inputs too."""
    given = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    if opset < 9:
        given += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers]
    made = helper.make_tensor_value_info("y", FLOAT, output)
    graph = helper.make_graph(nodes, "wild", given, [made], initializers)
    imports = [helper.make_opsetid("", opset)]
    version = 3 if opset < 9 else 8
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=version), str(path))
    return path


def built(
    path: Path,
    samples: Mapping[str, np.ndarray],
    profile: Mapping[str, Any],
    *,
    precisions: Sequence[Precision] = (Precision.INT8,),
    gpus: Sequence[str] = ("sm_89",),
) -> None:
    """Build it, and fail unless every engine is right."""
    source = runner.Source(
        name="wild",
        path=path,
        format="onnx",
        samples=samples,
        profiles=[profile] if profile else (),
    )
    for one in runner.build(source, precisions=precisions, gpus=gpus, folder=path.parent):
        assert one.error is None, one.error
        assert one.accuracy.cosine_mean > 0.99


def sizes(low: Sequence[int], opt: Sequence[int], high: Sequence[int]) -> ShapeRange:
    return ShapeRange(min=tuple(low), opt=tuple(opt), max=tuple(high))


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_a_graph_of_an_opset_of_years_ago_is_upgraded_and_right(opset: int, tmp_path: Path) -> None:
    tensors = {
        "w": weights(16, 3, 3, 3),
        "b": weights(16),
        "ones": np.ones(16, np.float32),
        "f": weights(10, 16),
        "c": weights(10),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "shape": np.array([-1, 16]),
    }
    if opset != 10:
        del tensors["scales"]
    upsample = {
        7: helper.make_node("Upsample", ["r"], ["u"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]),
        8: helper.make_node("Upsample", ["r"], ["u"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]),
        10: helper.make_node("Resize", ["r", "scales"], ["u"], mode="nearest"),
    }
    clip = helper.make_node("Clip", ["g"], ["k"], min=-5.0, max=5.0)
    dropout = {"ratio": 0.5} if opset < 12 else {}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["v"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["v", "ones", "b", "b", "ones"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        upsample.get(opset, helper.make_node("Identity", ["r"], ["u"])),
        helper.make_node("GlobalAveragePool", ["u"], ["p"]),
        helper.make_node("Reshape", ["p", "shape"], ["q"]),
        helper.make_node("Dropout", ["q"], ["d"], **dropout),
        helper.make_node("Gemm", ["d", "f", "c"], ["g"], transB=1),
        clip if opset < 11 else helper.make_node("Identity", ["g"], ["k"]),
        helper.make_node("Softmax", ["k"], ["y"], axis=1),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"x": ["n", 3, 8, 8]}, ["n", 10], tensors, opset=opset)
    precisions = [Precision.INT8] if opset == 7 else [Precision.FP32]
    built(path, {"x": weights(16, 3, 8, 8)}, {}, precisions=precisions, gpus=["cpu"])


def spatial(path: Path, shape: Shape) -> Path:
    """Convolutions without padding: nothing is left of an image of ones."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    tensors = {"w": weights(16, 3, 7, 7), "v": weights(16, 16, 5, 5)}
    return save(path, nodes, {"x": shape}, [shape[0], 16], tensors)


@pytest.mark.parametrize(
    "shape", [["n", 3, "h", "w"], [None, 3, None, None], [1, 3, "h", "w"], [-1, 3, -1, -1]], ids=str
)
def test_dynamic_height_and_width_run_at_the_profiles_sizes(shape: Shape, tmp_path: Path) -> None:
    low, opt, high = (1, 1, 1) if shape[0] == 1 else (2, 4, 8)
    profile = {"x": sizes((low, 3, 24, 24), (opt, 3, 32, 24), (high, 3, 48, 40))}
    path = spatial(tmp_path / "m.onnx", shape)
    built(
        path,
        {"x": weights(16, 3, 32, 24)},
        profile,
        precisions=[Precision.FP16, Precision.INT8] if shape[0] is None else [Precision.FP32],
        gpus=["sm_89", "cpu"] if shape[0] is None else ["cpu"],
    )


def test_a_shape_that_works_at_the_profiles_sizes_alone_is_built(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["a"]),  # 4 of 8 each, so never at ones
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Add", ["b", "positions"], ["y"]),
    ]
    tensors = {
        "rows": np.array([-1, 12, 32]),
        "w": weights(32, 16),
        "positions": weights(12, 16),
    }
    path = save(tmp_path / "m.onnx", nodes, {"x": ["n", "s", 8]}, ["n", 12, 16], tensors)
    profile = {"x": sizes((1, 48, 8), (4, 48, 8), (8, 48, 8))}
    built(path, {"x": weights(32, 48, 8)}, profile, precisions=[Precision.FP16, Precision.INT8])


def add(path: Path, x: Shape, z: Shape) -> Path:
    """x·w + mean of z·w over its first axis."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["z", "w"], ["b"]),
        helper.make_node("ReduceMean", ["b", "first"], ["m"]),
        helper.make_node("Add", ["a", "m"], ["y"]),
    ]
    tensors = {"w": weights(16, 16), "first": np.array([0])}
    return save(path, nodes, {"x": x, "z": z}, None, tensors)


def test_anonymous_axes_of_two_inputs_are_independent(tmp_path: Path) -> None:
    path = add(tmp_path / "m.onnx", [None, 16], [None, 16])
    profile = {
        "x": sizes((1, 16), (8, 16), (16, 16)),
        "z": sizes((20, 16), (24, 16), (32, 16)),
    }
    # z has no batch: its one array, of a size in its range, serves for all samples.
    built(path, {"x": weights(32, 16), "z": weights(24, 16)}, profile)


@pytest.mark.parametrize("z", [["k", 16], [5, 16]], ids=str)
def test_an_input_without_a_batch_is_one_array_for_all_samples(z: Shape, tmp_path: Path) -> None:
    model = described(onnx.load(str(add(tmp_path / "m.onnx", ["n", 16], z))))
    inputs = interface.input_specs(model)
    asked = {"x": sizes((1, 16), (8, 16), (16, 16)), "z": sizes((5, 16), (5, 16), (5, 16))}
    [profile] = resolve_profiles(inputs, [asked])
    assert Batch.of(inputs, profile).inputs == ("x",)
    samples = check_samples({"x": weights(20, 16), "z": weights(5, 16)}, inputs, profile)
    shapes = [(len(b["x"]), len(b["z"])) for b in Batch.of(inputs, profile).split(samples, 8)]
    assert shapes == [(8, 5), (8, 5), (4, 5)]


def test_axes_of_one_name_have_one_size(tmp_path: Path) -> None:
    model = described(onnx.load(str(add(tmp_path / "m.onnx", ["n", "s", 16], ["n", "s", 16]))))
    inputs = interface.input_specs(model)
    asked = {"x": sizes((1, 4, 16), (8, 7, 16), (16, 12, 16))}
    [profile] = resolve_profiles(inputs, [asked])
    assert profile["z"] == profile["x"]
    other = {"z": sizes((1, 4, 16), (8, 9, 16), (16, 12, 16))}
    with pytest.raises(ProfileMismatch) as caught:
        resolve_profiles(inputs, [asked | other])
    assert "axis 1 of input 'z' and axis 1 of input 'x' are the same axis 's'" in str(caught.value)


def test_an_input_that_is_a_scalar_is_built(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "k"], ["y"]),
    ]
    path = save(
        tmp_path / "m.onnx", nodes, {"x": ["n", 16], "k": []}, ["n", 16], {"w": weights(16, 16)}
    )
    built(path, {"x": weights(32, 16), "k": np.float32(2)}, {})


def test_an_output_without_a_shape_gets_the_inferred_one(tmp_path: Path) -> None:
    model = onnx.load(str(add(tmp_path / "m.onnx", ["n", 16], ["n", 16])))
    assert not model.graph.output[0].type.tensor_type.HasField("shape")
    [output] = interface.output_specs(described(model))
    assert output.shape == ("n", 16)


class Pooled(nn.Module):
    """Takes images and tokens of any size within what it is exported for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.conv(image).mean((2, 3)) + tokens.mean(1, keepdim=True)


def pooled(path: Path, **bounds: Any) -> Path:
    """The program, saved with these bounds: of the batch, and of the tokens' length."""
    batch = torch.export.Dim("batch", **bounds.get("batch", {}))
    height = 8 * torch.export.Dim("height", max=8)
    length = torch.export.Dim("length", **bounds.get("length", {}))
    program = torch.export.export(
        Pooled().eval(),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, 12)),
        dynamic_shapes=({0: batch, 2: height}, {0: batch, 1: length}),
    )
    torch.export.save(program, path)
    return path


def exported(path: Path, profiles: Sequence[Mapping[str, Any]] = ()) -> onnx.ModelProto:
    source = runner.Source(name="pooled", path=path, format="pt2", samples={}, profiles=profiles)
    made = runner.stage(source, JobKind.EXPORT, path.parent)
    return onnx.load(str(made.outputs["onnx"]))


def test_a_programs_own_ranges_are_the_default_profile(tmp_path: Path) -> None:
    path = pooled(tmp_path / "m.pt2", batch={"min": 1, "max": 32}, length={"max": 77})
    model = exported(path)
    ranges = interface.axis_ranges(model)
    assert ranges["batch"] == AxisRange(1, 2, 32)
    assert ranges["tokens_1"] == AxisRange(1, 12, 77)
    inputs = interface.input_specs(model)
    [profile] = resolve_profiles(inputs, (), ranges)
    # The batch is the farm's own within its bounds; other axes are best at the size of the example.
    assert profile["image"] == sizes((1, 3, 16, 32), (8, 3, 32, 32), (32, 3, 64, 32))
    assert profile["tokens"] == sizes((1, 1), (8, 12), (32, 77))
    with pytest.raises(ProfileMismatch) as caught:
        resolve_profiles(inputs, [{"tokens": sizes((1, 1), (8, 12), (32, 99))}], ranges)
    assert "axis 1 of input 'tokens' was exported for 1 to 77" in str(caught.value)


def test_a_programs_ranges_reach_every_stage(tmp_path: Path) -> None:
    path = pooled(tmp_path / "m.pt2", length={"max": 77})
    samples = {"image": weights(16, 3, 48, 32), "tokens": weights(16, 40)}
    source = runner.Source(name="pooled", path=path, format="pt2", samples=samples)
    precisions = [Precision.FP16, Precision.INT8]
    for one in runner.build(source, precisions=precisions, gpus=["sm_89"], folder=tmp_path):
        assert one.error is None, one.error
        assert one.facts["profiles"][0]["tokens"] == {
            "min": [1, 1],
            "opt": [8, 12],
            "max": [64, 77],
        }


def test_an_axis_that_nothing_bounds_needs_a_profile(tmp_path: Path) -> None:
    path = pooled(tmp_path / "m.pt2")
    with pytest.raises(ProfileMismatch) as caught:
        exported(path)
    assert "axis 1 of input 'tokens' is dynamic" in str(caught.value)


def test_ranges_that_are_none_are_refused(tmp_path: Path) -> None:
    model = onnx.load(str(add(tmp_path / "m.onnx", ["n", 16], ["n", 16])))
    model.metadata_props.add(key="engine-farm.axis-ranges", value='{"n": "many"}')
    with pytest.raises(InvalidModel):
        interface.axis_ranges(model)
