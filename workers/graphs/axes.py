"""Axes that a build's profiles fix at one size, made static in the graph.

TensorRT's parser rejects what it can't resolve on a dynamic axis, such as a Squeeze without axes,
however narrow the profile is.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from farm.specs.shapes import Profile


def settle(model: onnx.ModelProto, profiles: Sequence[Profile]) -> list[str]:
    """Make such input axes static, in place. Returns the names of the inputs changed."""
    changed = []
    for value in model.graph.input:
        shapes = [profile[value.name] for profile in profiles if value.name in profile]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            sizes = {
                size for one in shapes for size in (one.min[axis], one.opt[axis], one.max[axis])
            }
            if not dim.HasField("dim_value") and len(sizes) == 1:
                dim.dim_value = sizes.pop()
                changed.append(value.name)
    return list(dict.fromkeys(changed))
