"""Rewrites a program for a compiler: in another floating-point type, and under the farm's own names.

Compilers write a program's names and texts into the code they generate, so a hostile program could write
code of its own. Here operators, numbers and tensors pass, and nothing else that an author chose.

The type is lowered as ``module.half()`` would: weights, inputs and products in that type, with what the
author computes in another type on purpose left there; but values that have left the type's range on data
stay in fp32, and operators without kernels for it compute in fp32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Self

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from farm.errors import EngineBuildFailed
from workers.programs import masks
from workers.programs.eager import called, specs
from workers.programs.guard import checked
from workers.programs.written import written

aten = torch.ops.aten

#: Operators whose floating-point arguments must have one type.
_OF_ONE_TYPE = frozenset(
    """
    linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
    matmul mm bmm addmm baddbmm addbmm addmv mv dot einsum bilinear
    scaled_dot_product_attention layer_norm native_layer_norm rms_norm batch_norm
    _native_batch_norm_legit_no_training group_norm native_group_norm instance_norm prelu
    lstm lstm_cell gru gru_cell rnn_tanh rnn_relu rnn_tanh_cell rnn_relu_cell
    grid_sampler grid_sampler_2d grid_sampler_3d index_put index_put_ scatter scatter_ scatter_add
    scatter_add_ scatter_reduce scatter_reduce_ index_add index_add_ index_copy index_copy_
    masked_scatter masked_scatter_ embedding_bag lerp lerp_ inner index_reduce
    index_reduce_ put put_ meshgrid cartesian_prod cross_entropy_loss addr addr_
    tensordot vdot chain_matmul isclose allclose deform_conv2d cross linalg_cross heaviside
    binary_cross_entropy nll_loss nll_loss2d nll_loss_nd nll_loss_forward
    """.split()
)
#: Operators whose kernels take fp32 at least, by name or prefix.
_WIDE = re.compile(
    r"_?(fft_|linalg_|cholesky|qr|svd|lu_|triangular_solve|inverse|pinverse|det|logdet|slogdet)\w*"
    r"|_?(cdist|pdist|stft|istft|multinomial|lgamma|digamma|polygamma|igammac?|logcumsumexp)\w*"
    r"|complex|polar|view_as_complex|(nan)?quantile|matrix_exp|multi_margin_loss|rrelu|avg_pool3d"
    r"|special_(erfcx|log_ndtr|ndtri)|_upsample_\w+_aa|soft_margin_loss|nms"
)
_IMAGE_CONVOLUTIONS = (aten.conv2d, aten.conv_transpose2d, aten.convolution)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Texts among operators' arguments: modes, equations, reductions.
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_,.> \-]{0,200}|(cpu|cuda)(:\d+)?")
#: Operators that only check, by the prefix of their names. Their texts are for people.
_CHECKS = ("_assert_", "sym_constrain_range")
#: Regions that a program may hold, which are traced through: operator → position of its graph.
_REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}


class Lowered(torch.nn.Module):
    """A program as a module.

    It takes the program's inputs positionally, and returns a tuple of its outputs, in the program's own
    types. It writes to neither its inputs nor its weights, even where the program does: each call begins
    with what was saved.

    Parameters:
        dtype: the type it computes in; the program's own types by default.
        wide: nodes whose values leave that type's range, by name; weights among them.
    """

    def __init__(
        self,
        program: ExportedProgram,
        dtype: torch.dtype | None = None,
        *,
        wide: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.wide = frozenset(wide)
        self.is_channels_last = False
        self.output_types = [getattr(torch, spec.dtype) for spec in specs(program)[1]]
        self.operators = called(program)
        #: Each graph's attributes: of a tensor its name here, of a region its graph.
        self._tensors: dict[str, str] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._regions: dict[str, fx.GraphModule] = {}
        self._graph = (self._taken(program.module(check_guards=False), ""),)
        self._names = {}
        self._written = frozenset(written(self.graph))
        self._open = frozenset(masks.open_attentions(self.graph, self.read, self._written))

    def _taken(self, module: torch.nn.Module, prefix: str) -> fx.GraphModule:
        """A copy of a graph without what its author wrote beside the operators, its tensors taken."""
        graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in module.graph.nodes:  # type: ignore[union-attr]
            copied[node] = graph.node_copy(node, copied.__getitem__)
            copied[node].meta = {}
            if node.op == "get_attr" and prefix + node.target not in self._tensors:
                found = attrgetter(node.target)(module)
                self._take(
                    found, prefix + node.target, None if node.name in self.wide else self.dtype
                )
        return fx.GraphModule(module, graph)

    def _take(self, found: Any, target: str, dtype: torch.dtype | None) -> None:
        if isinstance(found, fx.GraphModule):
            self._regions[target] = self._taken(found, f"{target}.")
            return
        # Tied weights are one tensor under several names.
        same = found.data_ptr(), found.dtype, found.shape, found.stride()
        name = self._tensors[target] = self._names.setdefault(same, f"w{len(self._tensors)}")
        if name in self._buffers:
            return
        tensor = found.detach()
        if dtype is not None and tensor.dtype in _FLOATS:
            tensor = tensor.to(dtype)
        self.register_buffer(name, tensor)

    @property
    def graph(self) -> fx.Graph:
        """The program's graph; the names of its nodes are those in ``wide``."""
        return self._graph[0].graph

    def read(self, target: str) -> Any:
        """The tensor, or the region, that a graph reads as this attribute."""
        region = self._regions.get(target)
        return self.get_buffer(self._tensors[target]) if region is None else region

    def shape(self, target: str) -> torch.Size | None:
        """The shape of the tensor that a graph reads as this attribute; None of a region."""
        name = self._tensors.get(target)
        return None if name is None else self.get_buffer(name).shape

    def drop(self, targets: Collection[str]) -> None:
        """Forget tensors that are read no more."""
        gone = {self._tensors.pop(target) for target in targets}
        for name in gone - set(self._tensors.values()):
            del self._buffers[name]
        for target in targets:
            self._regions[target] = fx.GraphModule({}, fx.Graph())

    def run_node(self, interpreter: Interpreter, node: fx.Node) -> Any:
        """Compute one node; subclasses compute some otherwise."""
        return interpreter.plain(node)

    @property
    def has_images(self) -> bool:
        """Whether it convolves images, so that it matters where channels are laid out."""
        packets = (getattr(node.target, "overloadpacket", None) for node in self.graph.nodes)
        return any(packet in _IMAGE_CONVOLUTIONS for packet in packets)

    def channels_last(self, wanted: bool = True) -> Self:
        """Lay images and the weights of their convolutions out with channels last, or first again."""
        self.is_channels_last = wanted
        layout = torch.channels_last if wanted else torch.contiguous_format
        for tensor in self.buffers():
            if tensor.dim() == 4:
                tensor.data = tensor.contiguous(memory_format=layout)
        return self

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs.

        Raises:
            EngineBuildFailed: the program branches on its data, or an operator is given a strange text.
        """
        if self.is_channels_last:
            inputs = tuple(map(_channels_last, inputs))
        made = Interpreter(self, self._graph[0]).run(*inputs)
        tensors = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        return tuple(
            tensor.to(dtype) if tensor.dtype in _FLOATS else tensor
            for tensor, dtype in zip(tensors, self.output_types, strict=True)
        )


def lowered(
    program: ExportedProgram, dtype: torch.dtype | None = None, *, wide: Collection[str] = ()
) -> Lowered:
    """The program as a module that computes in a type; see ``Lowered``."""
    return Lowered(program, dtype, wide=wide).eval()


Seen = Callable[[fx.Node, Any], None]
"""What is told each node and its value."""


class Interpreter(fx.Interpreter):
    """Runs a graph of a lowered program, for real or while it is traced."""

    def __init__(
        self, owner: Lowered, module: fx.GraphModule, prefix: str = "", seen: Seen | None = None
    ) -> None:
        super().__init__(module)
        self.owner = owner
        self.prefix = prefix  #: of a region's attributes; empty for the program's own graph
        self._seen = seen

    def run_node(self, n: fx.Node) -> Any:
        value = self.owner.run_node(self, n)
        if n in self.owner._written and isinstance(value, torch.Tensor):
            value = value.clone()
        if self._seen is not None:
            self._seen(n, value)
        return value

    def plain(self, node: fx.Node) -> Any:
        """Compute the node as it is, in the type that this is to compute in."""
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        to = self._type(node)
        if node.target is masks.ATTENTION:
            is_open = node in self.owner._open
            take = (lambda _: None) if is_open else partial(masks.for_kernels, dtype=to)
            args, kwargs = masks.with_mask(args, kwargs, take)
        if to is not None:
            args, kwargs = pytree.tree_map(lambda one: _in_type(one, to), (args, kwargs))
        return self.call_function(node.target, args, kwargs)

    def _type(self, node: fx.Node) -> torch.dtype | None:
        """The type for the node's floating-point arguments, or None if each keeps its own."""
        owner = self.owner
        if owner.dtype is None:
            return None
        name = node.target._opname  # type: ignore[union-attr]
        values = (node, *masks.weighed(node))
        if _WIDE.fullmatch(name) or any(one.name in owner.wide for one in values):
            return torch.float32
        return owner.dtype if name in _OF_ONE_TYPE else None

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        given = super().placeholder(target, args, kwargs)
        dtype = self.owner.dtype
        return given if dtype is None or self.prefix else _in_type(given, dtype)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        del args, kwargs
        return self.owner.read(self.prefix + target)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(target, HigherOrderOperator):
            return self._region(target, args)
        if target is aten._assert_tensor_metadata.default:
            return None  # of the types that the author's program had
        if target is aten.view.default:
            target = aten.reshape.default  # other kernels give other strides
        if isinstance(target, OpOverload) and target._opname.startswith(_CHECKS):
            args, kwargs = pytree.tree_map(_without_text, (args, kwargs))
        for one in pytree.tree_leaves((args, kwargs)):
            if isinstance(one, str) and not _PLAIN_TEXT.fullmatch(one):
                raise EngineBuildFailed(f"the program gives {target} the text {one[:80]!r}")
        return super().call_function(target, args, kwargs)

    def _region(self, target: HigherOrderOperator, args: Sequence[Any]) -> Any:
        position = _REGIONS.get(target._name)
        if position is None:
            raise EngineBuildFailed(
                f"the program branches or loops on its data ({target._name}), which the farm doesn't "
                "compile",
                hint="use onnxruntime or tensorrt, or replace the branch with torch.where",
            )
        region: fx.GraphModule = args[position]
        prefix = next(f"{key}." for key, one in self.owner._regions.items() if one is region)
        inner = Interpreter(self.owner, region, prefix, self._seen)
        return inner.run(*args[position + 1 :])


@dataclass(frozen=True, kw_only=True)
class Values:
    """What a node's floating-point value was over batches of inputs."""

    largest: float  #: magnitude: infinite if any isn't finite, and 0 of no numbers
    fewest: int  #: numbers in it


def observed(module: Lowered, batches: Iterable[Sequence[torch.Tensor]]) -> Mapping[str, Values]:
    """Run batches of inputs once; return what each node's value was. On a CPU, kernels check their arguments.

    Parameters:
        module: with the program's own types.
    """
    largest: dict[str, torch.Tensor] = {}
    fewest: dict[str, int] = {}

    def seen(node: fx.Node, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.dtype in _FLOATS:
            found = _magnitude(value)
            largest[node.name] = torch.maximum(largest.get(node.name, found), found)
            fewest[node.name] = min(fewest.get(node.name, value.numel()), value.numel())

    for inputs in batches:
        on_cpu = all(one.device.type == "cpu" for one in (*inputs, *module.buffers()))
        with torch.inference_mode(), checked(module.operators) if on_cpu else nullcontext():
            Interpreter(module, module._graph[0], seen=seen).run(*inputs)
    return {
        name: Values(largest=float(value), fewest=fewest[name]) for name, value in largest.items()
    }


def _magnitude(value: torch.Tensor) -> torch.Tensor:
    if not value.numel():
        return value.new_zeros((), dtype=torch.float64)
    found = value.detach().abs().amax().double()
    return torch.nan_to_num(found, nan=torch.inf, posinf=torch.inf)


def _without_text(value: Any) -> Any:
    return "a check of the program failed" if isinstance(value, str) else value


def _channels_last(given: torch.Tensor) -> torch.Tensor:
    return given.contiguous(memory_format=torch.channels_last) if given.dim() == 4 else given


def _in_type(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.dtype in _FLOATS
    return value.to(dtype) if is_float else value
