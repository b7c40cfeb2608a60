import pytest
import torch
from torch import nn
from torch.export import Dim, export

from workers.programs.lowered import lowered
from workers.programs.program_interface import plain_program

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class Attention(nn.Module):
    """Attention of x to itself, with the mask that a function makes of x."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask
        self.register_buffer("zeros", torch.zeros(5, 5))
        self.register_buffer("written", torch.zeros(5, 5))

    def forward(self, x):
        mask = self.mask(self, x)
        return nn.functional.scaled_dot_product_attention(x, x, x, mask)


def as_vit_writes_it(_, x):
    allowed = (torch.arange(5) + 0)[None, None, :, None] >= 0
    return allowed.expand(x.shape[0], -1, 5, 5)


def written_to(module, x):
    module.written.add_(x.sum())
    return module.written


HIDES_NOTHING = {
    "positions from zero": as_vit_writes_it,
    "ones": lambda *_: torch.ones(5, 5, dtype=torch.bool),
    "a buffer of zeros": lambda module, *_: module.zeros,
    "zeros where allowed": lambda *_: torch.where(
        torch.arange(5)[None] >= 0, 0.0, -torch.inf
    ).expand(5, 5),
}
HIDES = {
    "the future": lambda *_: torch.ones(5, 5, dtype=torch.bool).tril(),
    "the input's zeros": lambda _, x: (x[:, :, :, 0] > -9)[:, :, None].expand(-1, -1, 5, 5),
    "chance": lambda *_: torch.rand(5, 5) >= 0,
    "what is written to": written_to,
    "rows": lambda _, x: (torch.arange(5) != 5)[:, None].expand(5, 5) & (x.sum() > -1e9),
    "bias": lambda *_: torch.full((5, 5), 0.5).triu(),
}


def made_of(mask, dtype=None):
    x = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    module = Attention(mask).eval()
    sizes = ({0: Dim("batch", min=1, max=8)},)
    program = export(module, (x,), dynamic_shapes=sizes)
    plain_program(program)
    traced = export(lowered(program, dtype), (x,), dynamic_shapes=(sizes,))
    [attention] = [node for node in traced.graph.nodes if node.target is ATTENTION]
    expected = Attention(mask).eval()(x)
    assert torch.allclose(traced.module()(x)[0], expected, atol=1e-2 if dtype else 1e-6)
    mask_of = dict(enumerate(attention.args)).get(3, attention.kwargs.get("attn_mask"))
    return None if mask_of is None else mask_of.meta["val"]


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("name", HIDES_NOTHING)
def test_a_mask_that_never_hides_anything_is_left_out(name, dtype):
    assert made_of(HIDES_NOTHING[name], dtype) is None


@pytest.mark.parametrize("name", HIDES)
def test_a_mask_that_may_hide_something_stays(name):
    assert made_of(HIDES[name], torch.float16) is not None


def test_a_mask_that_is_one_number_a_row_is_spread_out_for_the_kernels():
    """PyTorch falls back to products in fp32 for a mask whose last stride isn't 1."""
    rows = made_of(lambda _, x: (x[0, 0, :, :1] > -9).expand(5, 5), torch.float16)
    assert rows.shape == (5, 5)
    assert rows.stride() == (5, 1)
