"""What Triton is told of an engine, as Triton's own protobuf reads it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from farm.errors import TritonUnsupported
from farm.registry import pbtxt, triton
from farm.schemas.engines import EngineView
from farm.specs.triton import Backend
from farm.testing import documents

HOSTILE = 'a"\'\\\n}} name: "b" \u2028\x00\x7f1\U0001f600é\\'
IMAGE = {"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224]}
SIZES = {"min": [1, 3, 224, 224], "opt": [8, 3, 224, 224], "max": [64, 3, 224, 224]}
SCORES = {"name": "scores", "dtype": "float32", "shape": ["batch", 1000]}


def engine(runtime: str = "tensorrt", gpu: str = "l4", **changes: Any) -> EngineView:
    named = {"model": "resnet50", "version": 3, "runtime": runtime, "gpu": gpu, "precision": "fp16"}
    given = {"inputs": [IMAGE], "outputs": [SCORES], "profiles": [{"image": SIZES}]}
    return EngineView.model_validate(documents.engine(b"x", **(named | given | changes)))


@pytest.fixture(scope="module")
def protobuf() -> ModuleType:
    """Triton's messages; without the package around them, which imports gRPC."""
    client = importlib.util.find_spec("tritonclient")
    assert client is not None
    assert client.submodule_search_locations
    path = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read(protobuf: ModuleType) -> Any:
    from google.protobuf import text_format

    def read_(model: triton.Model) -> Any:
        assert model.config.isascii()
        return text_format.Parse(model.config, protobuf.ModelConfig())

    return read_


def types(tensors: Any) -> list[tuple[str, int, list[int]]]:
    return [(one.name, one.data_type, list(one.dims)) for one in tensors]


FP32 = 11


def test_a_plan_is_served_in_batches_up_to_its_profiles_largest(read: Any) -> None:
    made = triton.model(engine())
    config = read(made)
    assert (config.name, config.platform, config.backend) == ("resnet50", "tensorrt_plan", "")
    assert config.max_batch_size == 64
    assert types(config.input) == [("image", FP32, [3, 224, 224])]
    assert types(config.output) == [("scores", FP32, [1000])]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert list(config.version_policy.specific.versions) == [3]
    [group] = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, "KIND_GPU")
    [warm] = config.model_warmup
    assert warm.batch_size == 8
    assert list(warm.inputs["image"].dims) == [3, 224, 224]
    assert warm.inputs["image"].zero_data
    assert list(made.engines) == [config.default_model_filename] == ["01m7y8mbznssegkq.plan"]
    assert (made.name, made.version, made.files) == ("resnet50", 3, {})


@pytest.mark.parametrize(
    ("runtime", "gpu", "backend", "told"),
    [
        ("tensorrt", "l4", None, ("tensorrt_plan", "", "KIND_GPU", "01m7y8mbznssegkq.plan")),
        ("onnxruntime", "l4", None, ("", "onnxruntime", "KIND_GPU", "01m7y8mbznssegkq.onnx")),
        ("onnxruntime", "cpu", None, ("", "python", "KIND_CPU", "model.py")),
        ("onnxruntime", "cpu", Backend.ONNXRUNTIME, ("", "onnxruntime", "KIND_CPU", "01m7y8mbznssegkq.onnx")),
        ("torchscript", "cpu", None, ("pytorch_libtorch", "", "KIND_CPU", "01m7y8mbznssegkq.pt")),
    ],
)  # fmt: skip
def test_each_runtime_has_its_backend(
    read: Any, runtime: str, gpu: str, backend: Backend | None, told: tuple[str, ...]
) -> None:
    config = read(triton.model(engine(runtime, gpu), backend=backend))
    [group] = config.instance_group
    kind = group.Kind.Name(group.kind)
    assert (config.platform, config.backend, kind, config.default_model_filename) == told


def test_the_wrapper_is_told_which_file_is_the_engine(read: Any) -> None:
    made = triton.model(engine("onnxruntime", "cpu", runtime_version="1.31.1"))
    config = read(made)
    assert config.parameters["engine"].string_value == "01m7y8mbznssegkq.onnx"
    compile(made.files["model.py"], "model.py", "exec")
    assert "onnxruntime==1.31.1" in made.notes[0]


@pytest.mark.parametrize(
    ("runtime", "gpu", "why", "hint"),
    [
        ("tensorrt-rtx", "sm_75", "no backend for TensorRT-RTX", "tensorrt:sm_75"),
        ("aotinductor", "sm_90", "torch_aoti .* is recent", "onnxruntime:sm_90"),
    ],
)
def test_what_triton_cannot_load_is_refused_with_a_way_out(
    runtime: str, gpu: str, why: str, hint: str
) -> None:
    with pytest.raises(TritonUnsupported, match=why) as refused:
        triton.model(engine(runtime, gpu))
    assert hint in str(refused.value.hint)


def test_the_wrapper_is_for_cpus() -> None:
    with pytest.raises(TritonUnsupported, match="for cpu"):
        triton.model(engine("onnxruntime", "l4"), backend=Backend.PYTHON)


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_a_strangers_names_stay_strings(read: Any, runtime: str) -> None:
    named = {"name": HOSTILE, "dtype": "float32", "shape": ["batch", 3]}
    sizes = {which: [one, 3] for which, one in {"min": 1, "opt": 2, "max": 4}.items()}
    given = {"inputs": [named], "outputs": [named], "profiles": [{HOSTILE: sizes}]}
    config = read(triton.model(engine(runtime, **given)))
    assert [one.name for one in config.input] == [one.name for one in config.output] == [HOSTILE]
    assert list(config.model_warmup[0].inputs) == [HOSTILE]


@pytest.mark.parametrize(
    "text", ["plain", 'with "quotes"', "it's", HOSTILE, "", "\\", "é1", "\x001"]
)
def test_a_quoted_string_is_itself_on_one_line(protobuf: ModuleType, text: str) -> None:
    from google.protobuf import text_format

    line = f"name: {pbtxt.quoted(text)}"
    assert text_format.Parse(line, protobuf.ModelConfig()).name == text
    assert len(line.splitlines()) == 1


def test_torchscripts_tensors_are_known_by_their_places(read: Any) -> None:
    names = ["image", "a__b_", "__", "image"]
    inputs = [IMAGE | {"name": name} for name in names]
    config = read(triton.model(engine("torchscript", "cpu", inputs=inputs, profiles=[])))
    told = [one.name for one in config.input]
    assert told == ["image__0", "a_b__1", "INPUT__2", "image__3"]
    # As the backend reads it: what follows the first two underscores is the place.
    assert [name.split("__", 1)[1] for name in told] == ["0", "1", "2", "3"]
    assert [one.name for one in config.output] == ["scores__0"]


def test_a_model_without_one_batch_axis_is_served_as_it_is(read: Any) -> None:
    state = {"name": "state", "dtype": "float16", "shape": [1, "batch", 64]}
    profile = {"image": SIZES, "state": {which: [1, 8, 64] for which in SIZES}}
    config = read(triton.model(engine(inputs=[IMAGE, state], profiles=[profile])))
    assert config.max_batch_size == 0
    assert types(config.input) == [("image", FP32, [-1, 3, 224, 224]), ("state", 10, [1, -1, 64])]
    assert not config.HasField("dynamic_batching")
    assert config.model_warmup[0].batch_size == 1
    assert list(config.model_warmup[0].inputs["image"].dims) == [8, 3, 224, 224]


@pytest.mark.parametrize(
    ("first", "changes"),
    [
        ("batch", {"profiles": []}),
        ("batch", {"profiles": [{"image": SIZES | {"min": [2, 3, 224, 224]}}]}),
        ("?", {}),
        ("time", {}),
        (8, {}),
    ],
    ids=["no profile", "no single sample", "anonymous", "a sequence", "static"],
)
def test_triton_stacks_samples_only_where_that_is_sure_to_be_right(
    read: Any, first: str | int, changes: dict[str, Any]
) -> None:
    tensors = [one | {"shape": [first, *one["shape"][1:]]} for one in (IMAGE, SCORES)]
    given = {"inputs": tensors[:1], "outputs": tensors[1:]} | changes
    config = read(triton.model(engine(**given)))
    assert config.max_batch_size == 0
    assert list(config.output[0].dims) == [first if isinstance(first, int) else -1, 1000]


def test_a_scalar_a_sample_has_dims_and_no_shape(read: Any) -> None:
    score = {"name": "score", "dtype": "float32", "shape": ["batch"]}
    config = read(triton.model(engine(outputs=[score])))
    assert list(config.output[0].dims) == [1]
    assert config.output[0].HasField("reshape")
    assert list(config.output[0].reshape.shape) == []


def test_a_scalar_is_served_by_the_wrapper_alone(read: Any) -> None:
    inputs = [IMAGE, {"name": "threshold", "dtype": "float32", "shape": []}]
    config = read(triton.model(engine("onnxruntime", "cpu", inputs=inputs)))
    assert list(config.input[1].dims) == [1]
    assert not config.input[1].HasField("reshape")
    with pytest.raises(TritonUnsupported, match="'threshold' is a scalar"):
        triton.model(engine(inputs=inputs))


def test_sizes_are_shape_tensors_of_a_plan_alone_and_no_zeros_warm_them_up(read: Any) -> None:
    size = {"name": "size", "dtype": "int64", "shape": [2]}
    values = {"min": [1, 1], "opt": [32, 48], "max": [64, 64]}
    ranges = {"min": [2], "opt": [2], "max": [2], "values": values}
    given = {"inputs": [IMAGE, size], "profiles": [{"image": SIZES, "size": ranges}]}
    plan = read(triton.model(engine(**given)))
    assert [one.is_shape_tensor for one in plan.input] == [False, True]
    assert list(plan.model_warmup) == []
    assert plan.max_batch_size == 0
    graph = read(triton.model(engine("onnxruntime", **given)))
    assert [one.is_shape_tensor for one in graph.input] == [False, False]


def test_a_type_that_requests_do_not_have_is_refused() -> None:
    with pytest.raises(TritonUnsupported, match="'image' is float8_e4m3fn"):
        triton.model(engine(inputs=[IMAGE | {"dtype": "float8_e4m3fn"}]))


def test_a_mixed_fleet_is_one_model_that_takes_the_plan_for_its_gpu(read: Any) -> None:
    engines = [
        engine(gpu="t4", id="01m7y8mbznsseg01"),
        engine(gpu="l4", id="01m7y8mbznsseg02", profiles=[{"image": SIZES | {"max": [32, 3, 224, 224]}}]),
    ]  # fmt: skip
    [made], left_out = triton.models(engines)
    config = read(made)
    assert left_out == []
    assert dict(config.cc_model_filenames) == {
        "7.5": "01m7y8mbznsseg01.plan",
        "8.9": "01m7y8mbznsseg02.plan",
    }
    assert config.max_batch_size == 32
    assert made.name == config.name == "resnet50"


def test_a_plan_that_runs_on_other_gpus_is_the_default_of_a_mixed_fleet(read: Any) -> None:
    portable = {"hardware_compatibility_level": "ampere_plus"}
    engines = [engine(gpu="t4", id="E1"), engine(gpu="a100", id="E2", options=portable)]
    [made], _ = triton.models(engines)
    assert read(made).default_model_filename == "E2.plan"


def test_other_engines_of_a_fleet_are_models_of_their_own(read: Any) -> None:
    engines = [
        engine(gpu="t4", id="01m7y8mbznsseg01"),
        engine(gpu="l4", id="01m7y8mbznsseg02"),
        engine(gpu="rtx-4090", id="01m7y8mbznsseg03"),  # 8.9 too: one plan a compute capability
        engine("onnxruntime", "cpu", id="01m7y8mbznsseg04", precision="fp32"),
        engine("onnxruntime", "cpu", id="01m7y8mbznsseg05", precision="int8"),
        engine("tensorrt-rtx", "sm_89", id="01m7y8mbznsseg06"),
    ]
    made, left_out = triton.models(engines)
    assert [read(one).name for one in made] == [
        "resnet50",
        "resnet50-tensorrt-rtx-4090",
        "resnet50-onnxruntime-cpu",
        "resnet50-onnxruntime-cpu-int8",
    ]
    assert [one.id for one, _ in left_out] == ["01m7y8mbznsseg06"]


def test_plans_of_different_interfaces_are_not_one_model() -> None:
    half = IMAGE | {"dtype": "float16"}
    made, _ = triton.models([engine(gpu="t4"), engine(gpu="l4", inputs=[half])])
    assert [one.name for one in made] == ["resnet50", "resnet50-tensorrt-l4"]


def test_what_a_plan_was_built_with_is_told_to_the_operator() -> None:
    library = "sha256:" + "a" * 64
    told = triton.model(engine(options={"version_compatible": True, "plugins": [library]})).notes
    assert told == (
        "start Triton with --backend-config=tensorrt,version-compatible=true",
        f"start Triton with --backend-config=tensorrt,plugins=LIBRARY, the library {library}",
    )
