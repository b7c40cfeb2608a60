"""Runs an untrusted program on CPU kernels that check their arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from workers.programs.operators import GUARDED

_INTERPOLATE = {"__interpolate", "__upsample", "__upsample_bilinear", "__upsample_nearest"}
_REACH_GUARDED = GUARDED | {"_weight_norm", "embedding_bag", "grid_sampler"} | _INTERPOLATE
#: A smaller scale makes a filter so wide that PyTorch's sizes and positions overflow.
_LEAST_SCALE = 1e-4
#: PyTorch's integers wrap around above this.
_LONGEST = 2**63 - 1

_is_timed = False


@contextmanager
def timed() -> Iterator[None]:
    """Switch the checks off, so that a program is timed on the kernels that PyTorch chooses; otherwise its
    engines would look faster in comparison than they are.

    Only for inputs that it has already run on with checks. If it behaves differently now, only the sandbox
    contains it.
    """
    global _is_timed
    _is_timed = True
    try:
        yield
    finally:
        _is_timed = False


@contextmanager
def checked(operators: Collection[str]) -> Iterator[None]:
    """Keep these ``aten`` operators, given by name, from reaching past a tensor.

    oneDNN's LSTM and the fused attention trust that their arguments' shapes match; PyTorch's own kernels
    check.

    Raises:
        ValueError: at run time, if the arguments of a guarded operator don't match.
    """
    if _is_timed:
        yield
        return
    names = {name.partition(".")[0] for name in operators}
    with ExitStack() as stack:
        if "lstm" in names:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        if "scaled_dot_product_attention" in names:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if not names.isdisjoint(_REACH_GUARDED):
            stack.enter_context(_Checks())  # type: ignore[no-untyped-call]
        yield


class _Checks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        check = _check_of(func) if func.namespace == "aten" else None
        if check is not None:
            names = [argument.name for argument in func._schema.arguments]
            named = dict(zip(names, args, strict=False)) | given
            if not check(named):
                raise ValueError(f"the arguments of {func} don't belong together")
        elif func.namespace == "aten":
            # In inference_mode composite operators arrive whole: dispatch again to see their parts.
            with self:
                made = func.decompose(*args, **given)
            if made is not NotImplemented:
                return made
        return func(*args, **given)


def _check_of(func: Any) -> Callable[[dict[str, Any]], bool] | None:
    name = func.overloadpacket.__name__
    return _CHECKS.get(name) or _CHECKS.get(f"{name}.{func._overloadname}")


def _batch_norm(given: dict[str, Any]) -> bool:
    channels = given["input"].shape[1]
    vectors = (given.get(name) for name in ("weight", "bias", "running_mean", "running_var"))
    return all(vector is None or vector.shape == (channels,) for vector in vectors)


def _attention(given: dict[str, Any]) -> bool:
    query, key, value = given["query"], given["key"], given["value"]
    mask = given.get("attn_mask")
    one_shape = query.shape[:2] == key.shape[:2] and key.shape == value.shape
    whole = (*query.shape[:3], key.shape[2])
    return (
        query.dim() == 4
        and one_shape
        and query.shape[3] == key.shape[3]
        and (mask is None or mask.shape in (whole, whole[2:], (1, 1, *whole[2:])))
    )


def _fast_attention(given: dict[str, Any]) -> bool:
    width, heads = given["embed_dim"], given["num_heads" if "src" in given else "num_head"]
    inputs = [given["src"]] if "src" in given else [given[n] for n in ("query", "key", "value")]
    first = inputs[0].shape
    whole: tuple[int, ...] = (first[0], heads, first[1], first[1]) if len(first) == 3 else ()
    mask = given.get("mask")
    return (
        heads > 0
        and width % heads == 0
        and all(one.shape == first and one.shape[2:] == (width,) for one in inputs)
        and given["qkv_weight"].shape == (3 * width, width)
        and given["qkv_bias"].shape == (3 * width,)
        and given["proj_weight"].shape == (width, width)
        and given["proj_bias"].shape == (width,)
        and (mask is None or mask.shape in (whole, whole[2:], whole[::2]))
    )


def _grid(given: dict[str, Any]) -> bool:
    return given["interpolation_mode"] in (0, 1, 2) and given["padding_mode"] in (0, 1, 2)


def _bags(given: dict[str, Any]) -> bool:
    indices, offsets = given["indices"], given["offsets"]
    if indices.dim() != 1 or offsets.dim() != 1 or not offsets.numel():
        return False
    weights = given.get("per_sample_weights")
    if given["weight"].dim() != 2 or given.get("mode", 0) not in (0, 1, 2):
        return False
    if weights is not None and weights.shape != indices.shape:
        return False
    is_sorted = bool((offsets[1:] >= offsets[:-1]).all())
    return is_sorted and int(offsets[0]) == 0 and int(offsets[-1]) <= indices.numel()


def _axes(given: dict[str, Any]) -> bool:
    tensor, axes = given["self"], given["dim"]
    last = given.get("last_dim_size")
    if given.get("normalization", 0) not in (0, 1, 2):
        return False
    inside = all(-tensor.dim() <= axis < tensor.dim() for axis in axes) and bool(axes)
    return inside and (last is None or tensor.shape[axes[-1]] == last // 2 + 1)


def _weight_norm(given: dict[str, Any]) -> bool:
    weight, axis = given["v"], given.get("dim", 0)
    if axis not in (0, weight.dim() - 1):
        return False
    sizes = [1] * weight.dim()
    sizes[axis] = weight.shape[axis]
    return bool(given["g"].shape == tuple(sizes))


def _scales(given: dict[str, Any]) -> bool:
    names = ("scales", "scales_d", "scales_h", "scales_w", "scale_factors")
    scales = [given.get(name) for name in names]
    flat = [one for scale in scales for one in (scale if isinstance(scale, list) else [scale])]
    return all(one is None or one >= _LEAST_SCALE for one in flat)


def _filter_scales(given: dict[str, Any]) -> bool:
    sizes = list(given["input" if "input" in given else "self"].shape[-2:])
    asked = given.get("output_size") or sizes
    return (
        _scales(given)
        and all(size > 0 for size in (*sizes, *asked))
        and all(new / old >= _LEAST_SCALE for old, new in zip(sizes, asked, strict=True))
    )


def _repeats(given: dict[str, Any]) -> bool:
    """Check that the repeats' sum, by which the kernel sizes its output, can't wrap around."""
    repeats, size = given["repeats"], given.get("output_size")
    if not repeats.numel():
        return size in (None, 0)
    least, most = int(repeats.min()), int(repeats.max())
    if least < 0 or most * repeats.numel() > _LONGEST:
        return False
    return size is None or size == int(repeats.sum())


_CHECKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "_embedding_bag": _bags,
    "_embedding_bag_forward_only": _bags,
    "_fft_c2c": _axes,
    "_fft_c2r": _axes,
    "_fft_r2c": _axes,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_multi_head_attention": _fast_attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_transformer_encoder_layer_fwd": _fast_attention,
    "_upsample_bicubic2d_aa": _filter_scales,
    "_upsample_bilinear2d_aa": _filter_scales,
    "_upsample_lanczos2d_aa": _filter_scales,
    "_upsample_nearest_exact1d": _scales,
    "_upsample_nearest_exact2d": _scales,
    "_upsample_nearest_exact3d": _scales,
    "_weight_norm_interface": _weight_norm,
    "grid_sampler_2d": _grid,
    "grid_sampler_3d": _grid,
    "repeat_interleave.Tensor": _repeats,  # the other overloads call it
    "upsample_bicubic2d": _scales,
    "upsample_bilinear2d": _scales,
    "upsample_linear1d": _scales,
    "upsample_nearest1d": _scales,
    "upsample_nearest2d": _scales,
    "upsample_nearest3d": _scales,
    "upsample_trilinear3d": _scales,
}
