"""What programs return: nested, twice, sizes, numbers, in containers of their authors'."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from farm.errors import InvalidModel
from farm.specs.precision import Precision
from farm.stages import ExportParams, JobKind
from tests.zoo import runner
from workers.backends.ort.cpu import OrtModel
from workers.programs.treespecs import plain_treespec
from workers.stages import export
from workers.stages.base import Stage

RANDOM = np.random.default_rng(11)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a = nn.Linear(16, 32)
        self.h = nn.Linear(32, 4)
        self.register_buffer("anchors", torch.rand(5, 4))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.a(x))


class Twice(Base):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.features(x)
        return {"last": found, "hidden": found, "logits": self.h(found)}


class Through(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.h(self.features(x)), x, self.anchors


class Numbers(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.h(self.features(x)), None, 0.5, x.shape[0]


class Nested(Base):
    def forward(self, x: torch.Tensor) -> Any:
        found = self.features(x)
        return {"logits": self.h(found), "all": (found, [x * 2]), "x": x + 1}


class Called(Base):
    def forward(self, output: torch.Tensor) -> torch.Tensor:
        return self.h(self.features(output))


class Ordered(Base):
    def forward(self, x: torch.Tensor) -> Any:
        found = self.features(x)
        return OrderedDict(logits=self.h(found), features=found)


@dataclasses.dataclass
class Data:
    logits: torch.Tensor
    features: torch.Tensor
    loss: torch.Tensor | None = None


class Named(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


class Cache:
    """As caches of transformers are: registered by functions of its own."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        self.keys, self.values = keys, values


class Dataclassed(Base):
    def forward(self, x: torch.Tensor) -> Data:
        found = self.features(x)
        return Data(self.h(found), found)


class Tupled(Base):
    def forward(self, x: torch.Tensor) -> Named:
        found = self.features(x)
        return Named(self.h(found), found)


class Cached(Base):
    def forward(self, x: torch.Tensor, cache: Cache) -> Any:
        keys = [torch.cat([key, x], 0) for key in cache.keys]
        return {"logits": self.h(self.features(x)), "cache": Cache(keys, cache.values)}


class Flagged(Base):
    def forward(self, x: torch.Tensor, scale: float = 2.0, *, as_dict: bool = True) -> Any:
        made = self.h(self.features(x)) * scale
        return {"logits": made} if as_dict else made


@pytest.fixture
def registered() -> Any:
    """Classes that torch knows while a program is saved, and no more when it is loaded."""
    pytree = torch.utils._pytree
    torch.export.register_dataclass(Data, serialized_type_name="their.Data")
    pytree._register_namedtuple(Named, serialized_type_name="their.Named")
    pytree.register_pytree_node(
        Cache,
        lambda cache: ([cache.keys, cache.values], ["keys", "values"]),
        lambda leaves, _: Cache(*leaves),
        serialized_type_name="their.Cache",
        flatten_with_keys_fn=lambda cache: (
            [(pytree.MappingKey("keys"), cache.keys), (pytree.MappingKey("values"), cache.values)],
            ["keys", "values"],
        ),
    )
    yield
    for kind in (Data, Named, Cache):
        forget(kind)


def forget(kind: type) -> None:
    pytree = torch.utils._pytree
    pytree.SUPPORTED_NODES.pop(kind, None)
    definition = pytree.SUPPORTED_SERIALIZED_TYPES.pop(kind, None)
    if definition is not None:
        pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.pop(definition.serialized_type_name, None)
    pytree.CONSTANT_NODES.discard(kind)


def saved(path: Path, module: nn.Module, *args: Any, dynamic: Any, **kwargs: Any) -> Path:
    with torch.no_grad():
        program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return path


def batched(path: Path, module: nn.Module) -> Path:
    batch = torch.export.Dim("batch", min=1, max=16)
    return saved(path, module, torch.zeros(3, 16), dynamic=({0: batch},))


def exported(path: Path) -> tuple[OrtModel, dict[str, Any]]:
    workdir = path.parent / "made"
    workdir.mkdir()
    stage = Stage(
        kind=JobKind.EXPORT,
        params=ExportParams.model_validate({"format": "pt2"}),
        inputs={"source": path},
        workdir=workdir,
        progress=lambda *_: None,
    )
    result = export.run(stage)
    return OrtModel(result.outputs["onnx"]), result.facts.model_dump(mode="json")


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def logits(module: Base, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module.h(module.features(torch.from_numpy(x))).numpy()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Twice, ["last", "hidden", "logits"]),
        (Through, ["output_0", "output_1", "output_2"]),
        (Numbers, ["output_0", "output_1"]),
        (Nested, ["logits", "all_0", "all_1_0", "x_out"]),
        (Called, ["output_out"]),
        (Ordered, ["logits", "features"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_outputs_have_names_that_tell_them_apart_and_their_values(
    kind: type[Base], names: list[str], tmp_path: Path
) -> None:
    module = kind()
    model, facts = exported(batched(tmp_path / "m.pt2", module))
    x = floats(5, 16)
    made = model.run({model.input_names[0]: x})
    assert list(made) == names
    with torch.no_grad():
        result = module(torch.from_numpy(x))
    leaves = torch.utils._pytree.tree_leaves(result)
    kept = [leaf for leaf in leaves if leaf is not None and not isinstance(leaf, float)]
    for name, expected in zip(names, kept, strict=True):
        np.testing.assert_allclose(made[name], np.asarray(expected), atol=1e-5)
    left_out = {"output_2": "it is always 0.5"} if kind is Numbers else None
    assert facts["check"].get("left_out") == left_out


@pytest.mark.parametrize("kind", [Dataclassed, Tupled])
def test_a_class_of_the_authors_is_flattened_by_what_the_program_carries(
    kind: type[Base], registered: None, tmp_path: Path
) -> None:
    module = kind()
    path = batched(tmp_path / "m.pt2", module)
    forget(Data)
    forget(Named)
    model, _ = exported(path)
    x = floats(2, 16)
    made = model.run({"x": x})
    assert list(made) == ["logits", "features"]
    np.testing.assert_allclose(made["logits"], logits(module, x), atol=1e-5)


def test_a_cache_is_taken_and_given_as_tensors(registered: None, tmp_path: Path) -> None:
    module = Cached()
    past = torch.export.Dim("past", min=1, max=64)
    cache = Cache([torch.zeros(4, 16)], [torch.zeros(4, 16)])
    path = saved(
        tmp_path / "m.pt2",
        module,
        torch.zeros(1, 16),
        cache,
        dynamic=({}, [[{0: past}], [{}]]),
    )
    forget(Cache)
    model, _ = exported(path)
    assert model.input_names == ["x", "cache_keys_0", "cache_values_0"]
    assert model.output_names == ["logits", "cache_keys_0_out", "cache_values_0_out"]
    x, key, value = floats(1, 16), floats(7, 16), floats(4, 16)
    made = model.run({"x": x, "cache_keys_0": key, "cache_values_0": value})
    np.testing.assert_allclose(made["cache_keys_0_out"], np.concatenate([key, x]), atol=1e-6)
    np.testing.assert_array_equal(made["cache_values_0_out"], value)


def test_what_a_program_takes_one_value_of_is_no_input(tmp_path: Path) -> None:
    module = Flagged()
    batch = torch.export.Dim("batch", min=1, max=16)
    path = saved(
        tmp_path / "m.pt2",
        module,
        torch.zeros(3, 16),
        3.0,
        dynamic={"x": {0: batch}, "scale": None, "as_dict": None},
        as_dict=True,
    )
    model, _ = exported(path)
    assert (model.input_names, model.output_names) == (["x"], ["logits"])
    x = floats(2, 16)
    np.testing.assert_allclose(model.run({"x": x})["logits"], logits(module, x) * 3, atol=1e-4)


def test_a_program_without_a_tensor_to_give_is_told_so(tmp_path: Path) -> None:
    class Nothing(Base):
        def forward(self, x: torch.Tensor) -> Any:
            return 2, None

    with pytest.raises(InvalidModel, match="none of the program's outputs is a tensor"):
        exported(batched(tmp_path / "m.pt2", Nothing()))


def test_no_class_of_a_program_is_looked_up() -> None:
    leaf = {"type": None, "context": None, "children_spec": []}

    def plain(kind: str, context: Any, count: int, fields: Any = None) -> Any:
        written = context if isinstance(context, str) else json.dumps(context)
        node = {"type": kind, "context": written, "children_spec": [leaf] * count}
        return json.loads(plain_treespec(json.dumps([1, node]), fields or {}))[1]

    assert plain("os.system", ["a", "b"], 2)["type"] == "builtins.dict"
    assert plain("os.system", ["a", "b"], 2)["context"] == '["a", "b"]'
    assert plain("their.Data", [["a", "b"], ["none"]], 2)["context"] == '["a", "b"]'
    assert plain("their.Data", {"__enum__": True, "fqn": "os:x"}, 2)["type"] == "builtins.tuple"
    assert plain("their.Data", ["a", "a"], 2)["type"] == "builtins.tuple"
    named = plain("collections.namedtuple", "their.Named", 2, {"their.Named": ["p", "q"]})
    assert named["context"] == '["p", "q"]'


@pytest.mark.heavy
def test_a_program_of_nested_outputs_is_built_for_every_runtime(tmp_path: Path) -> None:
    path = batched(tmp_path / "m.pt2", Twice())
    source = runner.Source(name="twice", path=path, format="pt2", samples={"x": floats(32, 16)})
    for one in runner.build(
        source,
        precisions=[Precision.FP32],
        gpus=["cpu", "torchscript:cpu", "sm_89"],
        folder=tmp_path,
    ):
        assert one.error is None, one.error
        assert one.accuracy.cosine_mean > 0.9999
        assert [spec["name"] for spec in one.facts["outputs"]] == ["last", "hidden", "logits"]
