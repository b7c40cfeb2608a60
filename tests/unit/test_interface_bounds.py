"""Names and sizes of inputs and outputs beyond what the farm keeps are the model's fault."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from farm.errors import InvalidModel, ProfileMismatch
from farm.specs.shapes import ShapeRange, TensorSpec
from workers.graphs.interface import check_is_tensor
from workers.inputs.profiles import resolve_profiles


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x" * 1_000_000, ["n", 4]),
        ("x", ["n" * 1_000_000, 4]),
        ("x", [1] * 65),
    ],
)
def test_an_input_or_output_beyond_the_bounds_is_refused_by_name(name, shape):
    with pytest.raises(InvalidModel, match="an input or output, 'x") as told:
        check_is_tensor(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    assert len(told.value.detail) < 1000


@pytest.mark.parametrize("shape", [[], ["n", 4], [2**31 - 1], ["n" * 4096], [-3, 4], [0]])
def test_an_input_or_output_within_the_bounds_is_taken(shape):
    check_is_tensor(helper.make_tensor_value_info("x" * 4096, TensorProto.FLOAT, shape))


@pytest.mark.parametrize("size", [2**31, 2**62, "n * 100000000"])
def test_sizes_that_make_no_profile_are_named_with_the_input(size):
    spec = TensorSpec(name="x", dtype="float32", shape=("n", size))
    with pytest.raises(ProfileMismatch, match=r"the sizes of input 'x' .* make no profile: .*1:"):
        resolve_profiles([spec], ())
    given = ShapeRange(min=(1, 9), opt=(2, 9), max=(4, 9))
    dynamic = TensorSpec(name="x", dtype="float32", shape=("n", "n * 100000000"))
    assert resolve_profiles([dynamic], [{"x": given}])[0]["x"] == given
