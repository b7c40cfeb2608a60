"""TorchScript of strangers: nothing of it runs that isn't listed."""

from __future__ import annotations

import contextlib
import pickletools
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from farm.errors import InvalidModel
from workers.sources.torchscript import TorchScriptSource

warnings.filterwarnings("ignore", category=FutureWarning)  # TorchScript is deprecated
warnings.filterwarnings("ignore", category=DeprecationWarning)


CODE = "code/__torch__/torch/nn/modules/linear.py"


BODY = b"return torch.linear(input, weight, bias)"


Change = Callable[[bytes], bytes]


HONEST = """
import sys
from torch import jit, nn
jit.script(nn.Sequential(nn.Linear(4, 2)).eval()).save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made in a process of its own: where others have scripted before, classes have other names."""
    path = tmp_path_factory.mktemp("script") / "honest.pt"
    subprocess.run([sys.executable, "-W", "ignore", "-c", HONEST, str(path)], check=True)
    return path


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "touched"


def edited(
    source: Path,
    target: Path,
    changes: Mapping[str, Change],
    names: Mapping[str, str] | None = None,
) -> Path:
    """A copy of an archive with some of its records changed, or renamed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        assert set(changes) <= {name.partition("/")[2] for name in old.namelist()}
        for name in old.namelist():
            record = name.partition("/")[2]
            content = changes.get(record, bytes)(old.read(name))
            new.writestr(f"m/{(names or {}).get(record, record)}", content)
    return target


def with_body(source: Path, target: Path, lines: str) -> Path:
    """With other statements in a method; they follow the first two, which read its attributes."""
    return edited(source, target, {CODE: lambda code: swapped(code, BODY, lines.encode())})


def swapped(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


def refused(path: Path) -> InvalidModel:
    with pytest.raises(InvalidModel) as caught:
        TorchScriptSource(path)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "lines",
    [
        '_ = torch.save(input, "{marker}")\n    return input',
        'o = ops\n    a = o.aten\n    f = (a).save\n    _ = (f)(input, "{marker}")\n    return input',
        '_ = getattr(getattr(ops, "aten"), "save")(input, "{marker}")\n    return input',
        '_ = (((ops).aten).\n      save)(input, "{marker}")\n    return input',
        'if torch.eq(torch.dim(input), 7):\n      _ = torch.save(input, "{marker}")\n'
        "    else:\n      pass\n    return input",
        'for i in range(3):\n      _ = torch.save(input, "{marker}")\n    return input',
    ],
    ids=["plain", "alias", "getattr", "line-break", "branch", "loop"],
)
def test_an_operator_is_refused_however_it_is_written(
    lines: str, honest: Path, tmp_path: Path, marker: Path
) -> None:
    path = with_body(honest, tmp_path / "m.pt", lines.replace("{marker}", str(marker)))
    assert "aten::save" in refused(path).detail
    assert not marker.exists()


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("return ops.inductor._alloc_from_pool(input, 4096, 6, [9], [1])", "inductor"),
        ("return ops.inductor._reinterpret_tensor(input, [9], [1], 4096)", "inductor"),
        ("return torch._reshape_alias(input, [99], [4096])", "aten::_reshape_alias"),
        ("return torch.resize_(input, [1000000])", "aten::resize_"),
        ("return torch.set_(input, bias, 0, [99], [1])", "aten::set_"),
        ('return torch.from_file("/etc/passwd", True, 4)', "aten::from_file"),
        ("return torch._efficientzerotensor([9])", "_efficientzerotensor"),
        ("return torch._sparse_coo_tensor_unsafe(input, input, [4])", "_sparse_coo_tensor_unsafe"),
        ("return torch._sparse_csr_tensor_unsafe(input, input, input, [4, 4])", "_sparse_csr"),
        ("return ops.quantized.cat([input], 0, 1., 0)", "quantized::cat"),
        ("return torch.max_pool2d_with_indices_backward(input, input, [2, 2], [2, 2], [0, 0], "
         "[1, 1], False, input)", "max_pool2d_with_indices_backward"),
        ("return torch.add(input, input, out=input)", "aten::add"),
        ('return ops.profiler._record_function_enter("x", None)', "profiler"),
        ("print(input)\n    return input", "prim::Print"),
        ("return ops.prim.data(torch.zeros([ops.prim.id(self)]))", "prim::id"),
    ],
)  # fmt: skip
def test_what_reaches_past_tensors_or_out_of_the_module_is_refused(
    lines: str, named: str, honest: Path, tmp_path: Path
) -> None:
    assert named in refused(with_body(honest, tmp_path / "m.pt", lines)).detail


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"out_features : Final[int] = 2", b"out_features : Final[int] = torch.len([1, 2])"),
        (b"input: Tensor)", b"input: Tensor,\n    k: int=torch.len([1]))"),
        (b"input: Tensor)", b"input: Tensor,\n    k: Tensor=torch.zeros([2])[0])"),
        (b"training : bool", b"training : bool = torch.eq(1, 2)"),
        (b"  def forward", b"  def __setstate__(self, s: int) -> None:\n    pass\n  def forward"),
        (b"class Linear(Module)", b"class Seen(NamedTuple):\n  a : int = torch.len([1])\n"
         b"class Linear(Module)"),
    ],
)  # fmt: skip
def test_code_that_runs_as_it_is_loaded_is_refused(
    old: bytes, new: bytes, honest: Path, tmp_path: Path
) -> None:
    path = edited(honest, tmp_path / "m.pt", {CODE: lambda code: swapped(code, old, new)})
    assert "runs when it is loaded" in refused(path).detail


@pytest.mark.parametrize(
    "new", [b"'x'", b'"""x"""', b'r"\\"', b"1 # comment", b"1 \\\n + 1", b"\t1"]
)
def test_code_that_two_parsers_could_read_in_two_ways_is_refused(
    new: bytes, honest: Path, tmp_path: Path
) -> None:
    code = {CODE: lambda code: swapped(code, BODY, b"x = " + new + b"\n    " + BODY)}
    assert "isn't written as" in refused(edited(honest, tmp_path / "m.pt", code)).detail


def test_a_record_that_pytorch_finds_by_another_case_is_refused(
    honest: Path, tmp_path: Path, marker: Path
) -> None:
    path = with_body(
        honest, tmp_path / "m.pt", f'_ = torch.save(input, "{marker}")\n    {BODY.decode()}'
    )
    refused(edited(path, tmp_path / "case.pt", {}, {CODE: f"CODE{CODE.removeprefix('code')}"}))
    assert not marker.exists()


def test_a_storage_longer_than_its_record_is_refused(honest: Path, tmp_path: Path) -> None:
    # 8 numbers are 32 bytes; PyTorch reads 255 of them without a look at the record.
    longer = {"data.pkl": lambda pkl: swapped(pkl, b"K\x08tQ", b"K\xfftQ")}
    assert "shorter than" in refused(edited(honest, tmp_path / "m.pt", longer)).detail


def test_a_tensor_past_its_storage_is_refused(honest: Path, tmp_path: Path) -> None:
    wild = {"data.pkl": lambda pkl: swapped(pkl, b"(K\x02K\x04t", b"(K\xc8K\xc8t")}
    assert "reaches past" in refused(edited(honest, tmp_path / "m.pt", wild)).detail


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("__torch__.torch.classes.profiling", "_RecordFunctionFast"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch.distributed.rpc", "rref"),
        ("os", "system"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused(
    module: str, name: str, honest: Path, tmp_path: Path
) -> None:
    new = f"c{module}\n{name}\n".encode()
    names = {"data.pkl": lambda pkl: swapped(pkl, b"ccollections\nOrderedDict\n", new)}
    assert "names" in refused(edited(honest, tmp_path / "m.pt", names)).detail


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = (1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pair[1]


def test_a_value_of_another_type_than_its_class_declares_is_refused(tmp_path: Path) -> None:
    """PyTorch would read a tuple's second element where it has one alone."""
    torch.jit.script(Pair()).save(tmp_path / "pair.pt")
    TorchScriptSource(tmp_path / "pair.pt")
    short = {"data.pkl": lambda pkl: swapped(pkl, b"K\x01K\x02\x86", b"K\x01\x85")}
    error = refused(edited(tmp_path / "pair.pt", tmp_path / "m.pt", short))
    assert "another type than declared" in error.detail


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = {5: (6, 7)}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[5][1]


def test_a_key_that_hides_another_is_refused(tmp_path: Path) -> None:
    """Python would see one value of 1 and True, and PyTorch two."""
    torch.jit.script(Table()).save(tmp_path / "table.pt")
    TorchScriptSource(tmp_path / "table.pt")
    hidden = {
        "data.pkl": lambda pkl: swapped(
            pkl, b"K\x05K\x06K\x07\x86", b"K\x01K\x06\x85\x88K\x06K\x07\x86"
        )
    }
    error = refused(edited(tmp_path / "table.pt", tmp_path / "m.pt", hidden))
    assert "keys" in error.detail


def test_a_value_taken_for_a_tuple_unchecked_is_refused(honest: Path, tmp_path: Path) -> None:
    lines = "x = annotate(Any, input)\n    y = unchecked_cast(Tuple[Tensor, Tensor], x)\n    return y[1]"
    assert "unchecked" in refused(with_body(honest, tmp_path / "m.pt", lines)).detail


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_archive_is_refused_or_runs_as_it_is(
    seed: int, honest: Path, tmp_path: Path
) -> None:
    """Bytes of its pickle changed: what loads has only listed operators, and nothing else happens."""
    content = zipfile.ZipFile(honest).read("honest/data.pkl")
    at = seed * 7919 % len(content)
    damaged = content[:at] + bytes([content[at] ^ (1 + seed * 31 % 255)]) + content[at + 1 :]
    path = edited(honest, tmp_path / "m.pt", {"data.pkl": lambda _: damaged})
    with contextlib.suppress(InvalidModel):
        TorchScriptSource(path)


def test_the_pickles_of_honest_modules_have_listed_opcodes_alone(honest: Path) -> None:
    from workers.programs.script_pickle import OPCODES

    content = zipfile.ZipFile(honest).read("honest/data.pkl")
    assert {opcode.name for opcode, _, _ in pickletools.genops(content)} <= OPCODES
