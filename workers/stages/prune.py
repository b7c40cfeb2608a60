"""Prune: sets the weights of smallest magnitude to zero, and changes nothing else in the source.

Weights are pruned per layer, by ``torch.nn.utils.prune``, where the graph multiplies by them: a program
keeps no layers, only the operators they became.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils import prune

from farm.errors import PruningFailed
from farm.specs.options import Prune
from farm.specs.roles import Role
from farm.stages import Pruned, PruneFacts, PruneParams
from workers.programs.program_weights import Weight, weights
from workers.sources import reference
from workers.stages.base import Stage, StageResult

#: TensorRT's sparse kernels need at least 2 zeros in every 4 input channels of the weights.
#: Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/io-formats-sparsity.html
GROUP, KEPT = 4, 2
_prune: Any = prune  # it is untyped


def run(stage: Stage) -> StageResult:
    """Write the pruned ``source`` from ``source``.

    Raises:
        InvalidModel: the source can't be read.
        PruningFailed: none of its weights can be pruned this way.
    """
    params = stage.params
    assert isinstance(params, PruneParams)
    stage.progress("load", None)
    program = reference.program(stage.inputs[Role.SOURCE], params)
    assert program is not None
    stage.progress("prune", None)
    facts = prune_program(program, params.prune)
    print(
        f"{facts.sparsity:.1%} of {facts.weights} weights in {len(facts.layers)} layers "
        f"are zero; {len(facts.left_out)} left out",
        flush=True,
    )
    return StageResult(outputs={Role.SOURCE: _save(program, stage.workdir)}, facts=facts)


def prune_program(program: ExportedProgram, how: Prune) -> PruneFacts:
    """Prune a program in place; return each layer's result.

    Raises:
        PruningFailed: nothing in it can be pruned this way.
    """
    found, left_out = weights(program)
    pruned: dict[str, Tensor] = {}
    for weight in found:
        tensor = program.state_dict[weight.name]
        reason = _why_not(weight, tensor, how)
        if reason:
            left_out[weight.name] = reason
        else:
            pruned[weight.name] = _pruned(tensor, weight.axis, how)
    if not pruned:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise PruningFailed(f"no layer of the model can be pruned by {how}{': ' * bool(why)}{why}")
    for name, tensor in pruned.items():
        # In place: a weight may have several names.
        program.state_dict[name].data.copy_(tensor)
    return _facts(pruned, left_out)


def _why_not(weight: Weight, tensor: Tensor, how: Prune) -> str | None:
    if not tensor.is_floating_point():
        return f"its type is {tensor.dtype}"
    if how.method == "2:4" and tensor.shape[weight.axis] % GROUP:
        return f"its {tensor.shape[weight.axis]} input channels aren't groups of {GROUP}"
    return None


def _pruned(tensor: Tensor, axis: int, how: Prune) -> Tensor:
    layer = nn.Module()
    layer.register_parameter("weight", nn.Parameter(tensor.detach().clone(), requires_grad=False))
    if how.method == "2:4":
        _prune.custom_from_mask(layer, "weight", two_of_four(tensor, axis))
    else:
        _prune.l1_unstructured(layer, "weight", how.amount)
    _prune.remove(layer, "weight")
    return layer.get_parameter("weight").detach()


def two_of_four(tensor: Tensor, axis: int) -> Tensor:
    """A mask: 1 for the 2 largest magnitudes in every 4 consecutive values along an axis, otherwise 0."""
    rows = tensor.detach().abs().movedim(axis, -1)
    groups = rows.reshape(-1, GROUP)
    mask = torch.zeros_like(groups).scatter_(1, groups.topk(KEPT, dim=1).indices, 1.0)
    return mask.reshape(rows.shape).movedim(-1, axis)


def _facts(pruned: Mapping[str, Tensor], left_out: Mapping[str, str]) -> PruneFacts:
    zeros = {name: int((tensor == 0).sum()) for name, tensor in pruned.items()}
    total = sum(tensor.numel() for tensor in pruned.values())
    return PruneFacts(
        weights=total,
        sparsity=round(sum(zeros.values()) / total, 4),
        layers={
            name: Pruned(weights=tensor.numel(), sparsity=round(zeros[name] / tensor.numel(), 4))
            for name, tensor in pruned.items()
        },
        left_out=dict(left_out),
    )


def _save(program: ExportedProgram, folder: Path) -> Path:
    path = folder / "pruned.pt2"
    torch.export.save(program, path)
    return path
