"""Nothing of a hostile author's reaches the code that a compiler is given: their names are data."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from farm.specs.runtime import Target
from farm.specs.shapes import TensorSpec
from farm.stages import BuildParams
from tests.stage_bench import Bench
from workers.backends.aotinductor import build as backend
from workers.backends.aotinductor import compiler
from workers.programs.lowered import lowered
from workers.programs.program_interface import plain_program

TRACE = 'File "pwned", line 1\n*/ int pwned() { return system("id"); } /*\n#include "/etc/pwned"'
STACK = "L__self__pwned,pwned\n*/ system(),pwned.Net"
#: Characters of a name that the archive's scan lets through.
TENSORS = ("linear", "add", "add_1", "embedding", "mul", "sum_1")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.pwned_layer = nn.Linear(8, 16)
        self.pwned_table = nn.Embedding(10, 16)
        self.register_buffer("pwned_buffer", torch.ones(16))
        self.pwned_constant = torch.arange(16.0)

    def forward(self, pwned, pwned_ids):
        made = self.pwned_layer(pwned) + self.pwned_buffer + self.pwned_constant
        return {
            'pwned"; system("id"); //': made,
            ')"\npwned': self.pwned_table(pwned_ids),
            "pwned*/": (made * 2, {"pwned'": made.sum()}),
        }


def hostile(path: Path) -> Path:
    """A program whose every name, symbol and trace is of a hostile author's choice."""
    batch = {0: Dim("pwned_axis", min=1, max=16)}
    given = torch.randn(4, 8), torch.arange(4)
    honest = path.with_suffix(".honest")
    torch.export.save(export(Net().eval(), given, dynamic_shapes=(batch, batch)), honest)
    with zipfile.ZipFile(honest) as found, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        for entry in found.infolist():
            content = found.read(entry)
            if entry.filename.endswith("models/model.json"):
                content = forged(content)
            made.writestr(entry, content)
    return path


def forged(content: bytes) -> bytes:
    document = json.loads(content)
    for node in document["graph_module"]["graph"]["nodes"]:
        node["metadata"] |= {"stack_trace": TRACE, "nn_module_stack": STACK}
        node["metadata"] |= {"torch_fn": "pwned;pwned", "custom": '{"pwned": "*/ pwned"}'}
    text = json.dumps(document)
    [symbol] = set(re.findall(r"\bs\d+\b", text))
    text = re.sub(rf"\b{symbol}\b", "pwned_symbol", text)
    return re.sub(rf'"({"|".join(TENSORS)})"', r'"pwned.é-\1"', text).encode()


@pytest.mark.heavy
@pytest.mark.skipif(not compiler.tools(), reason="no usable C++ compiler here")
def test_a_hostile_authors_names_reach_a_packages_metadata_alone(tmp_path):
    asked = BuildParams(
        target=Target(runtime="aotinductor", gpu="cpu"),
        compute_capability="cpu",
        precision="fp32",
        format="pt2",
    )
    made = Bench(tmp_path).run(asked, source=hostile(tmp_path / "hostile.pt2"))
    with zipfile.ZipFile(made.outputs["engine"]) as package:
        held = {name: package.read(name) for name in package.namelist()}
    named = {name for name, content in held.items() if b"pwned" in content.lower()}
    assert any(name.endswith(".cpp") for name in held)
    assert named
    assert all(name.endswith("_metadata.json") for name in named)
    [farm] = {json.loads(held[name])[backend.FARM] for name in named}
    of = backend.Signature.model_validate_json(farm)
    assert [one.name for one in of.inputs] == ["pwned", "pwned_ids"]
    assert all(re.fullmatch(r"\w+", one.name) for one in of.outputs)


def test_a_signature_is_read_back_as_it_was_written_whatever_its_names():
    spec = TensorSpec(name='";\n*/ pwned é', dtype="float32", shape=("pwned", 8))
    sizes = {spec.name: (1, 8)}
    of = backend.Signature(
        inputs=(spec,), outputs=(spec,), smallest=sizes, largest=sizes, tf32=False
    )
    text = of.model_dump_json(ensure_ascii=True)
    assert text.isascii()
    assert "\n" not in text
    assert backend.Signature.model_validate_json(text).inputs == (spec,)


def test_a_size_that_is_a_multiple_of_another_is_traced_as_one():
    class Pairs(nn.Module):
        def forward(self, x, pairs):
            return x + pairs[::2]

    batch = Dim("batch", min=1, max=8)
    given = torch.randn(4, 3), torch.randn(8, 3)
    program = export(Pairs(), given, dynamic_shapes=({0: batch}, {0: 2 * batch}))
    plain_program(program)
    inputs = [
        TensorSpec(name="x", dtype="float32", shape=("batch", 3)),
        TensorSpec(name="pairs", dtype="float32", shape=("2*batch", 3)),
    ]
    of = backend.Signature(
        inputs=tuple(inputs),
        outputs=(),
        smallest={"x": (1, 3), "pairs": (2, 3)},
        largest={"x": (8, 3), "pairs": (16, 3)},
        tf32=False,
    )
    traced = backend.traced(lowered(program), given, of)
    ranges = {str(size): (one.lower, one.upper) for size, one in traced.range_constraints.items()}
    assert sorted(ranges.values()) == [(1, 8), (2, 16)]
    assert sum(size.startswith("2*") for size in ranges) == 1
