"""Allow-list of the operators that an untrusted program may call.

They compute only on their arguments, and their CPU kernels in PyTorch check indices and sizes. The list
has what PyTorch's ONNX exporters accept, except operators that touch files, threads, storages or devices,
and kernels found to read or write past a tensor when sizes or indices in a model are forged:

- ``native_batch_norm`` and its variants: weights smaller than their input
- ``segment_reduce``, ``ctc_loss``, ``fractional_max_pool2d``, gradients (``…_backward``): arbitrary indices
- ``_reshape_alias``, ``set_``, ``resize_``, ``_sparse_…_unsafe``, ``inductor``: memory at any offset

Other such kernels are needed for ordinary layers. :data:`GUARDED` lists them: they are allowed, and
``workers.programs.guard`` checks their arguments before they run.
"""

from __future__ import annotations

from functools import cache

import torch

#: ``aten``: on tensors and numbers. In-place variants have the same name with a ``_``.
_TENSORS = frozenset(
    """
    __and__ __interpolate __lshift__ __or__ __rshift__ __upsample __upsample_bilinear
    __upsample_nearest __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async
    _assert_scalar _assert_tensor_metadata _cast_Byte _cast_Char _cast_Double _cast_Float
    _cast_Half _cast_Int _cast_Long _cast_Short _cdist_forward _conj _conj_copy _convolution
    _convolution_mode _dim_arange _linalg_det _local_scalar_dense _log_softmax
    _pack_padded_sequence _pad_circular _pdist_forward _prelu_kernel
    _reshape_copy _reshape_from_tensor _safe_softmax _sample_dirichlet _shape_as_tensor _softmax
    _stack _standard_gamma _to_copy _unique _unique2 _unsafe_index _unsafe_index_put _unsafe_view
    _weight_norm abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm
    addmv addr adjoint affine_grid_generator alias alias_copy all allclose alpha_dropout amax amin
    aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin
    argsort argwhere as_strided as_tensor asin asinh atan atan2 atanh atleast_1d atleast_2d
    atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm bernoulli
    bilinear binary_cross_entropy binary_cross_entropy_with_logits bincount bitwise_and
    bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window
    block_diag bmm broadcast_tensors broadcast_to bucketize cartesian_prod cat cauchy cdist ceil
    celu chain_matmul channel_shuffle chunk clamp clamp_max clamp_min clip clone col2im
    column_stack complex concat concatenate conj conj_physical constant_pad_nd contiguous conv1d
    conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution copy
    copy_ copysign cos cosh cosine_similarity count_nonzero cpu cross cross_entropy_loss cummax
    cummin cumprod cumsum deg2rad det detach detach_copy diag diag_embed diagflat diagonal
    diagonal_copy diagonal_scatter diff digamma dim dist div divide dot dropout dsplit dstack
    einsum element_size elu embedding embedding_bag embedding_renorm empty empty_like empty_permuted
    empty_strided eq equal erf erfc erfinv exp exp2 expand expand_as expand_copy expm1 exponential
    eye fake_quantize_per_channel_affine fake_quantize_per_tensor_affine feature_alpha_dropout
    feature_dropout fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2
    fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2
    fft_rfftfreq fft_rfftn fill fill_diagonal_ fix flatten flip fliplr flipud float_power floor
    floor_divide fmax fmin fmod frac frexp frobenius_norm full full_like gather gcd ge gelu
    geometric ger glu greater greater_equal grid_sampler group_norm
    gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside
    hinge_embedding_loss histc hsplit hstack huber_loss hypot i0 igamma igammac im2col imag index
    index_add index_copy index_fill index_put index_reduce index_select inner instance_norm inverse
    is_complex is_conj is_contiguous is_floating_point is_neg is_nonzero is_same_size is_signed
    isclose isfinite isin isinf isnan isneginf isposinf isreal istft item kaiser_window kl_div kron
    kthvalue l1_loss layer_norm lcm ldexp le leaky_relu lerp less less_equal lgamma lift lift_fresh
    lift_fresh_copy linalg_cholesky linalg_cross linalg_det linalg_diagonal linalg_eigh
    linalg_eigvalsh linalg_inv linalg_matmul linalg_matrix_exp linalg_matrix_norm
    linalg_matrix_power linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet
    linalg_solve linalg_svd linalg_svdvals linalg_vecdot linalg_vector_norm linear linspace log
    log10 log1p log2 log_normal log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp logdet
    logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lstm_cell lt mH mT
    margin_ranking_loss masked_fill masked_scatter masked_select matmul matrix_H matrix_exp
    matrix_power max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices
    max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid min
    minimum mish mm mode moveaxis movedim mse_loss msort mul multi_margin_loss multinomial multiply
    mv mvlgamma nan_to_num nanmean nanmedian nanquantile nansum narrow narrow_copy
    native_channel_shuffle native_dropout native_group_norm native_layer_norm ne neg negative
    new_empty new_empty_strided new_full new_ones new_zeros nextafter nll_loss nll_loss2d
    nll_loss_forward nll_loss_nd nonzero nonzero_numpy norm norm_except_dim normal
    normal_functional not_equal nuclear_norm numel numpy_T one_hot ones ones_like outer pad
    pad_sequence pairwise_distance pdist permute permute_copy pinverse pixel_shuffle
    pixel_unshuffle poisson poisson_nll_loss polar polygamma positive pow prelu prod put quantile
    rad2deg rand rand_like randint randint_like randn randn_like random randperm range ravel real
    reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder renorm
    repeat replication_pad1d replication_pad2d replication_pad3d requires_grad_
    reshape reshape_as resolve_conj resolve_neg result_type rms_norm rnn_relu rnn_relu_cell
    rnn_tanh rnn_tanh_cell roll rot90 round row_stack rrelu rsqrt rsub scalar_tensor
    scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_copy
    select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh size slice slice_copy
    slice_scatter smooth_l1_loss soft_margin_loss softmax softplus softshrink sort special_entr
    special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
    special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
    special_log_softmax special_logit special_logsumexp special_ndtr special_ndtri special_sinc
    special_softmax special_xlog1py special_xlogy split split_with_sizes split_with_sizes_copy sqrt
    square squeeze squeeze_copy stack std std_mean stft storage_offset stride sub subtract sum
    sum_to_size swapaxes swapdims sym_constrain_range sym_constrain_range_for_size
    sym_is_contiguous sym_numel sym_size sym_storage_offset sym_stride t t_copy take take_along_dim
    tan tanh tensor tensor_split tensordot threshold tile to topk trace transpose transpose_copy
    trapezoid trapz tril tril_indices triplet_margin_loss triu triu_indices true_divide trunc
    type_as unbind unbind_copy unflatten unfold unfold_copy uniform unique_consecutive unique_dim
    unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy
    vander var var_mean vdot view view_as view_as_complex view_as_complex_copy
    view_as_real view_as_real_copy view_copy vsplit vstack where xlogy zero zeros zeros_like
    """.split()
)
#: ``aten``, only in TorchScript: on lists, dictionaries, strings and numbers.
_PLAIN = frozenset(
    """
    Bool Complex ComplexImplicit Delete Float FloatImplicit Int IntImplicit ScalarImplicit Size
    __contains__ __derive_index __getitem__ __is__ __isnot__ __not__ __range_length
    __round_to_zero_floordiv _list_to_tensor _set_item _size_if_not_equal _tensor_to_list
    _unwrap_optional append broadcast_shapes capitalize chr clear count degrees device dict divmod
    endswith extend fabs factorial find floordiv format get get_device insert
    is_autocast_cpu_enabled is_autocast_enabled is_grad_enabled is_scripting isalnum isalpha
    isdigit islower isnumeric isspace isupper items join keys len list ljust lower
    lstrip mathremainder modf ord percentFormat pop popitem promote_types radians remove replace
    reverse rfind rindex rjust rsplit rstrip set_grad_enabled setdefault sorted splitlines
    startswith str strip title update upper values warn zfill
    """.split()
)
#: ``prims``: what ``torch.export`` may leave in a program.
_PRIMS = frozenset(
    """
    abs acos acosh add asin asinh atan atanh broadcast_in_dim ceil convert_element_type cos cosh
    device_put div eq erf exp floor ge gt le log lt mul ne neg pow remainder reshape round sin sinh
    sqrt squeeze sub sum tan tanh transpose var view_of where
    """.split()
)
#: TorchScript's own node kinds. None prints, forks, or calls Python or another machine.
_NODES = frozenset(
    """
    CallFunction CallMethod Constant ConstantChunk CreateObject DictConstruct Enter EnumName
    EnumValue Exit GetAttr If ListConstruct ListUnpack Loop NumToTensor RaiseException SetAttr
    StringIndex TupleConstruct TupleIndex TupleSlice TupleUnpack Uninitialized abs data device dtype
    index is_cpu is_cuda is_meta is_mkldnn is_mps is_nested is_quantized is_sparse is_sparse_csr
    is_xla is_xpu isinstance itemsize layout max min nbytes rangelist requires_grad shape tolist
    type unchecked_cast unchecked_unwrap_optional
    """.split()
)
#: ``aten``: their kernels trust their arguments, so the guard checks these first.
GUARDED = frozenset(
    """
    _embedding_bag _embedding_bag_forward_only _fft_c2c _fft_c2r _fft_r2c
    _native_batch_norm_legit_no_training _native_multi_head_attention
    _scaled_dot_product_flash_attention_for_cpu _transformer_encoder_layer_fwd
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _weight_norm_interface grid_sampler_2d grid_sampler_3d repeat_interleave upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d
    """.split()
)
#: Types that an allowed operator neither takes nor returns.
_FOREIGN = ("Storage", "Stream", "Capsule", "RRef", "Future", "Await", "QScheme", "__torch__")


def may_call(operator: str) -> bool:
    """Whether a ``torch.export`` program may call an operator such as ``aten.add.Tensor``."""
    namespace, _, name = operator.partition(".")
    base, _, overload = name.partition(".")
    if namespace == "prims":
        return base in _PRIMS and overload == "default"
    if namespace != "aten" or not _is_listed(base):
        return False
    schemas = getattr(getattr(torch.ops.aten, base, None), "_schemas", {})
    chosen = schemas.get("" if overload == "default" else overload or None)
    return chosen is not None and _is_pure(chosen)


def may_run(kind: str, schema: str) -> bool:
    """Whether TorchScript may contain a node of this kind (``aten::add``) with this schema."""
    namespace, _, name = kind.partition("::")
    if namespace == "prim":
        return name in _NODES
    if namespace == "prims":  # from programs that were built into engines
        return name in _PRIMS
    if namespace != "aten" or not (name in _PLAIN or _is_listed(name)):
        return False
    return name in _PLAIN or _is_pure_text(schema)


def _is_listed(name: str) -> bool:
    in_place = name.endswith("_") and name[:-1] in _TENSORS
    return in_place or name in _TENSORS or name in GUARDED


@cache
def _is_pure_text(schema: str) -> bool:
    return _is_pure(torch._C.parse_schema(schema))


def _is_pure(schema: torch.FunctionSchema) -> bool:
    """Whether an overload writes only to the tensor it is called on, and takes plain values."""
    for position, argument in enumerate(schema.arguments):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and (position > 0 or argument.kwarg_only):  # out= resizes its argument
            return False
    values = [*schema.arguments, *schema.returns]
    return not any(foreign in str(value.type) for value in values for foreign in _FOREIGN)
