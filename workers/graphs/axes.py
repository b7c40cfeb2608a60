"""Axes that a build's profiles give one size, as that size in the graph.

TensorRT's parser refuses what it can't settle on an axis of any size, as a Squeeze that names no axes,
however narrow the profile is.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from farm.specs.shapes import Profile


def settle(model: onnx.ModelProto, profiles: Sequence[Profile]) -> list[str]:
    """Give such axes of the inputs their size, in place, and return which inputs have some."""
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
