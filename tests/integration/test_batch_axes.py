"""The batch where a model has it: on any axis, on another for each input, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from farm.errors import InvalidData, ProfileMismatch
from farm.specs.batch_axes import batch_symbol
from farm.specs.precision import Precision
from farm.specs.shapes import ShapeRange, TensorSpec
from tests.zoo import runner
from workers.inputs.batch import Batch
from workers.inputs.profiles import AxisRange, computed, resolve_profiles
from workers.inputs.samples import check_samples

RANDOM = np.random.default_rng(3)


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def sizes(low: Sequence[int], opt: Sequence[int], high: Sequence[int]) -> ShapeRange:
    return ShapeRange(min=tuple(low), opt=tuple(opt), max=tuple(high))


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("inputs", "symbol"),
    [
        ([spec("x", "n", 3, "h", "w")], "n"),
        ([spec("x", "seq", "batch", 40), spec("h", 2, "batch", 64)], "batch"),
        ([spec("x", "T", "N", 40)], "N"),
        ([spec("x", "s0", "s1", 40), spec("h", 2, "s1", 64)], "s1"),
        ([spec("x", "s0", "s1", 40), spec("lengths", "s1", dtype="int64")], "s1"),
        ([spec("x", "s0", "s1", 40), spec("h", 2, "s0", 64)], "s0"),
        ([spec("x", 20, "s0", 40)], "s0"),
        ([spec("ids", "batch_size", "seq"), spec("positions", "seq")], "batch_size"),
        ([spec("points", "B", "N", 3)], "B"),
        ([spec("k", 1), spec("x", "x_0", 3, 16, 16)], "x_0"),
        ([spec("image", 1, 3, "h", "w")], None),
        ([spec("tokens", 1, "s0")], None),
        ([spec("x", 4, 3)], None),
    ],
    ids=str,
)
def test_the_batch_is_known_by_its_name_or_its_place(
    inputs: Sequence[TensorSpec], symbol: str | None
) -> None:
    assert batch_symbol(inputs) == symbol


@pytest.mark.parametrize("names", [("?", "?"), ("input_0", "state_1")], ids=str)
def test_the_axis_of_a_state_without_names_is_known_by_its_range(names: tuple[str, str]) -> None:
    inputs = [spec("input", names[0], 576), spec("state", 2, names[1], 128)]
    profile = {
        "input": sizes((1, 576), (8, 576), (32, 576)),
        "state": sizes((2, 1, 128), (2, 8, 128), (2, 32, 128)),
    }
    batch = Batch.of(inputs, profile)
    assert batch.axes == {"input": 0, "state": 1}
    arrays = {"input": normal(96, 576), "state": normal(2, 96, 128)}
    assert batch.count(check_samples(arrays, inputs, profile)) == 96
    other = profile | {"state": sizes((2, 1, 128), (2, 4, 128), (2, 4, 128))}
    assert Batch.of(inputs, other).axes["state"] is None


def test_a_recurrent_state_has_the_batch_of_the_others_by_default() -> None:
    inputs = [spec("x", "batch", 20, 40), spec("h", 1, "batch", 64)]
    [profile] = resolve_profiles(inputs, ())
    assert profile["x"] == sizes((1, 20, 40), (8, 20, 40), (64, 20, 40))
    assert profile["h"] == sizes((1, 1, 64), (1, 8, 64), (1, 64, 64))
    state_first = list(reversed(inputs))
    assert resolve_profiles(state_first, ())[0] == profile


def test_a_sequence_in_front_isnt_given_the_sizes_of_a_batch() -> None:
    inputs = [spec("x", "seq", "batch", 40), spec("h", 1, "batch", 64)]
    with pytest.raises(ProfileMismatch, match="axis 0 of input 'x' is dynamic"):
        resolve_profiles(inputs, ())
    [profile] = resolve_profiles(inputs, (), {"seq": AxisRange(1, 12, 50)})
    assert profile["x"] == sizes((1, 1, 40), (12, 8, 40), (50, 64, 40))


def test_samples_are_counted_and_split_along_the_batch() -> None:
    inputs = [spec("x", "seq", "batch", 4), spec("h", 2, "batch", 8), spec("table", 5, 4)]
    asked = {"x": sizes((1, 1, 4), (7, 4, 4), (9, 16, 4))}
    [profile] = resolve_profiles(inputs, [asked])
    batch = Batch.of(inputs, profile, [spec("y", "seq", "batch", 3), spec("all", 5, 4)])
    assert (batch.min, batch.opt, batch.max, batch.is_dynamic) == (1, 4, 16, True)
    assert [batch.axis_of(name) for name in ("x", "h", "table")] == [1, 1, None]
    assert [batch.axis_of_output(name) for name in ("y", "all")] == [1, None]
    assert batch.at(profile, 3) == {"x": (7, 3, 4), "h": (2, 3, 8), "table": (5, 4)}
    arrays = {"x": normal(7, 10, 4), "h": normal(2, 10, 8), "table": normal(5, 4)}
    samples = check_samples(arrays, inputs, profile)
    assert batch.count(samples) == 10
    parts = list(batch.split(samples, 4))
    assert [part["x"].shape for part in parts] == [(7, 4, 4), (7, 4, 4), (7, 2, 4)]
    assert [part["h"].shape for part in parts] == [(2, 4, 8), (2, 4, 8), (2, 2, 8)]
    np.testing.assert_array_equal(parts[1]["x"], arrays["x"][:, 4:8])
    assert len(list(batch.split(samples, 4, smallest=3))) == 2


def test_data_with_samples_on_another_axis_are_refused_by_name() -> None:
    inputs = [spec("x", "seq", "batch", 4), spec("h", 2, "batch", 8)]
    [profile] = resolve_profiles(inputs, [{"x": sizes((1, 1, 4), (7, 4, 4), (9, 16, 4))}])
    with pytest.raises(InvalidData, match="different numbers of samples") as caught:
        check_samples({"x": normal(7, 10, 4), "h": normal(2, 9, 8)}, inputs, profile)
    assert "axis 1 of 'x', axis 1 of 'h'" in str(caught.value.hint)
    with pytest.raises(InvalidData, match="axis 0 of the data for input 'x' is 10"):
        check_samples({"x": normal(10, 7, 4), "h": normal(2, 7, 8)}, inputs, profile)


def test_a_cache_may_be_of_length_zero_and_a_batch_may_not() -> None:
    inputs = [
        spec("ids", "batch_size", "sequence"),
        spec("mask", "batch_size", "past + sequence"),
        spec("past_key", "batch_size", 4, "past", 16),
    ]
    asked = {
        "ids": sizes((1, 1), (2, 4), (4, 8)),
        "past_key": sizes((1, 4, 0, 16), (2, 4, 6, 16), (4, 4, 32, 16)),
    }
    [profile] = resolve_profiles(inputs, [asked])
    assert profile["mask"] == sizes((1, 1), (2, 10), (4, 40))
    with pytest.raises(ProfileMismatch, match="the batch, but the profile starts at 0"):
        resolve_profiles(
            inputs,
            [
                {
                    "ids": sizes((0, 1), (2, 4), (4, 8)),
                    "past_key": sizes((0, 4, 0, 16), (2, 4, 6, 16), (4, 4, 32, 16)),
                }
            ],
        )


def test_an_axis_computes_with_sizes_and_nothing_else() -> None:
    known = {"past": (0, 6, 32), "s": (1, 4, 8)}
    assert computed("2*s + past", known) == (2, 14, 48)
    for name in ("other + s", "__import__('os')", "s.real", "s(1)", "past - s", "unk__12", "s +"):
        assert computed(name, known) is None


class Recurrent(nn.Module):
    """Sequence first, with its state passed in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made, state = self.gru(x, h)
        return self.head(made[-1]), state


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("recurrent") / "gru.pt2"
    batch = torch.export.Dim("batch", min=1, max=32)
    example = torch.zeros(6, 2, 16), torch.zeros(1, 2, 32)
    program = torch.export.export(
        Recurrent().eval(), example, dynamic_shapes=({1: batch}, {1: batch})
    )
    torch.export.save(program, path)
    return path


@pytest.mark.heavy
def test_a_recurrent_program_is_built_and_measured_along_its_batch(
    recurrent: Path, tmp_path: Path
) -> None:
    samples = {"x": normal(6, 24, 16), "h": normal(1, 24, 32)}
    source = runner.Source(name="gru", path=recurrent, format="pt2", samples=samples)
    for one in runner.build(
        source, precisions=[Precision.FP32, Precision.FP16], gpus=["cpu"], folder=tmp_path
    ):
        assert one.error is None, one.error
        assert one.accuracy.samples == 8  # every third in four batches of 8 is held out
        assert one.accuracy.cosine_mean > 0.999
        assert one.facts["inputs"][0]["shape"] == [6, "batch", 16]
        assert one.facts["inputs"][1]["shape"] == [1, "batch", 32]
        assert one.facts["outputs"][1]["shape"] == [1, "batch", 32]
        assert one.facts["profiles"][0]["h"]["max"] == [1, 32, 32]


def graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, Sequence[int | str]],
    tensors: Mapping[str, np.ndarray],
) -> Path:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(made, opset_imports=imports, ir_version=9), str(path))
    return path


def test_a_decoder_whose_first_cache_is_empty_is_built(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["kn"]),
        helper.make_node("Concat", ["past", "kn"], ["present"], axis=1),
        helper.make_node("ReduceSum", ["present", "one"], ["y"], keepdims=0),
    ]
    kind = TensorProto.FLOAT
    path = graph(
        tmp_path / "m.onnx",
        nodes,
        {"x": (kind, ["batch", 1, 16]), "past": (kind, ["batch", "past", 16])},
        {"y": ["batch", 16], "present": ["batch", "past + 1", 16]},
        {"w": normal(16, 16), "one": np.array([1])},
    )
    profile = {"past": sizes((1, 0, 16), (2, 4, 16), (4, 16, 16))}
    samples = {"x": normal(8, 1, 16), "past": normal(8, 4, 16)}
    source = runner.Source(name="kv", path=path, format="onnx", samples=samples, profiles=[profile])
    for one in runner.build(
        source, precisions=[Precision.FP32], gpus=["cpu", "sm_89"], folder=tmp_path
    ):
        assert one.error is None, one.error
        assert one.facts["profiles"][0]["past"]["min"] == [1, 0, 16]
