"""TensorRT's own view of a model: what its parser has understood, and its inputs and outputs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import EngineBuildFailed
from farm.reports.layers import LayerReport
from farm.specs.runtime import Target
from farm.specs.shapes import TensorSpec
from farm.stages import BuildParams, JobKind
from workers.backends.trt import interface, library
from workers.backends.trt.parsed import check_attributes
from workers.stages.base import StageRequest, run_request

F = TensorProto.FLOAT
info = helper.make_tensor_value_info


def sampled(*, opset=20, **attributes):
    """A grid that samples an image."""
    nodes = [helper.make_node("GridSample", ["x", "grid"], ["y"], name="/sample", **attributes)]
    inputs = [info("x", F, [1, 3, 8, 8]), info("grid", F, [1, 4, 4, 2])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", F, [1, 3, 4, 4])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def resized(*, opset=19, **attributes):
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["y"], name="/resize", **attributes)]
    scales = numpy_helper.from_array(np.array([1, 1, 1.5, 2], np.float32), "s")
    graph = helper.make_graph(
        nodes, "g", [info("x", F, [1, 3, 8, 8])], [info("y", F, [1, 3, 12, 16])], [scales]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def build(folder, model, target="tensorrt-rtx:sm_89"):
    """Run the build stage; return its facts and its layer report."""
    runtime, _, gpu = target.rpartition(":")
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "typed.onnx")
    params = BuildParams(
        target=Target(runtime=runtime, gpu=gpu),
        compute_capability={"h200": "sm_90"}.get(gpu, gpu),
        precision="fp32",
    )
    request = StageRequest(
        kind=JobKind.BUILD,
        params=params.model_dump(mode="json"),
        inputs={"typed": folder / "typed.onnx"},
        workdir=folder,
    )
    made = run_request(request, lambda *_: None)
    with open(made["outputs"]["layers"]) as file:
        return made["facts"], LayerReport.model_validate_json(file.read())


def parsed(runtime, model, path):
    """The network that a parser makes of a model; and what belongs to it, which must outlive it."""
    onnx.save(model, path)
    log = library.collecting_log(runtime)
    builder = runtime.Builder(log)
    network = builder.create_network(0)
    parser = runtime.OnnxParser(network, log)
    assert parser.parse_from_file(str(path)), log.errors
    return network, (log, builder, parser)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("opset", "mode"),
    [(16, "bilinear"), (16, "bicubic"), (20, "linear"), (20, "nearest"), (20, "cubic"), (20, None)],
)
def test_what_a_parser_reads_right_is_let_through(tmp_path, opset, mode, padding):
    rtx = library.load_runtime("tensorrt-rtx")
    attributes = {"mode": mode} if mode else {}
    model = sampled(opset=opset, padding_mode=padding, align_corners=1, **attributes)
    network, _alive = parsed(rtx, model, tmp_path / "m.onnx")
    check_attributes(rtx, network, model)


@pytest.mark.parametrize(
    "transformation", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize(
    "how",
    [
        {"mode": "linear"},
        {"mode": "cubic"},
        {"nearest_mode": "floor"},
        {"nearest_mode": "round_prefer_ceil"},
        {},
    ],
)
def test_resizes_that_a_parser_reads_right_are_let_through(tmp_path, transformation, how):
    rtx = library.load_runtime("tensorrt-rtx")
    model = resized(coordinate_transformation_mode=transformation, **how)
    network, _alive = parsed(rtx, model, tmp_path / "m.onnx")
    check_attributes(rtx, network, model)


def misreading(classic, layer_type, layer_class, **understood):
    """A parser that understands an operator so, whatever the model says."""

    class Misreading(classic.OnnxParser):
        def __init__(self, network, logger):
            super().__init__(network, logger)
            self._network = network

        def parse_from_file(self, path):
            right = super().parse_from_file(path)
            for index in range(self._network.num_layers):
                layer = self._network.get_layer(index)
                if layer.type.name == layer_type:
                    layer.__class__ = getattr(classic, layer_class)
                    for name, value in understood.items():
                        setattr(layer, name, value)
            return right

    return Misreading


def test_a_grid_sample_that_was_read_as_nearest_fails_the_build_and_names_it(
    classic, tmp_path, monkeypatch
):
    import tensorrt_rtx as rtx

    nearest = rtx.InterpolationMode.NEAREST
    parser = misreading(classic, "GRID_SAMPLE", "IGridSampleLayer", interpolation_mode=nearest)
    monkeypatch.setattr(classic, "OnnxParser", parser)
    with pytest.raises(EngineBuildFailed) as err:
        build(tmp_path, sampled(mode="linear"), "tensorrt:h200")
    assert "GridSample '/sample' has mode linear" in err.value.detail
    assert "interpolation_mode NEAREST" in err.value.detail
    assert "10.13.0.35" in err.value.detail
    assert "opset" in err.value.hint
    facts, _ = build(tmp_path, sampled(mode="nearest"), "tensorrt:h200")
    assert facts["engine_bytes"] > 0


def test_a_resize_of_other_coordinates_fails_the_build_and_names_it(classic, tmp_path, monkeypatch):
    import tensorrt_rtx as rtx

    asymmetric = rtx.ResizeCoordinateTransformation.ASYMMETRIC
    parser = misreading(classic, "RESIZE", "IResizeLayer", coordinate_transformation=asymmetric)
    monkeypatch.setattr(classic, "OnnxParser", parser)
    with pytest.raises(EngineBuildFailed, match=r"Resize '/resize' .* half_pixel, .* ASYMMETRIC"):
        build(tmp_path, resized(mode="linear"), "tensorrt:h200")


def scaled(kind, numpy_type):
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"], name="/mul")],
        "g",
        [info("x", kind, ["n", 4])],
        [info("y", kind, ["n", 4])],
        [numpy_helper.from_array(np.array(2, numpy_type), "two")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("target", ["tensorrt-rtx:sm_89", "tensorrt:h200"])
def test_an_engine_of_an_fp64_model_is_recorded_with_the_fp32_that_it_takes(
    classic, tmp_path, target
):
    facts, report = build(tmp_path, scaled(TensorProto.DOUBLE, np.float64), target)
    for specs in (facts["inputs"], json.loads(report.model_dump_json())["inputs"]):
        assert specs == [{"name": "x", "dtype": "float32", "shape": ["n", 4]}]
    assert facts["outputs"][0]["dtype"] == "float32"
    assert facts["differences"] == [
        "input 'x' is float64 in the model but float32 in the engine",
        "output 'y' is float64 in the model but float32 in the engine",
    ]


def test_an_engine_that_is_as_its_model_says_differs_in_nothing(tmp_path):
    facts, _ = build(tmp_path, scaled(TensorProto.INT64, np.int64))
    assert (facts["inputs"][0]["dtype"], facts["differences"]) == ("int64", [])


def test_inputs_that_one_has_and_the_other_has_not_are_told():
    def spec(name, *shape):
        return TensorSpec(name=name, dtype="float32", shape=shape)

    specs, differences = interface.named(
        [spec("x", "?", 4), spec("extra", 1)], [spec("x", "batch", 4), spec("unused", 2)]
    )
    assert [one.shape for one in specs] == [("batch", 4), (1,)]
    assert differences == [
        "'extra' is in the engine but not in the model",
        "'unused' is in the model but not in the engine",
    ]
