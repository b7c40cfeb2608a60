import pytest

from farm.errors import UnknownGpu
from farm.specs import gpus


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("sm_89", "sm_89"),
        ("SM89", "sm_89"),
        ("8.9", "sm_89"),
        ("12.0", "sm_120"),
        ("RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("H200", "h200"),
        ("cpu", "cpu"),
        ("H200 MIG 1g.18gb", "h200-1g.18gb"),
        ("h100-1c.3g.40gb", "h100-1c.3g.40gb"),
        ("sm_90-1g.18gb", "sm_90-1g.18gb"),
        ("a100-3g.20gb", "a100-3g.20gb"),
    ],
)
def test_a_tag_is_understood_however_it_is_written(written, tag):
    assert gpus.canonical(written) == tag


@pytest.mark.parametrize("written", ["t5", "sm_88", "rtx-4091", "", "🤷", "h201-1g.18gb"])
def test_an_unknown_tag_is_refused_with_the_way_to_the_known_ones(written):
    with pytest.raises(UnknownGpu) as caught:
        gpus.canonical(written)
    assert "farm targets" in caught.value.hint


def test_an_unknown_tag_names_the_closest_known_ones():
    with pytest.raises(UnknownGpu) as caught:
        gpus.canonical("rtx-4095")
    assert "rtx-4090" in caught.value.hint


@pytest.mark.parametrize(
    ("product", "capability"),
    [
        ("t4", "sm_75"),
        ("a10", "sm_86"),
        ("rtx-4090", "sm_89"),
        ("h200", "sm_90"),
        ("h200-1g.18gb", "sm_90"),
        ("cpu", "cpu"),
    ],
)
def test_a_product_maps_to_its_compute_capability(product, capability):
    assert gpus.compute_capability(product) == capability


@pytest.mark.parametrize(
    ("device", "product"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx-2080-ti"),
        ("Tesla T4", "t4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 MIG 1g.18gb", "h200-1g.18gb"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "a100-3g.20gb"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.10gb+me", "a100-1g.10gb+me"),
        ("NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb", "h100-1c.3g.40gb"),
        (
            "NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb+me.all",
            "rtx-pro-6000-1g.24gb+me.all",
        ),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 2g.48gb-me", "rtx-pro-6000-2g.48gb-me"),
        ("Some other device MIG 1g.5gb", None),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("Some other device", None),
    ],
)
def test_a_device_name_gives_its_product(device, product):
    assert gpus.product_of(device) == product
