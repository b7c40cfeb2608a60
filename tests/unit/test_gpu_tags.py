import pytest

from farm.errors import GpuUnsupported, UnknownGpu
from farm.specs import gpu_families, gpus


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


@pytest.mark.parametrize("written", ["t5", "sm_88", "rtx-4091", "v101", "h201", "gtx"])
def test_a_typing_error_is_not_called_unsupported(written):
    with pytest.raises(UnknownGpu) as caught:
        gpus.canonical(written)
    assert not isinstance(caught.value, GpuUnsupported)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("v100", "'v100' is too old (Volta, sm_70): the farm builds for sm_75 and newer"),
        ("Tesla V100-SXM2-32GB", "Volta, sm_70"),
        ("titan-v", "Volta, sm_70"),
        ("jetson-xavier", "Volta, sm_72"),
        ("p100", "Pascal, sm_60"),
        ("gtx-1080", "Pascal, sm_61"),
        ("GeForce GTX 1080 Ti", "Pascal, sm_61"),
        ("titan-xp", "Pascal, sm_61"),
        ("quadro-p4000", "Pascal, sm_61"),
        ("titan-x", "Maxwell, sm_52"),
        ("gtx-980", "Maxwell, sm_52"),
        ("m60", "Maxwell, sm_52"),
        ("k80", "Kepler, sm_37"),
        ("sm_70", "'sm_70' is too old (Volta): the farm builds for sm_75 and newer"),
        ("6.1", "'6.1' is too old (Pascal)"),
        ("mi300x", "'mi300x' is an AMD GPU: the farm builds for NVIDIA's GPUs, and for cpu"),
        ("rx-7900-xtx", "an AMD GPU"),
        ("gaudi2", "an Intel device"),
        ("m3-max", "an Apple chip"),
        ("tpu-v5e", "a TPU"),
    ],
)
def test_a_chip_that_exists_is_told_as_too_old_or_as_another_makers(written, said):
    with pytest.raises(GpuUnsupported) as caught:
        gpus.canonical(written)
    assert said in caught.value.detail
    assert caught.value.hint == "`farm targets` lists every tag; cpu is one of them"


@pytest.mark.parametrize(
    ("written", "capability"),
    [
        ("gtx-1660-ti", "sm_75"),
        ("titan-rtx", "sm_75"),
        ("rtx-3090-ti", "sm_86"),
        ("jetson-orin-nano", "sm_87"),
        ("rtx-4080-super", "sm_89"),
        ("h20", "sm_90"),
        ("rtx-5060", "sm_120"),
    ],
)
def test_a_product_without_a_tag_is_named_with_its_compute_capability(written, capability):
    with pytest.raises(GpuUnsupported) as caught:
        gpus.canonical(written)
    assert caught.value.hint == f"use its compute capability: {capability}"


def test_families_without_a_tag_hide_no_known_one_and_have_an_architecture():
    for tag in (*gpus.PRODUCTS, *gpus.COMPUTE_CAPABILITIES):
        assert gpus.canonical(tag) == tag
    known = {*gpus.COMPUTE_CAPABILITIES, *gpu_families.OLD}
    assert set(gpu_families._PRODUCTS) <= known
    assert max(map(gpus.number, gpu_families.OLD)) < gpus.number(gpus.COMPUTE_CAPABILITIES[0])


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
