import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, export

from workers.programs.lowered import lowered, observed
from workers.programs.program_interface import plain_program
from workers.quantize.program_products import EightBit


class Net(nn.Module):
    """Each product that has kernels in eight bits, and some that have none."""

    def __init__(self):
        super().__init__()
        self.pointwise = nn.Conv2d(16, 32, 1, stride=2)
        self.spatial = nn.Conv2d(32, 32, 3, padding=1)
        self.linear = nn.Linear(32, 64)
        self.matrix = nn.Parameter(torch.randn(64, 48) / 8)
        self.odd = nn.Linear(48, 10)

    def forward(self, x):
        y = self.spatial(self.pointwise(x).relu()).relu().mean((2, 3))
        return self.odd((self.linear(y).relu() @ self.matrix).relu())


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((32, 16, 8, 8), np.float32))


@pytest.fixture(scope="module")
def program(net, images):
    made = export(net, (images,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    plain_program(made)
    return made


def names_of(found):
    return {name.rpartition("_")[0] or name for name in found}


@pytest.mark.parametrize(("kind", "most"), [("fp8", 0.08), ("int8", 0.02)])
def test_products_with_kernels_multiply_in_eight_bits_and_the_others_say_why_not(
    net, program, images, kind, most
):
    made = EightBit(program, torch.float16, kind, observed(lowered(program), [(images,)]))
    assert list(made.quantised) == ["conv2d", "linear", "matmul"]
    assert made.left_out == {"linear_1": "48 × 10 aren't multiples of 16"}
    [scores] = made(images)
    expected = net(images)
    assert float((scores - expected).pow(2).mean().sqrt() / expected.std()) < most
    held = {tensor.dtype for tensor in made.buffers()}
    assert {"fp8": torch.float8_e4m3fn, "int8": torch.int8}[kind] in held


def test_a_quantised_weight_is_kept_in_eight_bits_alone(program, images):
    made = EightBit(program, torch.float16, "fp8", observed(lowered(program), [(images,)]))
    halves = {
        tuple(one.shape) for one in made.buffers() if one.dtype is torch.float16 and one.dim() > 1
    }
    assert halves == {(32, 32, 3, 3), (10, 48)}


def test_what_is_observed_is_the_largest_of_all_batches_and_the_size_of_the_smallest(
    program, images
):
    [given] = program.graph_signature.user_inputs
    found = observed(lowered(program), [(images[:8],), (2 * images,)])
    assert found[given].largest == pytest.approx(float(2 * images.abs().max()))
    assert found[given].fewest == images[:8].numel()


def test_int8_leaves_out_a_product_of_too_few_rows(program, images):
    made = EightBit(program, torch.float16, "int8", observed(lowered(program), [(images[:4],)]))
    assert made.left_out["linear"] == "it has only 4 rows"
    assert "conv2d" in made.quantised


def test_a_product_whose_values_leave_fp16_stays_as_it_is(program, images):
    found = observed(lowered(program), [(images,)])
    made = EightBit(program, torch.float16, "fp8", found, wide=["linear"])
    assert "leave the range" in made.left_out["linear"]


def quantised(module, *batches, kind="fp8"):
    made = export(module.eval(), batches[0])
    plain_program(made)
    return EightBit(made, torch.float16, kind, observed(lowered(made), batches))


def test_an_image_without_a_batch_is_multiplied_too():
    torch.manual_seed(0)
    module, image = nn.Conv2d(16, 32, 1, stride=2), torch.randn(16, 8, 8)
    made = quantised(module, (image,))
    assert list(made.quantised) == ["conv2d"]
    [given] = made(image)
    expected = module(image)
    assert given.shape == expected.shape == (32, 4, 4)
    assert float((given - expected).abs().max()) < 0.2


def test_one_image_with_channels_first_is_multiplied_as_rows():
    """The kernel of fp8 refuses a matrix of columns, which is what such an image is."""
    image = torch.randn(1, 16, 8, 8)
    traced = export(quantised(nn.Conv2d(16, 32, 1), (image,)).eval(), (image,))
    [product] = traced.graph.find_nodes(
        op="call_function", target=torch.ops.aten._scaled_mm.default
    )
    assert product.args[0].meta["val"].stride() == (16, 1)


def test_products_of_integers_and_of_nothing_stay_as_they_are():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("counts", torch.ones(16, 16, dtype=torch.long))
            self.linear = nn.Linear(16, 16)

        def forward(self, ids, x):
            return ids @ self.counts, self.linear(x[:0])

    made = quantised(Odd(), (torch.ones(4, 16, dtype=torch.long), torch.ones(4, 16)))
    assert made.left_out == {
        "matmul": "no data reach it",
        "linear": "its activations are zero or not finite on the calibration data",
    }
    counted, nothing = made(torch.ones(4, 16, dtype=torch.long), torch.ones(4, 16))
    assert counted.dtype is torch.int64
    assert (counted == 16).all()
    assert nothing.shape == (0, 16)


def test_data_that_are_no_numbers_calibrate_nothing():
    module = nn.Linear(16, 16)
    batches = (torch.full((4, 16), torch.nan),), (torch.ones(4, 16),)
    assert "not finite" in quantised(module, *batches).left_out["linear"]


def test_a_weight_that_two_products_take_is_dropped_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x):
            return self.linear(self.linear(x).relu())

    made = quantised(Twice(), (torch.randn(4, 32),))
    assert list(made.quantised) == ["linear", "linear_1"]
    assert {one.dtype for one in made.buffers() if one.dim() == 2} == {torch.float8_e4m3fn}


def test_what_is_traced_of_it_keeps_the_batch(program, images):
    made = EightBit(program, torch.float16, "fp8", observed(lowered(program), [(images,)]))
    traced = export(made.eval(), (images,), dynamic_shapes=(({0: Dim("b", min=1, max=64)},),))
    assert [(r.lower, r.upper) for r in traced.range_constraints.values()] == [(1, 64)]
    scaled = [n for n in traced.graph.nodes if n.target is torch.ops.aten._scaled_mm.default]
    assert len(scaled) == 3
