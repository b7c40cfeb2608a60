"""Loading a .pt2 runs nothing of it: archives that try are made here, and none succeeds."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from farm.errors import InvalidModel
from workers.programs.eager import EagerModel
from workers.programs.load import _no_code, load_program

Edit = Callable[[str, bytes], bytes | None]


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "honest.pt2"
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(
        nn.Linear(4, 2).eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, path)
    return path


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def edited(source: Path, target: Path, edit: Edit, extra: dict[str, bytes] | None = None) -> Path:
    """A copy of an archive with its records changed, or dropped where ``edit`` returns None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            content = edit(name.split("/", 1)[1], old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in (extra or {}).items():
            new.writestr(f"{root}/{name}", content)
    return target


def edit_json(record: str, change: Callable[[dict], None]) -> Edit:  # type: ignore[type-arg]
    def edit(name: str, content: bytes) -> bytes:
        if name != record:
            return content
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return edit


def keep(_: str, content: bytes) -> bytes:
    return content


def torch_pickle(evil: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(evil, buffer)
    return buffer.getvalue()


def refused(path: Path, marker: Path) -> InvalidModel:
    with pytest.raises(InvalidModel) as caught:
        load_program(path)
    assert not marker.exists(), "the file's code was run"
    assert caught.value.hint
    return caught.value


def test_an_honest_program_loads_and_runs(honest: Path) -> None:
    model = EagerModel(load_program(honest))
    output = model.run({"input": torch.ones(3, 4).numpy()})["output"]
    assert output.shape == (3, 2)


def test_a_copied_archive_still_loads(honest: Path, tmp_path: Path) -> None:
    load_program(edited(honest, tmp_path / "copy.pt2", keep))


def test_a_pickled_weight_is_refused(honest: Path, tmp_path: Path, marker: Path) -> None:
    def use_pickle(config: dict) -> None:  # type: ignore[type-arg]
        config["config"]["weight"]["use_pickle"] = True

    edit = edit_json("data/weights/model_weights_config.json", use_pickle)
    evil = torch_pickle(Evil(marker))

    def replace(name: str, content: bytes) -> bytes:
        return evil if name == "data/weights/weight_0" else edit(name, content) or b""

    error = refused(edited(honest, tmp_path / "evil.pt2", replace), marker)
    assert "pickle" in error.detail


@pytest.mark.parametrize("prefix", ["opaque_obj_", "custom_obj_"])
def test_a_pickled_constant_is_refused(
    prefix: str, honest: Path, tmp_path: Path, marker: Path
) -> None:
    def add(config: dict) -> None:  # type: ignore[type-arg]
        config["config"]["evil"] = {
            "path_name": f"{prefix}0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    edit = edit_json("data/constants/model_constants_config.json", add)
    extra = {f"data/constants/{prefix}0": pickle.dumps(Evil(marker))}
    refused(edited(honest, tmp_path / "evil.pt2", edit, extra), marker)


def test_a_legacy_pickled_state_is_refused(honest: Path, tmp_path: Path, marker: Path) -> None:
    extra = {"data/weights/model.pt": torch_pickle({"weight": Evil(marker)})}
    refused(edited(honest, tmp_path / "evil.pt2", keep, extra), marker)


def test_example_inputs_are_a_pickle_that_is_never_read(
    honest: Path, tmp_path: Path, marker: Path
) -> None:
    def replace(name: str, content: bytes) -> bytes:
        return torch_pickle(((Evil(marker),), {})) if "sample_inputs" in name else content

    EagerModel(load_program(edited(honest, tmp_path / "evil.pt2", replace)))
    assert not marker.exists()


def test_the_older_zip_format_is_refused(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", torch_pickle(Evil(marker)))
    refused(path, marker)


def test_a_plain_torch_save_pickle_is_refused(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.save(Evil(marker), path)
    refused(path, marker)


def test_native_code_in_the_archive_is_refused(honest: Path, tmp_path: Path, marker: Path) -> None:
    extra = {"data/aotinductor/model/lib.so": b"\x7fELF"}
    error = refused(edited(honest, tmp_path / "evil.pt2", keep, extra), marker)
    assert "native code" in error.detail


def test_a_symbolic_size_that_is_python_is_refused(
    honest: Path, tmp_path: Path, marker: Path
) -> None:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def replace(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        text = json.dumps(json.loads(content))
        symbols = {
            value for value in _strings(json.loads(text), "expr_str") if value.startswith("Symbol")
        }
        assert symbols, "the program has no symbolic size to replace"
        for symbol in symbols:
            text = text.replace(json.dumps(symbol), json.dumps(code))
        return text.encode()

    error = refused(edited(honest, tmp_path / "evil.pt2", replace), marker)
    assert "symbolic size" in error.detail


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.ops.load_library", "torch.ops.aten.save", "#evil:run"]
)
def test_an_operator_that_is_any_function_is_refused(
    target: str, honest: Path, tmp_path: Path, marker: Path
) -> None:
    def replace(program: dict) -> None:  # type: ignore[type-arg]
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    edit = edit_json("models/model.json", replace)
    error = refused(edited(honest, tmp_path / "evil.pt2", edit), marker)
    assert target in error.detail


def test_a_name_that_would_become_code_is_refused(
    honest: Path, tmp_path: Path, marker: Path
) -> None:
    def replace(program: dict) -> None:  # type: ignore[type-arg]
        graph = program["graph_module"]["graph"]
        graph["inputs"][0]["as_tensor"]["name"] = f"x=open({str(marker)!r}, 'w')"

    refused(edited(honest, tmp_path / "evil.pt2", edit_json("models/model.json", replace)), marker)


def test_guards_are_dropped_rather_than_compiled(
    honest: Path, tmp_path: Path, marker: Path
) -> None:
    def replace(program: dict) -> None:  # type: ignore[type-arg]
        program["guards_code"] = [f"open({str(marker)!r}, 'w')"]

    edit = edit_json("models/model.json", replace)
    EagerModel(load_program(edited(honest, tmp_path / "guards.pt2", edit)))
    assert not marker.exists()


def test_loading_is_shut_even_if_the_scan_missed_something(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save(Evil(marker), path)
    with _no_code(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not marker.exists()


def test_weights_of_another_device_are_refused_with_what_to_do(
    honest: Path, tmp_path: Path, marker: Path
) -> None:
    def replace(config: dict) -> None:  # type: ignore[type-arg]
        config["config"]["weight"]["tensor_meta"]["device"]["type"] = "cuda"

    edit = edit_json("data/weights/model_weights_config.json", replace)
    error = refused(edited(honest, tmp_path / "cuda.pt2", edit), marker)
    assert "model.cpu()" in (error.hint or "")


@pytest.mark.parametrize("content", [b"", b"not a zip at all", b"PK\x03\x04 truncated"])
def test_garbage_is_refused(content: bytes, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "garbage.pt2"
    path.write_bytes(content)
    refused(path, marker)


def test_a_truncated_program_is_refused(honest: Path, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "half.pt2"
    path.write_bytes(honest.read_bytes()[: honest.stat().st_size // 2])
    refused(path, marker)


def test_a_damaged_json_is_refused(honest: Path, tmp_path: Path, marker: Path) -> None:
    def replace(name: str, content: bytes) -> bytes:
        return content[:-20] if name == "models/model.json" else content

    refused(edited(honest, tmp_path / "damaged.pt2", replace), marker)


def _strings(value: object, key: str) -> list[str]:
    if isinstance(value, dict):
        own = [value[key]] if isinstance(value.get(key), str) else []
        return own + [text for item in value.values() for text in _strings(item, key)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item, key)]
    return []
