"""The real Triton Inference Server on what the farm writes for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from farm.registry import triton
from farm.schemas.engines import EngineView
from farm.specs.triton import Backend
from farm.testing import documents
from tests import triton as server
from tests.e2e.live import wait_until
from tests.triton import Triton

HOSTILE = "a\"'\\ \u2028\U0001f600é"
X = {"name": "x", "dtype": "float32", "shape": ["batch", 3]}
Y = {"name": "y", "dtype": "float32", "shape": ["batch", 3]}
SIZES = {"min": [1, 3], "opt": [4, 3], "max": [8, 3]}


def engine(runtime: str, gpu: str, content: bytes = b"x", **changes: Any) -> EngineView:
    named = {"runtime": runtime, "gpu": gpu, "precision": "fp32"}
    given = {"inputs": [X], "outputs": [Y], "profiles": [{"x": SIZES}]}
    return EngineView.model_validate(documents.engine(content, **(named | given | changes)))


def graph(nodes: list[Any], inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> bytes:
    def tensors(given: Mapping[str, Any]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in given.items()
        ]

    made = helper.make_graph(nodes, "g", tensors(inputs), tensors(outputs))
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())


DOUBLE = graph(
    [helper.make_node("Add", ["x", "x"], ["y"])], {"x": ["batch", 3]}, {"y": ["batch", 3]}
)


def put(repository: Path, model: triton.Model, content: bytes) -> None:
    version = repository / model.name / str(model.version)
    version.mkdir(parents=True)
    for name, text in model.files.items():
        (version / name).write_bytes(text)
    for name in model.engines:
        (version / name).write_bytes(content)
    (version.parent / triton.CONFIG).write_text(model.config)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with server.running(tmp_path_factory.mktemp("triton") / "repository") as running:
        yield running


@pytest.fixture
def client(served: Triton) -> Iterator[Any]:
    http = pytest.importorskip("tritonclient.http")
    made = http.InferenceServerClient(served.url.removeprefix("http://"), concurrency=16)
    yield made
    made.close()


def ask(client: Any, model: str, arrays: Mapping[str, Any], outputs: list[str]) -> list[Any]:
    from tritonclient.http import InferInput

    inputs = []
    for name, array in arrays.items():
        given = InferInput(name, list(array.shape), "FP32")
        given.set_data_from_numpy(array)
        inputs.append(given)
    answer = client.infer(model, inputs)
    return [answer.as_numpy(name) for name in outputs]


@pytest.mark.parametrize(
    ("runtime", "gpu", "backend", "missing"),
    [
        ("tensorrt", "l4", None, "tensorrt"),
        ("onnxruntime", "l4", None, "onnxruntime"),
        ("onnxruntime", "cpu", Backend.ONNXRUNTIME, "onnxruntime"),
        ("torchscript", "cpu", None, "pytorch"),
    ],
)
def test_triton_reads_the_config_and_lacks_nothing_but_the_backend(
    served: Triton, runtime: str, gpu: str, backend: Backend | None, missing: str
) -> None:
    name = f"{runtime}-{gpu}"
    put(served.repository, triton.model(engine(runtime, gpu), backend=backend, name=name), b"x")
    reason = (
        f"Invalid argument: unable to find backend library for backend '{missing}', "
        "try specifying runtime on the model configuration."
    )
    assert served.load(name) == (
        f"load failed for model '{name}': version 1 is at UNAVAILABLE state: {reason};\n"
    )
    [told] = [one for one in served.index() if one["name"] == name]
    assert (told["state"], told["reason"]) == ("UNAVAILABLE", reason)


def test_triton_reads_the_config_of_a_mixed_fleet(served: Triton) -> None:
    engines = [engine("tensorrt", gpu, id=f"01m7y8mbznsseg{gpu}") for gpu in ("t4", "l4")]
    [made], _ = triton.models([one.model_copy(update={"model": "fleet"}) for one in engines])
    put(served.repository, made, b"x")
    assert "backend library for backend 'tensorrt'" in str(served.load("fleet"))


def test_triton_refuses_a_config_that_does_not_fit_its_grammar(served: Triton) -> None:
    """So that the tests above say something."""
    made = triton.model(engine("tensorrt", "l4"), name="broken")
    put(served.repository, made, b"x")
    config = served.repository / "broken" / triton.CONFIG
    config.write_text(made.config.replace("max_batch_size", "max_batches"))
    assert "backend library" not in str(served.load("broken"))


def test_the_wrapper_answers_batches_of_any_size(served: Triton, client: Any) -> None:
    made = triton.model(engine("onnxruntime", "cpu", DOUBLE), name="double")
    put(served.repository, made, DOUBLE)
    assert served.load("double") is None
    for size in (1, 2, 8):
        given = np.random.default_rng(size).random((size, 3), np.float32)
        [found] = ask(client, "double", {"x": given}, ["y"])
        np.testing.assert_array_equal(found, given + given)
    told = served.config("double")
    assert told["max_batch_size"] == 8
    assert "dynamic_batching" in told
    with pytest.raises(Exception, match="batch"):
        ask(client, "double", {"x": np.zeros((9, 3), np.float32)}, ["y"])


def test_requests_at_once_are_answered_in_one_batch_each_with_its_own(
    served: Triton, client: Any
) -> None:
    made = triton.model(engine("onnxruntime", "cpu", DOUBLE), name="batched")
    # All of them wait for the first full batch.
    waiting = (
        "dynamic_batching {\n  preferred_batch_size: 8\n  max_queue_delay_microseconds: 5000000"
    )
    config = made.config.replace("dynamic_batching { }", f"{waiting}\n}}")
    assert config != made.config
    put(served.repository, made, DOUBLE)
    (served.repository / "batched" / triton.CONFIG).write_text(config)
    assert served.load("batched") is None
    before = counts(client, "batched")  # those of the warm-up
    given = [np.full((1, 3), number, np.float32) for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        url = served.url.removeprefix("http://")
        found = list(threads.map(lambda one: _asked(url, "batched", one), given))
    np.testing.assert_array_equal(np.concatenate(found), 2 * np.concatenate(given))
    # It counts after it has answered.
    wait_until("Triton has counted all", lambda: counts(client, "batched")[0] >= before[0] + 8)
    inferences, executions = counts(client, "batched")
    assert inferences - before[0] == 8
    assert executions - before[1] < 8


def counts(client: Any, model: str) -> tuple[int, int]:
    """Inferences, and the batches that they were executed in."""
    [told] = client.get_inference_statistics(model)["model_stats"]
    return told["inference_count"], told["execution_count"]


def _asked(url: str, model: str, array: Any) -> Any:
    from tritonclient.http import InferenceServerClient

    client = InferenceServerClient(url)  # one a thread: its connections are greenlets
    try:
        return ask(client, model, {"x": array}, ["y"])[0]
    finally:
        client.close()


def test_strange_names_and_scalars_are_served(served: Triton, client: Any) -> None:
    node = helper.make_node("Mul", [HOSTILE, "factor"], ["product"])
    total = helper.make_node("ReduceSum", ["product"], ["total"], keepdims=0)
    inside = {HOSTILE: ["rows", 3], "factor": []}
    content = graph([node, total], inside, {"product": ["rows", 3], "total": []})
    shapes = {HOSTILE: ["rows", 3], "factor": [], "product": ["rows", 3], "total": []}
    specs = [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]
    ranges = {"min": [1, 3], "opt": [2, 3], "max": [8, 3]}
    given = {"inputs": specs[:2], "outputs": specs[2:], "profiles": [{HOSTILE: ranges}]}
    made = triton.model(engine("onnxruntime", "cpu", content, **given), name="strange")
    put(served.repository, made, content)
    assert served.load("strange") is None
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    product, whole = ask(
        client, "strange", {HOSTILE: array, "factor": np.array([3], np.float32)}, ["product", "total"]
    )  # fmt: skip
    np.testing.assert_array_equal(product, 3 * array)
    assert whole.tolist() == [45.0]


def test_a_request_that_fails_in_the_engine_is_told_why(served: Triton, client: Any) -> None:
    node = helper.make_node("Concat", ["x", "z"], ["y"], axis=1)
    shapes = {"x": ["rows", 3], "z": ["others", 3]}
    content = graph([node], shapes, {"y": ["rows", 6]})
    inputs = [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]
    outputs = [{"name": "y", "dtype": "float32", "shape": ["rows", 6]}]
    given = {"inputs": inputs, "outputs": outputs, "profiles": []}
    made = triton.model(engine("onnxruntime", "cpu", **given), name="concat")
    put(served.repository, made, content)
    assert served.load("concat") is None
    arrays = {"x": np.zeros((2, 3), np.float32), "z": np.zeros((1, 3), np.float32)}
    with pytest.raises(Exception, match="Concat"):
        ask(client, "concat", arrays, ["y"])


@pytest.mark.parametrize(
    "dtype",
    "bool uint8 int8 int16 uint16 int32 int64 uint32 uint64 float16 float64".split(),
)
def test_every_type_arrives_and_comes_back(served: Triton, client: Any, dtype: str) -> None:
    from tritonclient.http import InferInput
    from tritonclient.utils import np_to_triton_dtype

    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inside, outside = (
        [helper.make_tensor_value_info(name, element, ["batch", 3])] for name in ("x", "y")
    )
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", inside, outside)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    given = {"inputs": [X | {"dtype": dtype}], "outputs": [Y | {"dtype": dtype}]}
    content = bytes(model.SerializeToString())
    name = f"identity-{dtype}"
    put(served.repository, triton.model(engine("onnxruntime", "cpu", **given), name=name), content)
    assert served.load(name) is None
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    asked = InferInput("x", [2, 3], np_to_triton_dtype(array.dtype))
    asked.set_data_from_numpy(array)
    found = client.infer(name, [asked]).as_numpy("y")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
