"""Inputs and outputs: read from ONNX as ONNX's own library does, and compared in words."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from farm.formats.onnx_interface import interface
from farm.formats.protobuf import MalformedMessage, TooManyFields, numbers
from farm.formats.sources import look
from farm.reports.interfaces import Interface
from farm.specs.source import SourceFormat
from workers.graphs.interface import input_specs, output_specs


def of(inputs: dict[str, tuple], outputs: dict[str, tuple] | None = None) -> Interface:
    def ports(given):
        return [
            {"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in given.items()
        ]

    return Interface.model_validate({"inputs": ports(inputs), "outputs": ports(outputs or {})})


IMAGE = ("float32", ["batch", 3, 224, 224])


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"image": ("float32", ["N", 3, 224, 224])}, []),
        ({"image": ("float32", [-1, 3, 224, 224])}, []),
        (
            {"image": ("float32", ["n", 3, 256, 256])},
            ["input `image`: float32[?,3,224,224] → float32[?,3,256,256]"],
        ),
        (
            {"image": ("uint8", ["n", 3, 224, 224])},
            ["input `image`: float32[?,3,224,224] → uint8[?,3,224,224]"],
        ),
        (
            {"image": ("float32", [8, 3, 224, 224])},
            ["input `image`: float32[?,3,224,224] → float32[8,3,224,224]"],
        ),
        (
            {"image": ("float32", [3, 224, 224])},
            ["input `image`: float32[?,3,224,224] → float32[3,224,224]"],
        ),
        (
            {"pixels": IMAGE},
            [
                "input `image` is missing: float32[?,3,224,224]",
                "input `pixels` is new: float32[?,3,224,224]",
            ],
        ),
        ({"image": ("?", None)}, []),
    ],
)
def test_what_differs_between_inputs_is_told_in_words(after, told) -> None:
    assert of(after).changes(of({"image": IMAGE})) == told


def test_an_outputs_axis_that_only_one_of_them_fixes_is_no_change() -> None:
    scores = {"scores": ("float32", ["batch", 10])}
    assert of({}, {"scores": ("float32", ["?", "?"])}).changes(of({}, scores)) == []
    assert of({}, {"scores": ("float32", ["?", 11])}).changes(of({}, scores)) == [
        "output `scores`: float32[?,10] → float32[?,11]"
    ]


def test_the_order_of_inputs_is_no_change_and_a_long_list_is_cut() -> None:
    both = {"a": IMAGE, "b": IMAGE}
    assert of(dict(reversed(both.items()))).changes(of(both)) == []
    many = of({f"i{n}": IMAGE for n in range(50)}).changes(of({}))
    assert (len(many), many[-1]) == (21, "30 more")


def test_more_ports_than_are_compared_are_unknown() -> None:
    port = {"dtype": "float32", "shape": []}
    given = {"inputs": [port | {"name": f"i{n}"} for n in range(513)], "outputs": []}
    assert Interface.read(given) is None
    assert Interface.read({"inputs": []}) is None


def model(path: Path, *, weights_as_inputs: bool = False) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, None, 8]),
        helper.make_tensor_value_info("size", TensorProto.INT64, []),
        helper.make_tensor_value_info("half", TensorProto.BFLOAT16, [2]),
    ]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1], [1.0])
    if weights_as_inputs:
        inputs.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [1]))
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])]
    nodes = [helper.make_node("Identity", ["image"], ["scores"])]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight]))
    path.write_bytes(made.SerializeToString())
    return made


@pytest.mark.parametrize("weights_as_inputs", [False, True])
def test_an_onnx_files_inputs_are_those_that_onnx_finds(tmp_path, weights_as_inputs) -> None:
    path = tmp_path / "model.onnx"
    made = model(path, weights_as_inputs=weights_as_inputs)
    found = look(path, SourceFormat.ONNX).interface
    assert found is not None
    for ports, specs in ((found.inputs, input_specs(made)), (found.outputs, output_specs(made))):
        assert [(p.name, p.dtype) for p in ports] == [(s.name, s.dtype) for s in specs]
    assert [str(port) for port in found.inputs] == [
        "float32[?,3,?,8]",
        "int64[]",
        "bfloat16[2]",
    ]


def test_a_damaged_model_has_no_known_inputs(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    model(path)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        interface(path)  # never an error
    path.write_bytes(whole[:-3])
    assert interface(path) is None


def test_numbers_are_found_and_everything_else_passed_over() -> None:
    data = bytes.fromhex("08 96 01 12 03 61 62 63 25 00 01 02 03 18 07")
    assert list(numbers(data, 0, len(data))) == [(1, 150), (3, 7)]
    with pytest.raises(MalformedMessage):
        list(numbers(bytes.fromhex("12 09 61"), 0, 3))
    with pytest.raises(MalformedMessage):
        list(numbers(bytes.fromhex("0b"), 0, 1))
    from farm.formats.protobuf import Effort

    with pytest.raises(TooManyFields):
        list(numbers(data, 0, len(data), Effort(2)))
