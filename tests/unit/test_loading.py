"""What is said about running an engine: Python source for each runtime, whatever its model is called."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from farm.registry import loading
from farm.schemas.engines import EngineView
from farm.specs.quoting import quoted
from farm.specs.runtime import Runtime
from farm.testing import documents

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to"
IMAGE = {"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224]}
SIZES = {"min": [1, 3, 224, 224], "opt": [8, 3, 224, 224], "max": [64, 3, 224, 224]}
SCORES = {"name": "scores", "dtype": "float32", "shape": ["batch", 1000]}
HOSTILE = "a\"'\n}}; import os\u2028\x7f\U0001f600\\"
TARGETS = [
    ("tensorrt", "h200"),
    ("tensorrt-rtx", "sm_89"),
    ("onnxruntime", "cpu"),
    ("onnxruntime", "h100"),
    ("aotinductor", "cpu"),
    ("aotinductor", "sm_90"),
    ("torchscript", "cpu"),
]


def engine(runtime: str, gpu: str, **changes: Any) -> EngineView:
    precision = "fp32" if gpu == "cpu" else "fp16"
    named = {"model": "resnet50", "runtime": runtime, "gpu": gpu, "precision": precision}
    given = {"inputs": [IMAGE], "outputs": [SCORES], "profiles": [{"image": SIZES}]}
    return EngineView.model_validate(documents.engine(b"x", **(named | given | changes)))


def imported(source: str) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
    return {alias.name for node in nodes for alias in node.names}


def value_of(source: str, name: str) -> ast.expr:
    """What a name is set to."""
    [found] = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]
    return found


def test_every_runtime_has_a_template() -> None:
    assert set(loading.TEMPLATES) == set(Runtime)


@pytest.mark.parametrize(("runtime", "gpu"), TARGETS)
def test_the_text_is_python_that_loads_the_file_of_a_pull(runtime: str, gpu: str) -> None:
    shown = engine(runtime, gpu)
    source = loading.text(shown)
    compile(source, "load", "exec")
    assert source.count(quoted(shown.file_name())) == 1
    assert "8, 3, 224, 224" in source
    where = 'device="cuda"' in source or "CUDAExecutionProvider" in source
    assert where == (gpu != "cpu")


@pytest.mark.parametrize(
    ("runtime", "gpu", "modules"),
    [
        ("tensorrt", "h200", {"tensorrt", "torch"}),
        ("tensorrt-rtx", "sm_89", {"tensorrt_rtx", "torch"}),
        ("onnxruntime", "h100", {"numpy", "onnxruntime"}),
        ("aotinductor", "sm_90", {"json", "os", "torch"}),
        ("torchscript", "cpu", {"torch"}),
    ],
)
def test_a_text_imports_its_own_runtime(runtime: str, gpu: str, modules: set[str]) -> None:
    assert imported(loading.text(engine(runtime, gpu))) == modules


def test_tensorrts_text_calls_what_the_library_has() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    owners = {
        "trt": trt,
        "runtime": trt.Runtime,
        "engine": trt.ICudaEngine,
        "context": trt.IExecutionContext,
    }
    tree = ast.parse(loading.text(engine("tensorrt-rtx", "sm_89")))
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    called = {(owner, name) for owner, name in used if owner in owners}
    assert ("context", "execute_async_v3") in called
    assert [pair for pair in called if not hasattr(owners[pair[0]], pair[1])] == []


def test_onnxruntime_runs_with_the_provider_options_of_the_record() -> None:
    chosen = {"use_tf32": "1", "prefer_nhwc": "1"}
    source = loading.text(engine("onnxruntime", "h100", provider={"options": chosen}))
    assert ast.literal_eval(value_of(source, "options")) == chosen
    assert ast.literal_eval(value_of(loading.text(engine("onnxruntime", "h100")), "options")) == {}


def test_tensorrt_is_told_what_an_engine_was_built_with() -> None:
    library = "sha256:" + "a" * 64
    options = {"version_compatible": True, "plugins": [library]}
    source = loading.text(engine("tensorrt", "h200", options=options))
    before, _, _ = source.partition("deserialize_cuda_engine")
    assert "runtime.engine_host_code_allowed = True\n" in before
    assert f'load_library("plugin.so")  # {library}\n' in before
    assert "load_library" not in loading.text(engine("tensorrt", "h200"))


def test_inputs_have_their_type_and_sizes_have_their_values() -> None:
    ids = {"name": "ids", "dtype": "int64", "shape": ["batch", "tokens"]}
    size = {"name": "size", "dtype": "int64", "shape": [2]}
    values = {"min": [1, 1], "opt": [32, 48], "max": [64, 64]}
    profile = {"size": {"min": [2], "opt": [2], "max": [2], "values": values}}
    given = {"inputs": [ids, size], "profiles": [profile]}
    source = loading.text(engine("tensorrt", "h200", **given))
    assert 'torch.zeros(1, 1, dtype=torch.int64, device="cuda")' in source
    # On the host: TensorRT reads it to infer shapes.
    assert "torch.tensor([32, 48], dtype=torch.int64).reshape((2,))" in source
    source = loading.text(engine("onnxruntime", "cpu", **given))
    assert 'numpy.zeros((1, 1), "int64")' in source
    assert 'numpy.array([32, 48], "int64").reshape((2,))' in source


@pytest.mark.parametrize(("runtime", "gpu"), TARGETS)
def test_a_strangers_names_stay_literals(runtime: str, gpu: str) -> None:
    named = {"name": HOSTILE, "dtype": "float32", "shape": [1]}
    typed = {"name": "x", "dtype": 'float32, exec("pwned")', "shape": [1]}
    options = {"options": {HOSTILE: HOSTILE}}
    shown = engine(runtime, gpu, inputs=[named, typed], outputs=[named, typed], provider=options)
    source = loading.text(shown)
    assert source.isascii()
    tree = ast.parse(source)
    given = value_of(source, "inputs")
    assert isinstance(given, ast.Dict)
    assert [ast.literal_eval(key) for key in given.keys if key] == [HOSTILE, "x"]
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"exec", "os.system"}
    assert "os" not in imported(source) or runtime == "aotinductor"


@pytest.mark.parametrize("text", ["plain", 'with "quotes"', "it's", HOSTILE, "", "\\", "é"])
def test_a_quoted_text_is_itself_on_one_line(text: str) -> None:
    assert ast.literal_eval(quoted(text)) == text
    assert len(quoted(text).splitlines()) == 1
    assert quoted("plain") == '"plain"'


DIGITS: dict[str, Any] = {
    "model": "digits",
    "inputs": [IMAGE | {"shape": ["batch", 1, 8, 8]}],
    "profiles": [{"image": {which: [8, 1, 8, 8] for which in SIZES}}],
}
TUNED = {"options": {"prefer_nhwc": "1", "use_tf32": "1"}}


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("pull.md", engine("onnxruntime", "cpu")),
        ("pull.md", engine("tensorrt", "h200")),
        ("aotinductor.md", engine("aotinductor", "sm_90")),
        ("compress.md", engine("torchscript", "cpu", **DIGITS)),
        ("measure.md", engine("onnxruntime", "h100", provider=TUNED)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.runtime),
)
def test_the_documents_show_this_text(page: str, shown: EngineView) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (HOW_TO / page).read_text(), re.DOTALL)
    assert loading.text(shown) in blocks, f"{page} must show:\n{loading.text(shown)}"
