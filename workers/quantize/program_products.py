"""Quantises a program's products to fp8 (E4M3) or int8, with ranges from calibration data.

Weights are stored in eight bits. Activations are divided by a scale that calibration fixed, which a compiler
fuses into what makes them, and multiplied by PyTorch's own kernels: ``torch._scaled_mm``, ``torch._int_mm``.
Those take matrices: linear layers, products with constant matrices, and convolutions of one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx
from torch.export import ExportedProgram

from workers.programs.lowered import Interpreter, Lowered, Values

aten = torch.ops.aten

#: The sizes that the kernels multiply are multiples of this. Source: ``_scaled_mm``, ``_int_mm``.
_MULTIPLE = 16
#: ``_int_mm`` takes more rows than this on a GPU.
_FEW_ROWS = 16
_LARGEST = {"fp8": 448.0, "int8": 127.0}

Kind = Literal["fp8", "int8"]


@dataclass(frozen=True, kw_only=True)
class _Product:
    given: fx.Node
    weight: str  #: the attribute that holds it
    bias: fx.Node | None
    columns: bool = False  #: whether the weight is [inputs, outputs] rather than [outputs, inputs]
    stride: tuple[int, int] | None = None  #: of a convolution


@dataclass(frozen=True, kw_only=True)
class _Quantised:
    product: _Product
    number: int  #: of its buffers
    scale: float  #: of its activations


class EightBit(Lowered):
    """A program whose products multiply in eight bits where kernels and calibration allow it.

    Parameters:
        dtype: the type of the rest.
        found: what the program's values were on calibration data, by ``observed``.
        wide: as of ``Lowered``.
    """

    def __init__(
        self,
        program: ExportedProgram,
        dtype: torch.dtype,
        kind: Kind,
        found: Mapping[str, Values],
        *,
        wide: Collection[str] = (),
    ) -> None:
        super().__init__(program, dtype, wide=wide)
        self.kind = kind
        self.left_out: dict[str, str] = {}  #: product → why it isn't quantised
        self._quantised: dict[str, _Quantised] = {}
        for name, product in _products(self).items():
            given = found.get(product.given.name)
            if given is None:
                self.left_out[name] = "no data reach it"
            elif why := self._refusal(name, product, given):
                self.left_out[name] = why
            else:
                self._quantised[name] = self._kept(product, given.largest)
        self._drop_unused()

    @property
    def quantised(self) -> Collection[str]:
        """The products that multiply in eight bits."""
        return self._quantised.keys()

    def _refusal(self, name: str, product: _Product, given: Values) -> str | None:
        outputs, inputs = self._matrix(product).shape
        if not 0 < given.largest < float("inf"):
            return "its activations are zero or not finite on the calibration data"
        if name in self.wide or product.given.name in self.wide:
            return "its values leave the range of fp16"
        if outputs % _MULTIPLE or inputs % _MULTIPLE or not outputs * inputs:
            return f"{inputs} × {outputs} aren't multiples of {_MULTIPLE}"
        if not self.read(product.weight).is_floating_point():
            return "its weights are integers"
        rows = given.fewest // inputs
        if self.kind == "int8" and rows <= _FEW_ROWS:
            return f"it has only {rows} rows"
        return None

    def _matrix(self, product: _Product) -> torch.Tensor:
        """The weight as [outputs, inputs]."""
        weight: torch.Tensor = self.read(product.weight)
        weight = weight.flatten(1) if product.stride else weight
        return weight.t() if product.columns else weight

    def _kept(self, product: _Product, largest: float) -> _Quantised:
        """Keep the product's weight in eight bits."""
        most, number = _LARGEST[self.kind], len(self._quantised)
        matrix = self._matrix(product).float()
        if self.kind == "fp8":
            scale = matrix.abs().amax().clamp(min=1e-12) / most
            levels = (matrix / scale).clamp(-most, most).to(torch.float8_e4m3fn)
        else:
            scale = matrix.abs().amax(1).clamp(min=1e-12) / most
            levels = (matrix / scale[:, None]).round().clamp(-most, most).to(torch.int8)
        self.register_buffer(f"q{number}", levels.contiguous())
        self.register_buffer(f"q{number}_scale", scale.contiguous())
        self.register_buffer(f"q{number}_given", torch.tensor(largest / most))
        return _Quantised(product=product, number=number, scale=largest / most)

    def _drop_unused(self) -> None:
        """Drop weights that only quantised products took."""
        users: dict[str, set[str]] = {one.product.weight: set() for one in self._quantised.values()}
        for node in self.graph.find_nodes(op="get_attr"):
            if node.target in users:
                users[node.target].update(user.name for user in node.users)
        self.drop([one for one, names in users.items() if names <= self._quantised.keys()])

    def run_node(self, interpreter: Interpreter, node: fx.Node) -> Any:
        kept = self._quantised.get(node.name)
        if kept is None or interpreter.prefix:
            return interpreter.plain(node)
        product = kept.product
        given = interpreter.env[product.given]
        bias = None if product.bias is None else interpreter.env[product.bias]
        if product.stride is None:
            return self._multiplied(kept, given, bias)
        down, across = product.stride
        rows = given[..., ::down, ::across].movedim(-3, -1)  # an image, or a batch of them
        return self._multiplied(kept, rows, bias).movedim(-1, -3)

    def _multiplied(
        self, kept: _Quantised, given: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The product of [..., inputs], as [..., outputs]."""
        number, most = kept.number, _LARGEST[self.kind]
        levels = self.get_buffer(f"q{number}")
        scale = self.get_buffer(f"q{number}_scale")
        flat = given.reshape(-1, given.shape[-1]).float() * (1.0 / kept.scale)
        assert self.dtype is not None
        if self.kind == "fp8":
            # One image with channels first is a matrix of columns, which the kernel refuses.
            made = torch._scaled_mm(
                flat.clamp(-most, most).to(torch.float8_e4m3fn).contiguous(),
                levels.t(),
                scale_a=self.get_buffer(f"q{number}_given"),
                scale_b=scale,
                bias=None if bias is None else bias.to(self.dtype),
                out_dtype=self.dtype,
                use_fast_accum=True,
            )
        else:
            whole = torch._int_mm(flat.round().clamp(-most, most).to(torch.int8), levels.t())
            made = whole.float() * (scale * kept.scale)
            made = made if bias is None else made + bias.float()
        return made.to(self.dtype).reshape(*given.shape[:-1], levels.shape[0])


def _products(module: Lowered) -> dict[str, _Product]:
    """The products by a constant matrix, by name."""
    found = {}
    for node in module.graph.nodes:
        read = _READERS.get(getattr(node.target, "overloadpacket", None))
        product = read(node) if read else None
        shape = None if product is None else module.shape(product.weight)
        if product is not None and shape is not None and _is_matrix(product, shape):
            found[node.name] = product
    return found


def _is_matrix(product: _Product, shape: torch.Size) -> bool:
    if product.stride:
        return len(shape) == 4 and shape[2:] == (1, 1)
    return len(shape) == 2


def _linear(node: fx.Node) -> _Product | None:
    given, weight, *bias = node.args
    return _product(given, weight, bias[0] if bias else node.kwargs.get("bias"))


def _matmul(node: fx.Node) -> _Product | None:
    given, weight = node.args
    return _product(given, weight, None, columns=True)


def _addmm(node: fx.Node) -> _Product | None:
    if node.kwargs:  # beta, alpha
        return None
    bias, given, weight = node.args
    return _product(given, weight, bias, columns=True)


def _convolution(node: fx.Node) -> _Product | None:
    args: Any = node.args
    defaults: tuple[Any, ...] = (None, (1, 1), (0, 0), (1, 1), 1)
    given, weight, *more = args
    bias, stride, padding, _, groups = tuple(more) + defaults[len(more) :]
    if node.kwargs or groups != 1 or tuple(padding) != (0, 0):
        return None
    down, across = tuple(stride) * (2 if len(stride) == 1 else 1)
    return _product(given, weight, bias, stride=(down, across))


def _product(given: Any, weight: Any, bias: Any, **more: Any) -> _Product | None:
    nodes = isinstance(given, fx.Node) and isinstance(weight, fx.Node)
    if not nodes or weight.op != "get_attr" or not (bias is None or isinstance(bias, fx.Node)):
        return None
    return _Product(given=given, weight=weight.target, bias=bias, **more)


_READERS: Mapping[Any, Callable[[fx.Node], _Product | None]] = {
    aten.linear: _linear,
    aten.matmul: _matmul,
    aten.mm: _matmul,
    aten.addmm: _addmm,
    aten.conv2d: _convolution,
}
