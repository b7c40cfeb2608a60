"""Models that a program holds are submitted as they are."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from farm.client import Farm, objects
from farm.errors import InvalidRequest, NameMissing, SourceRefused
from farm.testing import stub_farm

TARGETS = {"targets": ["cpu"], "precisions": ["fp32"]}


class TinyClassifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, scale=None):
        made = self.drop(self.layer(x))
        return made if scale is None else made * scale


class Moody(torch.nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class OnlyTwo(torch.nn.Module):
    def forward(self, x):
        first, second = x.unbind(0)
        return first + second


@pytest.fixture
def stub():
    with stub_farm.running() as farm:
        yield farm


@pytest.fixture
def farm(stub):
    with Farm(stub.url) as client:
        yield client


def saved(source, example_inputs=None):
    with objects.on_disk(source, example_inputs) as made:
        return torch.export.load(made.source)


@pytest.mark.parametrize("size", [1, 3])
def test_a_module_is_exported_in_eval_mode_with_a_dynamic_batch(size):
    module = TinyClassifier()
    module.layer.eval()
    program = saved(module, (torch.ones(size, 4),))
    x = torch.randn(7, 4)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), module.layer(x))
    assert (module.training, module.layer.training, module.drop.training) == (True, False, True)


@pytest.mark.parametrize(
    "example",
    [torch.ones(2, 4), [torch.ones(2, 4)], {"x": torch.ones(2, 4)}],
    ids=["tensor", "list", "mapping"],
)
def test_example_inputs_are_a_tensor_arguments_or_a_mapping(example):
    program = saved(TinyClassifier(), example)
    assert program.graph_signature.user_inputs == ("x",)


def test_a_tensor_given_twice_is_two_inputs():
    x = torch.ones(2, 4)

    class Sum(torch.nn.Module):
        def forward(self, a, b):
            return a - b

    made = saved(Sum(), (x, x)).module()(torch.ones(3, 4) * 5, torch.ones(3, 4))
    assert made.unique().tolist() == [4.0]


def test_a_module_whose_batch_cannot_vary_is_exported_for_the_examples_and_that_is_told():
    with pytest.warns(UserWarning, match="OnlyTwo is exported for the example's batch only"):
        program = saved(OnlyTwo(), (torch.ones(2, 4),))
    assert program.module()(torch.ones(2, 4)).tolist() == [2.0] * 4


def test_what_torch_cannot_export_is_refused_with_its_own_message(farm, stub):
    with pytest.raises(SourceRefused, match=r"torch\.export can't export Moody") as caught:
        farm.submit(Moody(), example_inputs=(torch.ones(2, 4),), **TARGETS)
    assert str(caught.value.__cause__) in caught.value.detail
    assert "data-dependent" in caught.value.detail
    assert not stub.seen


def test_objects_are_submitted_in_their_formats_under_their_names(farm, stub):
    x = torch.ones(2, 4)
    module = TinyClassifier().eval()
    program = torch.export.export(module, (x,))
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "tiny-relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    build = farm.submit(module, example_inputs=x, **TARGETS)
    assert build.named_after == "its class"
    farm.submit(program, name="mine", **TARGETS)
    farm.submit(torch.jit.trace(module, x), **TARGETS)
    farm.submit(helper.make_model(graph), **TARGETS)
    sent = [(one["model"], one["source"]["format"]) for one in stub.submitted]
    assert sent == [
        ("TinyClassifier", "pt2"),
        ("mine", "pt2"),
        ("TinyClassifier", "torchscript"),
        ("tiny-relu", "onnx"),
    ]
    assert all(one["source"]["digest"] in stub.blobs for one in stub.submitted)
    with pytest.raises(NameMissing):
        farm.submit(program, **TARGETS)
    with pytest.raises(NameMissing):
        farm.submit(torch.nn.Sequential(torch.nn.Linear(4, 2)), example_inputs=x, **TARGETS)


def test_a_large_model_is_saved_with_its_weights_beside_it_and_stays_as_it_is(monkeypatch):
    weight = numpy_helper.from_array(torch.ones(64, 64).numpy(), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [weight],
    )
    model = helper.make_model(graph)
    before = model.SerializeToString()
    monkeypatch.setattr(objects, "_MAX_PROTO_BYTES", 1000)
    with objects.on_disk(model) as made:
        assert [one.name for one in sorted(made.source.parent.iterdir())] == [
            "model.onnx",
            "model.onnx.data",
        ]
        [kept] = onnx.load(made.source).graph.initializer
        assert (numpy_helper.to_array(kept) == 1).all()
    assert not made.source.exists()
    assert model.SerializeToString() == before


@pytest.mark.parametrize("source", [{"weights": 1}, torch.ones(2), 5])
def test_what_is_no_model_is_refused(farm, stub, source):
    with pytest.raises(InvalidRequest, match="isn't a model") as caught:
        farm.submit(source, **TARGETS)
    assert "torch.nn.Module with example_inputs" in caught.value.hint
    assert not stub.seen


def test_a_module_without_example_inputs_says_how_to_pass_them(farm):
    with pytest.raises(InvalidRequest, match="needs example inputs"):
        farm.submit(TinyClassifier(), **TARGETS)


def test_the_client_imports_no_framework():
    code = "import sys, farm.client; print({'torch', 'onnx', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
