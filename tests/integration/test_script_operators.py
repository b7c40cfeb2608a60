"""Ordinary TorchScript modules all pass, and every operator that is listed is one and is safe."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from workers.programs import operators
from workers.sources.torchscript import TorchScriptSource

warnings.filterwarnings("ignore", category=FutureWarning)  # TorchScript is deprecated
warnings.filterwarnings("ignore", category=DeprecationWarning)


class Point(NamedTuple):
    x: Tensor
    scale: float


class Controls(nn.Module):
    """Lists, dictionaries, named tuples, optional values, loops, branches, early returns, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.names = {"a": 1, "b": 2}
        self.kept: Tensor | None = None
        self.sizes: list[int] = [1, 2]
        self.pairs = [(1, torch.ones(1)), (2, torch.ones(1))]

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        made: list[Tensor] = []
        for layer in self.layers:
            made.append(layer(x))
        point = Point(torch.stack(made), scale)
        if mask is not None:
            x = x * mask
        table = {"x": point.x}
        if x.dim() != 2:
            raise ValueError(f"expected 2 axes, got {x.dim()}")
        for name, number in self.names.items():
            if name in table or number > 1:
                x = x + number
        for size, tensor in self.pairs:
            x = x * size + tensor
        kept = self.kept
        if kept is not None:
            return kept
        return table["x"].sum(0) * point.scale + x + torch.tensor([1.0, 2.0, 3.0, 4.0])


class Uses(nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class First(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, x, x)[0]


F = nn.functional


IMAGES, ROWS = (2, 3, 8, 8), (2, 5, 8)


SCRIPTED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ReLU6()), IMAGES),
    "reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), IMAGES),
    "transposed": (nn.ConvTranspose2d(3, 4, 2, stride=2), IMAGES),
    "pools": (nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
              IMAGES),
    "shuffle": (nn.Sequential(nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.PixelShuffle(2)), IMAGES),
    "norms": (nn.Sequential(nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), nn.LocalResponseNorm(2)), IMAGES),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGES),
    "unfold": (nn.Sequential(nn.Unfold(2), nn.Fold((8, 8), 2)), IMAGES),
    "attention": (Attends(), ROWS),
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), ROWS),
    "lstm": (First(nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True)), ROWS),
    "gru": (First(nn.GRU(8, 4)), ROWS),
    "layer norm": (nn.Sequential(nn.LayerNorm(8), nn.GELU(), nn.SiLU(), nn.Softmax(-1)), ROWS),
    "rms norm": (nn.RMSNorm(8), ROWS),
    "activations": (nn.Sequential(nn.PReLU(), nn.ELU(), nn.SELU(), nn.Mish(), nn.Hardswish(), nn.GLU(),
                                  nn.Softplus(), nn.LogSigmoid(), nn.Tanhshrink(), nn.CELU()), ROWS),
    "controls": (Controls(), (2, 4)),
}  # fmt: skip


TRACED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "einsum": (lambda x: torch.einsum("bij,bkj->bik", x, x), ROWS),
    "interpolate": (lambda x: F.interpolate(x, (5, 6), mode="bicubic"), IMAGES),
    "antialias": (lambda x: F.interpolate(x, (5, 6), mode="bilinear", antialias=True), IMAGES),
    "grid": (lambda x: F.grid_sample(x, F.affine_grid(torch.eye(2, 3).repeat(2, 1, 1), [2, 3, 4, 4])),
             IMAGES),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), ROWS),
    "index": (lambda x: x[:, [0, 2]].index_fill(1, torch.tensor([0]), 2.0)[x[:, [0, 2]] > 0], ROWS),
    "scatter": (lambda x: x.scatter(1, x.argsort(1), x).gather(1, x.argsort(1)), ROWS),
    "topk": (lambda x: x.topk(3, -1).values.cumsum(-1), ROWS),
    "in place": (lambda x: x.clone().mul_(2).add_(1).clamp_(0, 1).masked_fill_(x > 0, 3), ROWS),
    "sets": (lambda x: set_slice(x.clone()), ROWS),
    "spectrum": (lambda x: torch.fft.rfft(x).abs(), ROWS),
    "stft": (lambda x: torch.stft(x.flatten(1), 8, window=torch.ones(8), return_complex=True).abs(), ROWS),
    "linalg": (lambda x: torch.linalg.inv(x @ x.mT + torch.eye(5)), ROWS),
    "norms": (lambda x: F.normalize(x) + x.norm(dim=-1, keepdim=True), ROWS),
    "where": (lambda x: torch.where(x.isnan() | (x > 0), x, -x).roll(1, 1).flip(1), ROWS),
    "types": (lambda x: x.half().float() + x.long() % 2 + x.to(torch.bfloat16).type_as(x), ROWS),
    "embedding": (lambda x: F.embedding(x.abs().long() % 3, torch.ones(3, 4)), ROWS),
    "bags": (lambda x: F.embedding_bag(x[0].abs().long() % 3, torch.ones(3, 4)), ROWS),
    "losses": (lambda x: F.cross_entropy(x, x.argmax(1)) + F.mse_loss(x, x), ROWS),
    "fake quantised": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255), ROWS),
    "strides": (lambda x: x.as_strided((2, 3), (1, 2)).contiguous().view(-1), ROWS),
}  # fmt: skip


def set_slice(x: Tensor) -> Tensor:
    x[:, 1:3] = 0
    x[:, 0] += 1
    return x


def saved(module: torch.jit.ScriptModule) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer


def taken(module: torch.jit.ScriptModule, shape: tuple[int, ...], path: Path) -> None:
    """It is loaded, and gives what the module gives."""
    path.write_bytes(saved(module).getvalue())
    torch.manual_seed(0)
    given = torch.rand(shape)
    source = TorchScriptSource(
        path, {"scale": 2.0} if "scale" in str(module.forward.schema) else {}
    )
    arguments = [given] * len(source.input_names)
    with torch.no_grad():
        wanted = module(*arguments)
    found = source._leaves(arguments)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    flat = torch.utils._pytree.tree_leaves(wanted)
    assert len(found) == len(flat)
    for one, other in zip(found, flat, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", SCRIPTED)
def test_a_scripted_module_is_taken(name: str, tmp_path: Path) -> None:
    module, shape = SCRIPTED[name]
    scripted = torch.jit.script(module.eval())
    taken(scripted, shape, tmp_path / "m.pt")
    taken(torch.jit.freeze(scripted), shape, tmp_path / "frozen.pt")


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_function_is_taken(name: str, tmp_path: Path) -> None:
    run, shape = TRACED[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.trace(Uses(run), torch.rand(shape), check_trace=False)
    taken(module, shape, tmp_path / "m.pt")


def test_weights_under_a_norm_are_taken_and_checked(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(nn.Linear(8, 3)).eval()
    taken(torch.jit.trace(layer, torch.rand(ROWS)), ROWS, tmp_path / "m.pt")


#: What the exporters convert and the farm doesn't run.
NOT_TAKEN = {
    "_grouped_mm": "offsets that nothing checks",
    "_pad_packed_sequence": "negative sizes of a batch",
    "_native_batch_norm_legit": "weights shorter than the input",
    "_native_batch_norm_legit_functional": "weights shorter than the input",
    "_scaled_dot_product_efficient_attention": "of GPUs",
    "_scaled_dot_product_flash_attention": "of GPUs",
    "dequantize": "quantised tensors",
    "hardtanh_backward": "a gradient",
    "is_pinned": "of GPUs",
    "native_batch_norm": "weights shorter than the input",
    "quantize_per_tensor": "quantised tensors",
}


def test_what_the_exporters_to_onnx_convert_is_taken_but_for_what_is_unsafe() -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry
    from torch.onnx._internal.torchscript_exporter import utils  # noqa: F401, fills the registry
    from torch.onnx._internal.torchscript_exporter.registration import registry

    schemas = defaultdict(list)
    for schema in torch._C._jit_get_all_schemas():
        schemas[schema.name].append(str(schema))
    modern = {str(key).partition(".")[0] for key in ONNXRegistry.from_torchlib().functions}
    named = {name for name in modern | registry.all_functions() if name.startswith("aten::")}
    missing = {
        name.removeprefix("aten::")
        for name in named & schemas.keys()
        if not any(operators.may_run(name, schema) for schema in schemas[name])
    }
    assert missing == NOT_TAKEN.keys()


def test_every_listed_name_is_an_operator() -> None:
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    listed = operators._TENSORS | operators._PLAIN | operators.GUARDED
    assert {name for name in listed if f"aten::{name}" not in names} == set()
    assert {name for name in operators._PRIMS if f"prims::{name}" not in names} == set()


#: Of operators that take positions: a call with one far out of the tensor.
WILD = """
gather(z(4), 0, t([B]))
scatter(z(4), 0, t([B]), z(1))
scatter_add(z(4), 0, t([B]), z(1))
scatter_reduce(z(4), 0, t([B]), z(1), "sum")
index_select(z(4), 0, t([B]))
index(z(4), [t([B])])
_unsafe_index(z(4), [t([B])])
_unsafe_index_put(z(4), [t([B])], z(1))
index_put(z(4), [t([B])], z(1))
index_put(z(4), [t([B])], z(1), True)
index_add(z(4, 2), 0, t([B]), z(1, 2))
index_copy(z(4), 0, t([B]), z(1))
index_fill(z(4), 0, t([B]), 1.0)
index_reduce(z(4), 0, t([B]), z(1), "amax")
take(z(4), t([B]))
put(z(4), t([B]), z(1))
embedding(z(4, 2), t([B]))
embedding_renorm(z(4, 2), t([B]), 1.0, 2.0)
embedding_bag(z(4, 2), t([B]), t([0]))
embedding_bag(z(4, 2), t([0, 1]), t([0, -B, 1]), False, 0, False, None, True)
one_hot(t([B]), 5)
nll_loss(z(1, 4), t([B]))
nll_loss2d(z(1, 4, 1, 1), t([[[B]]]))
multi_margin_loss(z(1, 4), t([B]))
max_unpool2d(z(1, 1, 1, 1), t([[[[B]]]]), [2, 2])
searchsorted(z(4), z(1), sorter=t([B, B, B, B]))
bincount(z(W).long(), z(1))
repeat_interleave(t([W]), output_size=1)
repeat_interleave(t([1000, M, M - 993]))
repeat_interleave(t([1000, M, M - 993]), output_size=5)
repeat_interleave(t([W, -W]), output_size=0)
repeat_interleave(t([2, 3]), output_size=M)
repeat_interleave(t([], dtype=torch.int32), output_size=W)
repeat_interleave(z(3), t([1000, M, M - 993]), 0, output_size=5)
repeat_interleave(z(3, 2), t([1000, M, M - 993]), 0)
repeat_interleave(z(3), t([W]), 0, output_size=4)
repeat_interleave(z(3), 2, 0, output_size=5)
repeat_interleave(z(8), 1 << 61, 0)
upsample_nearest1d(z(1, 1, 3).byte(), [6], 1e-300)
upsample_nearest1d(z(1, 1, 3), None, [1e-300])
_upsample_nearest_exact1d(z(1, 1, 3).byte(), [6], 1e-300)
upsample_nearest2d(z(1, 1, 3, 3), [6, 6], 2.0, 1e-300)
_upsample_nearest_exact2d(z(1, 1, 3, 3).byte(), [6, 6], 1e-300, 2.0)
upsample_nearest3d(z(1, 1, 3, 3, 3).byte(), [6, 6, 6], 1e-300, 2.0, 2.0)
_upsample_nearest_exact3d(z(1, 1, 3, 3, 3).byte(), [6, 6, 6], 2.0, 1e-300, 2.0)
upsample_linear1d(z(1, 1, 3), [6], False, 1e-300)
upsample_bilinear2d(z(1, 3, 3, 3).byte(), [6, 6], False, 1e-300, 1e-300)
upsample_bicubic2d(z(1, 3, 3, 3).byte(), [6, 6], False, 2.0, float("nan"))
upsample_trilinear3d(z(1, 1, 3, 3, 3), [6, 6, 6], False, None, None, 1e-300)
split_with_sizes(z(4), [M, 4], -1)
_pack_padded_sequence(z(3, 2, 4), t([3, 0]), False)
lstm(z(4, 4), t([2, M]), [z(1, 2, 4), z(1, 2, 4)], [z(16, 4), z(16, 4)], False, 1, 0.0, False, False)
gru(z(6, 4), t([4, -1, 2]), z(1, 4, 4), [z(12, 4), z(12, 4)], False, 1, 0.0, False, False)
bincount(t([1, 2]), z(2), 1 << 62)
as_strided(z(4), [8], [1 << 30])
empty_strided([2, 2], [-B, 1])
new_empty_strided(z(1), [3], [-B])
select(z(4), 0, B)
narrow(z(4), 0, 3, 5)
unfold(z(4), 0, 9, 1)
masked_scatter(z(5), z(5) == 0, z(1))
native_group_norm(z(1, 2, 2), None, None, 9, 2, W, 1, 1e-5)
native_layer_norm(z(1, W), [W], z(1), z(1), 1e-5)
batch_norm(z(1, W, 1), z(1), z(1), z(1), z(1), False, 0.1, 1e-5, False)
_native_batch_norm_legit_no_training(z(1, W, 1), z(1), z(1), z(1), z(1), 0.1, 1e-5)
instance_norm(z(1, W, 2), z(1), z(1), z(1), z(1), False, 0.1, 1e-5, False)
lstm(z(2, 1, W), [z(1, 1, 5), z(1, 1, 5)], LSTM, True, 1, 0.0, False, False, False)
lstm(z(2, 1, 4), [z(1, 1, W), z(1, 1, W)], LSTM, True, 1, 0.0, False, False, False)
gru(z(2, 1, 4), z(1, 1, 5000), [z(15000, 4), z(15000, 5000), z(1), z(2)], True, 1, 0.0, False, False, 0)
scaled_dot_product_attention(z(1, 1, 2, 8), z(1, 1, 100000, 8), z(1, 1, 2, 8))
_scaled_dot_product_flash_attention_for_cpu(z(99999, 1, 2, 8), z(1, 1, 2, 8), z(1, 1, 2, 8))
_fft_c2c(z(2).cfloat(), [9], 0, True)
_fft_r2c(z(2), [9], 0, True)
_fft_c2r(z(2).cfloat(), [0], 0, W)
_native_multi_head_attention(z(1, 2, W), z(1, 2, W), z(1, 2, W), W, 1, z(3, 4), z(3), z(4, 4), z(4))
_weight_norm(z(W, 4), z(1, 1), 0)
_upsample_bilinear2d_aa(z(1, 1, 4, 4), [8, 8], False, 1e-19, 1e-19)
_pack_padded_sequence(z(3, 2, 4), t([B, 1]), False)
reflection_pad1d(z(1, 1, 4), [-100, 200])
col2im(z(1, 4, 4), [1 << 20, 1 << 20], [2, 2], [1, 1], [0, 0], [1, 1])
fake_quantize_per_channel_affine(z(1, W), z(1), z(1).int(), 1, 0, 255)
grid_sampler(z(1, 1, 4, 4), z(1, 2, 2, 2) + 5, 7, 0, False)
grid_sampler_2d(z(1, 1, 4, 4), z(1, 2, 2, 2) + 5, 0, 9, False)
grid_sampler_2d(z(1, 1, 4, 4), z(1, 2, 2, 2) + 5, -1, 0, False)
grid_sampler_3d(z(1, 1, 4, 4, 4), z(1, 2, 2, 2, 3) + 5, 7, 0, False)
grid_sampler_3d(z(1, 1, 4, 4, 4), z(1, 2, 2, 2, 3) + 5, 0, 1 << 31, False)
embedding_bag(z(4, 2), t([0, 1]), t([0]), False, 7)
embedding_bag(z(4, 2), t([0, 1, 2]), t([0]), False, 0, False, z(1))
_fft_c2c(z(4).cfloat(), [0], 99, True)
_fft_r2c(z(4), [0], -1, True)
kthvalue(z(4), 9)
topk(z(4), 9)
"""


ATTEMPTS = """
import sys
import torch
from workers.programs.guard import checked
MODE = getattr(torch, sys.argv[1])
t, z, B, W, M = torch.tensor, torch.zeros, 1 << 40, 20_000_000, 2**63 - 1
LSTM = [z(20, 4), z(20, 5), z(20), z(20)]
for call in sys.stdin.read().split("\\n"):
    name = call.partition("(")[0]
    try:
        with MODE(), checked({name}):
            eval(f"torch.ops.aten.{call}")
    except (RuntimeError, ValueError, IndexError) as error:
        continue
    print(call, flush=True)
print("all")
"""


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_operators_that_take_positions_refuse_those_that_are_not_there(mode: str) -> None:
    """In a process of its own: some kernels of PyTorch, which are left out, crash it."""
    calls = WILD.strip().split("\n")
    for call in calls:
        name = call.partition("(")[0]
        assert operators._is_listed(name), name
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, mode],
        input="\n".join(calls),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr[-2000:]
