import pytest
import torch
from torch import nn
from torch.export import Dim, export

from farm.errors import EngineBuildFailed
from workers.backends.aotinductor.layout import laid_out
from workers.programs.lowered import lowered, magnitudes
from workers.programs.program_interface import plain_program


class Net(nn.Module):
    """Convolution, attention with a mask of the lowest fp32, a region without gradients, two outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        y = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        with torch.no_grad():
            z = (y * 2).unsqueeze(1)
        mask = torch.full((y.shape[1], y.shape[1]), torch.finfo(torch.float32).min).triu(1)
        seen = nn.functional.scaled_dot_product_attention(z, z, z, mask)
        return {"scores": self.encoder(y) + seen[:, 0], "best": y.argmax(-1)}


def program_of(module, *inputs, dynamic=False):
    sizes = tuple({0: Dim("batch", min=1, max=16)} for _ in inputs) if dynamic else None
    made = export(module.eval(), inputs, dynamic_shapes=sizes)
    plain_program(made)
    return made


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("dtype", "error"), [(None, 0), (torch.float16, 1e-2), (torch.bfloat16, 1e-1)]
)
def test_a_program_computes_in_another_type_and_gives_its_own(image, dtype, error):
    module = Net()
    expected = module.eval()(image)
    scores, best = lowered(program_of(module, image), dtype)(image)
    assert (scores.dtype, best.dtype) == (torch.float32, torch.int64)
    assert torch.allclose(scores, expected["scores"], atol=error)
    assert (scores == expected["scores"]).all() == (dtype is None)
    assert torch.equal(best, expected["best"])


def test_what_is_traced_of_it_keeps_the_batch_and_none_of_the_authors_names(image):
    module = lowered(program_of(Net(), image, dynamic=True), torch.float16)
    traced = export(module, (image,), dynamic_shapes=(({0: Dim("b", min=1, max=16)},),))
    assert [(r.lower, r.upper) for r in traced.range_constraints.values()] == [(1, 16)]
    assert all(name.startswith("w") and name[1:].isdigit() for name in traced.state_dict)
    products = {node.meta["val"].dtype for node in traced.graph.nodes if "linear" in node.name}
    assert products == {torch.float16}


class Large(nn.Module):
    """A residual stream beyond fp16, and back."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self.norm(self.first(x) * 1e6))


def test_values_beyond_fp16_stay_in_fp32():
    torch.manual_seed(0)
    module, x = Large(), torch.randn(2, 8)
    program = program_of(module, x)
    assert not torch.isfinite(lowered(program, torch.float16)(x)[0]).all()
    seen = magnitudes(lowered(program), [(x,)])
    wide = [name for name, largest in seen.items() if largest > 3e4]
    [made] = lowered(program, torch.float16, wide=wide)(x)
    assert torch.allclose(made, module(x), atol=1e-2)


def test_a_value_that_is_no_number_counts_as_infinite():
    class Log(nn.Module):
        def forward(self, x):
            return x.log(), x + 1

    x = torch.tensor([[-1.0, 2.0]])
    seen = magnitudes(lowered(program_of(Log(), x)), [(x,), (x + 1,)])
    assert seen["log"] == float("inf")
    assert seen["add"] == 4.0


def test_a_region_that_branches_on_data_is_refused_with_what_to_do():
    class Branch(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    module = lowered(program_of(Branch(), torch.ones(2, 2)))
    with pytest.raises(EngineBuildFailed, match="branches or loops") as caught:
        module(torch.ones(2, 2))
    assert "torch.where" in caught.value.hint


def test_a_text_that_no_operator_takes_never_reaches_a_compiler():
    class Gelu(nn.Module):
        def forward(self, x):
            return nn.functional.gelu(x)

    program = program_of(Gelu(), torch.ones(2, 2))
    [node] = [node for node in program.graph.nodes if "gelu" in node.name]
    node.kwargs = {"approximate": 'none"); system("id'}
    with pytest.raises(EngineBuildFailed, match="the text"):
        lowered(program)(torch.ones(2, 2))


@pytest.mark.parametrize(("last_ms", "is_last"), [(1.0, True), (3.0, False)])
def test_images_are_laid_out_as_is_faster(image, last_ms, is_last):
    times = {False: 2.0, True: last_ms}

    def time_ms(module, inputs):
        return times[weight(module).is_contiguous(memory_format=torch.channels_last)]

    def weight(module):
        return next(tensor for tensor in module.buffers() if tensor.dim() == 4)

    expected = Net().eval()
    made = laid_out(lowered(program_of(expected, image)), [image], time_ms)
    assert weight(made).is_contiguous(memory_format=torch.channels_last) == is_last
    assert torch.allclose(made(image)[0], expected(image)["scores"], atol=1e-5)


def test_without_images_nothing_is_timed():
    def time_ms(module, inputs):
        raise AssertionError

    x = torch.ones(2, 8)
    laid_out(lowered(program_of(Large(), x)), [x], time_ms)


def test_what_can_not_be_timed_has_channels_last(image):
    def time_ms(module, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    made = laid_out(lowered(program_of(Net(), image)), [image], time_ms)
    [weight] = [tensor for tensor in made.buffers() if tensor.dim() == 4]
    assert weight.is_contiguous(memory_format=torch.channels_last)
