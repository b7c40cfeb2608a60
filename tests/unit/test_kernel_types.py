import pytest

from workers.report.kernel_types import shares, type_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_qqhsh_128x192_128x5_2x1_v_bz_coopB_TNN", "fp8"),
        ("nvjet_sm90_hsh_128x192_64x5_2x1_v_bz_coopB_TNN", "fp16"),
        ("nvjet_sm90_tst_128x192_64x5_2x1_v_bz_coopB_TNN", "bf16"),
        (
            "void cutlass::Kernel2<cutlass_80_tensorop_i16832gemm_s8_128x64_128x3_tn_align16>(cutlass_80",
            "int8",
        ),
        (
            "void cutlass1x::gemm::gemm_kernel_nolb<cutlass1x::gemm::Gemm<cutlass1x::gemm::IgemmTraits<",
            "int8",
        ),
        (
            "void implicit_convolve_sgemm<__half, __half, 1024, 5, 5, 3, 3, 3, 1, false, false, true>(int",
            "fp16",
        ),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize64x64x64", "fp16"),
        (
            "sm90_xmma_fprop_image_first_layer_f16f16_f32_f16_nhwckrsc_nhwc_hmma_k64c4r7s7_stride2x2",
            "fp16",
        ),
        (
            "void cutlass::Kernel2<cutlass_80_tensorop_f16_s16816gemm_f16_64x64_64x6_nn_align2>",
            "fp16",
        ),
        (
            "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816fprop_optimized_f16_64x128_32x6>",
            "fp16",
        ),
        ("sm90_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize64x64x32", "tf32"),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32_warpgroupsize1x1x1", "tf32"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x64_16x6_tn_align4>", "tf32"),
        (
            "triton_poi_fused__native_batch_norm_legit_no_training__scaled_mm__to_copy_add_clamp",
            None,
        ),
        ("triton_poi_fused_add_convolution_relu_5", None),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half, float, false>", None),
        ("Memcpy DtoD (Device -> Device)", None),
        ("some_new_gemm_kernel", "other"),
    ],
)
def test_a_kernels_name_tells_what_it_multiplies_in(name, kind):
    assert type_of(name) == kind


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_cudnns_attention_runs_in_the_graphs_type_of_16_bits(half):
    name = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1_kernel0_0"
    assert type_of(name, half) == half
    assert shares({name: 3.0, "nvjet_sm90_qqhsh_64x104": 1.0}, half) == {half: 0.75, "fp8": 0.25}


def test_the_shares_are_of_the_time_in_products():
    kernels = {
        "nvjet_sm90_qqhsh_64x104": 30.0,
        "nvjet_sm90_hsh_64x72": 10.0,
        "triton_poi_fused_relu_1": 500.0,
    }
    assert shares(kernels) == {"fp8": 0.75, "fp16": 0.25}
    assert shares({"triton_poi_fused_relu_1": 1.0}) == {}
