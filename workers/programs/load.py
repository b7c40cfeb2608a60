"""Loading a ``torch.export`` program without running anything that its author put into the file.

``torch.export.load`` isn't safe on files of strangers (torch 2.13): it unpickles custom objects and
tensor subclasses, falls back from ``weights_only=True`` to a full unpickle, loads native libraries
of AOTInductor, hands symbolic sizes to ``sympy.sympify``, which evaluates Python, and looks up
operators by ``getattr`` from ``torch``. So the archive is read here first, with torch's own reader,
and whatever isn't plain data is refused; and while it loads, every unpickler that could run code is
shut.
"""

from __future__ import annotations

import ast
import json
import keyword
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch._export.serde import serialize
from torch._export.utils import _get_shape_env_from_gm
from torch.export import ExportedProgram
from torch.export.pt2_archive import _package
from torch.utils import _pytree as pytree

from farm.errors import InvalidModel
from workers.programs import enumerations, operators

_EXPORT_AGAIN = (
    "save it again with torch.export.save(torch.export.export(model, args), 'model.pt2') "
    "from plain tensors and operators, or submit ONNX"
)

#: Keys of the program's JSON whose strings become Python identifiers when the graph is compiled.
_NAME_KEYS = frozenset(
    """
    name as_name parameter_name buffer_name tensor_constant_name user_input_name
    field_names fqn
    """.split()
)
_NAME_MAPPINGS = frozenset(
    """
    tensor_values sym_int_values sym_bool_values sym_float_values
    """.split()
)
_NAME = re.compile(r"[\w.\-]*")
_SYMBOL = re.compile(r"\w+|-?\d+(\.\d+)?(e[+-]?\d+)?")  # s0, 3, '0.5', True
_OPERATOR = re.compile(
    r"torch\.ops\.torchvision\.(nms|deform_conv2d)\.default"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled"
    r"|wrap_with_autocast)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge"
    r"|and_|or_|not_|iadd|isub|imul)"
    r"|math\.(ceil|floor|trunc|sqrt|pow|log|log2|exp)"
    r"|torch\.sym_(int|float|max|min|not|sqrt|ite|sum|fresh_size)"
    r"|torch\._sym_(sqrt|log2|floor|ceil)"
)
_ATEN = re.compile(r"torch\.ops\.((?:aten|prims)\.\w+\.\w+)", re.ASCII)
#: torch counts up to the number of such a symbol.
_UNBACKED = re.compile(r"z?u[fi]?\d{7,}")
#: Of one size, and of the file that describes a program.
_MAX_EXPRESSION = 4096
_MAX_JSON_BYTES = 256 << 20
#: sympy computes them at once: beyond these two powers of numbers fill the memory.
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_MAX_POWER = 64
_MAX_POWERS = 2
_SYMBOLIC_CALLS = frozenset(
    """
    Symbol Integer Float Rational Add Mul Pow Max Min Abs And Or Not Eq Ne Lt Le Gt Ge
    Mod Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan floor
    ceiling FloorDiv CleanDiv CeilDiv IntTrueDiv FloatTrueDiv ModularIndexing PythonMod
    Where TruncToInt TruncToFloat RoundToInt RoundDecimal FloorToInt CeilToInt ToFloat
    PowByNatural FloatPow LShift RShift BitwiseFn_bitwise_and BitwiseFn_bitwise_or
    Identity IsNonOverlapping OpaqueUnaryFn_sqrt OpaqueUnaryFn_log2 OpaqueUnaryFn_exp
    Half One Zero NegativeOne
    """.split()
)
_SYMBOLIC_NODES = (
    ast.Expression,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Call,
    ast.keyword,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)


def load_program(path: Path) -> ExportedProgram:
    """Load the ``torch.export`` program in ``path``; no code in the file is run.

    What it takes and gives in containers of its author's, as dataclasses, ``ModelOutput`` or caches, it
    takes and gives in dicts and tuples of the same fields.

    Raises:
        InvalidModel: if the file isn't a program, or holds more than plain data.
    """
    fields = scan_archive(path)
    try:
        with _no_code(fields), path.open("rb") as file:
            programs = _package.load_pt2(file).exported_programs
    except pickle.UnpicklingError as err:
        _refuse_pickle(str(err).splitlines()[0])
    except InvalidModel:
        raise
    except Exception as err:  # torch raises a dozen kinds on a malformed program
        raise InvalidModel(
            f"torch {torch.__version__} can't read this program: {_first_line(err)}",
            hint=_EXPORT_AGAIN,
        ) from err
    program = programs.get("model") or next(iter(programs.values()))
    # These would be compiled and executed by module(); they only repeat the shape ranges.
    program._guards_code = []
    try:
        enumerations.check_program(program)
    except enumerations.Unknown as err:
        raise InvalidModel(f"the farm doesn't run this program: {err}", hint=_EXPORT_AGAIN) from err
    _drop_ranges_of_expressions(program)
    return program


def _drop_ranges_of_expressions(program: ExportedProgram) -> None:
    """torch saves the range of 8*s0 beside that of s0, and then can't export what it has loaded."""
    environment = _get_shape_env_from_gm(program.graph_module)
    for ranges in (program._range_constraints, environment.var_to_range if environment else {}):
        for expression in [key for key in ranges if not key.is_Symbol]:
            del ranges[expression]


def scan_archive(path: Path) -> dict[str, list[str]]:
    """Refuse a ``.pt2`` that holds anything but plain weights and standard operators.

    Returns:
        The fields of the named tuples in it, by their names.

    Raises:
        InvalidModel: naming the entry that is refused.
    """
    reader = _open_archive(path)
    names = reader.get_file_names()
    # PyTorch finds records whatever the case of their names.
    if len({name.lower() for name in names}) < len(names):
        raise InvalidModel("the archive holds two records of one name", hint=_EXPORT_AGAIN)
    if "serialized_exported_program.json" in names or "archive_version" not in names:
        raise InvalidModel(
            "this isn't a torch.export program in the archive format of torch 2.8 or later",
            hint=_EXPORT_AGAIN,
        )
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise InvalidModel(f"it holds compiled native code ({name})", hint=_EXPORT_AGAIN)
        if name.endswith(".pt") and name.startswith(("data/weights/", "data/constants/")):
            _refuse_pickle(f"{name} is a legacy pickled state")
        if name.endswith("_config.json") and name.startswith(("data/weights/", "data/constants/")):
            _scan_payloads(_read_json(reader, name), name)
    programs = [name for name in names if name.startswith("models/")]
    if len(programs) != 1:
        raise InvalidModel(
            f"it contains {len(programs)} programs, but the farm takes exactly one",
            hint="save each program to a separate file",
        )
    program = _read_json(reader, programs[0])
    try:
        _scan_program(program)
    except RecursionError as err:
        raise InvalidModel("the program is nested too deep", hint=_EXPORT_AGAIN) from err
    return _named_tuples(program)


def _named_tuples(program: Mapping[str, Any]) -> dict[str, list[str]]:
    graph = program.get("graph_module")
    given = graph.get("treespec_namedtuple_fields") if isinstance(graph, dict) else None
    return {
        name: [str(field) for field in one["field_names"]]
        for name, one in (given or {}).items()
        if isinstance(one, dict) and isinstance(one.get("field_names"), list)
    }


#: Containers of Python's own, as torch writes their types down.
_CONTAINERS = {
    "builtins.tuple": "builtins.tuple",
    "builtins.list": "builtins.list",
    "builtins.dict": "builtins.dict",
    "collections.OrderedDict": "builtins.dict",
}


def plain_treespec(text: str, fields: Mapping[str, Sequence[str]]) -> str:
    """A serialised tree of containers, those of its author's own being dicts of their fields.

    What tells the fields is the context that torch has written beside the type: the class isn't looked
    up, and no code of it is run. Where none does, it becomes a tuple.
    """
    protocol, tree = json.loads(text)
    return json.dumps([protocol, _plain_node(tree, fields)])


def _plain_node(node: Mapping[str, Any], fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    kind, context = node["type"], node["context"]
    children = [_plain_node(child, fields) for child in node["children_spec"]]
    if kind is None:
        return {"type": None, "context": None, "children_spec": children}
    if kind in _CONTAINERS:
        return {"type": _CONTAINERS[kind], "context": context, "children_spec": children}
    named = fields.get(context) if isinstance(context, str) else None  # of a named tuple
    keys = list(named) if named is not None else _keys(_parsed(context), len(children))
    if keys is None or len(keys) != len(children):
        return {"type": "builtins.tuple", "context": "null", "children_spec": children}
    return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": children}


def _parsed(context: Any) -> Any:
    try:
        return json.loads(context)
    except (TypeError, ValueError):
        return None


def _keys(context: Any, count: int) -> list[str] | None:
    """The first list of so many different names in a context."""
    if not isinstance(context, list):
        return None
    if len(context) == count and count and all(isinstance(key, str) for key in context):
        return list(context) if len(set(context)) == count else None
    return next((keys for part in context if (keys := _keys(part, count))), None)


def _open_archive(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise InvalidModel("the file is empty", hint="upload the model again")
    try:
        return _package.PT2ArchiveReader(str(path))
    except Exception as err:  # RuntimeError from the zip reader, or an assertion of the wrapper
        raise InvalidModel(
            f"the file isn't a torch.export archive: {_first_line(err)}",
            hint=f"check that the upload is complete, and {_EXPORT_AGAIN}",
        ) from err


def _read_json(reader: Any, name: str) -> Mapping[str, Any]:
    try:
        if reader.archive_file.get_record_size(name) > _MAX_JSON_BYTES:
            raise ValueError("too large")
        content = json.loads(reader.read_string(name))
    except (RuntimeError, ValueError, RecursionError, MemoryError) as err:
        raise InvalidModel(f"{name} in the archive is damaged", hint=_EXPORT_AGAIN) from err
    if not isinstance(content, dict):
        raise InvalidModel(f"{name} in the archive isn't a JSON object", hint=_EXPORT_AGAIN)
    return content


def _scan_payloads(config: Mapping[str, Any], where: str) -> None:
    payloads = config.get("config")
    if not isinstance(payloads, dict):
        raise InvalidModel(f"{where} in the archive is damaged", hint=_EXPORT_AGAIN)
    for name, payload in payloads.items():
        _check_name(name)
        # Tensors of the archive format are raw bytes; everything else in it is a pickle.
        if not isinstance(payload, dict) or not isinstance(payload.get("tensor_meta"), dict):
            _refuse_pickle(f"{name} in {where} has no description")
        path = str(payload.get("path_name", ""))
        if payload.get("use_pickle") is not False or not path.startswith(("weight_", "tensor_")):
            _refuse_pickle(f"{name} in {where} is a pickled object")
        device = (payload["tensor_meta"].get("device") or {}).get("type", "cpu")
        if device != "cpu":
            raise InvalidModel(
                f"its weights are on the device {device!r}",
                hint="export it on the CPU: torch.export.export(model.cpu(), args)",
            )
        if not _NAME.fullmatch(path):
            raise InvalidModel(f"{where} names a file outside itself", hint=_EXPORT_AGAIN)


def _scan_program(value: Any, key: str = "") -> None:
    """Check every string of the program's JSON that torch would turn into code."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in ("metadata", "guards_code"):
                continue  # looked up, never called; and dropped after loading
            if key in _NAME_MAPPINGS:
                _check_name(name)
            if key == "range_constraints":
                _check_expression(name)  # s0, and 8*s0 for an axis of multiples of 8
            _scan_program(item, name)
    elif isinstance(value, list):
        for item in value:
            _scan_program(item, key)
    elif isinstance(value, str):
        _scan_string(value, key)


def _scan_string(value: str, key: str) -> None:
    if key == "expr_str":
        _check_expression(value)
    elif key in ("target", "as_operator"):
        _check_operator(value)
    elif key in _NAME_KEYS:
        _check_name(value)
    elif key == "forward_arg_names":
        _check_argument(value)
    elif key in ("class_fqn", "custom_obj_name"):
        _refuse_pickle(f"it needs the custom object {value!r}")
    elif key in ("in_spec", "out_spec") and "__enum__" in value:
        raise InvalidModel("its inputs hold Python enums", hint=_EXPORT_AGAIN)
    elif key == "in_spec":
        _check_keywords(value)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidModel(
            f"{name[:80]!r} isn't a name that a program may use",
            hint="name modules and inputs with letters, digits and underscores",
        )


def _check_argument(name: str) -> None:
    """Arguments' names stand in the function that the graph is compiled to."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidModel(
            f"{name[:80]!r} isn't a name that an input may have",
            hint="name inputs with letters, digits and underscores",
        )


def _check_keywords(text: str) -> None:
    """The names of keyword arguments: the second of a call's two containers is a dict of them."""
    try:
        _, tree = json.loads(text)
        children = tree["children_spec"]
        is_call = tree["type"] == "builtins.tuple" and len(children) == 2
        named = is_call and children[1]["type"] in ("builtins.dict", "collections.OrderedDict")
        names = json.loads(children[1]["context"]) if named else []
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise InvalidModel(
            "the program's inputs are described wrongly", hint=_EXPORT_AGAIN
        ) from err
    for name in names:
        _check_argument(str(name))


def _check_operator(target: str) -> None:
    aten = _ATEN.fullmatch(target)
    if not (operators.may_call(aten[1]) if aten else _OPERATOR.fullmatch(target)):
        raise InvalidModel(
            f"the farm doesn't run the operator {target[:80]!r}: it accepts only those on tensors "
            "with all indices checked",
            hint="rewrite it with standard PyTorch operators, or submit ONNX",
        )


def _check_expression(text: str) -> None:
    """Only arithmetic on symbols may reach sympy, which evaluates what it parses."""
    if len(text) > _MAX_EXPRESSION or _UNBACKED.search(text):
        _refuse_expression(text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _refuse_expression(text)
    powers = 0
    for node in ast.walk(tree):
        if not isinstance(node, _SYMBOLIC_NODES):
            _refuse_expression(text)
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in _SYMBOLIC_CALLS
        ):
            _refuse_expression(text)
        if isinstance(node, ast.Constant) and not _is_symbol(node.value):
            _refuse_expression(text)
        if (exponent := _exponent(node)) is not None:
            powers += 1
            if powers > _MAX_POWERS or not _is_small(exponent):
                _refuse_expression(text)


def _is_symbol(value: object) -> bool:
    return bool(_SYMBOL.fullmatch(str(value))) and not (
        isinstance(value, int) and abs(value) >= 1 << 64
    )


def _exponent(node: ast.AST) -> ast.expr | None:
    """What a power raises to, and a shift shifts by."""
    match node:
        case ast.BinOp(op=ast.Pow() | ast.LShift(), right=exponent):
            return exponent
        case ast.Call(func=ast.Name(id=name), args=[_, exponent]) if name in _POWERS:
            return exponent
        case ast.Call(func=ast.Name(id=name)) as call if name in _POWERS:
            return call  # by keywords, as nothing writes it
    return None


def _is_small(exponent: ast.expr) -> bool:
    """Whether it is a small number; ``Integer(2)`` and ``Rational(1, 2)`` too."""
    numbers = [node.value for node in ast.walk(exponent) if isinstance(node, ast.Constant)]
    plain = all(isinstance(one, int | float) and abs(one) <= _MAX_POWER for one in numbers)
    calls = (node for node in ast.walk(exponent) if isinstance(node, ast.Call))
    names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    is_flat = not any(isinstance(node, ast.BinOp) for node in ast.walk(exponent))
    return plain and bool(numbers) and names <= {"Integer", "Float", "Rational"} and is_flat


def _refuse_expression(text: str) -> NoReturn:
    raise InvalidModel(
        f"{text[:80]!r} isn't a symbolic size",
        hint="export again with torch.export.Dim for the dynamic axes",
    )


def _refuse_pickle(fact: str) -> NoReturn:
    raise InvalidModel(
        f"the program contains a pickle, which the farm never runs: {fact}", hint=_EXPORT_AGAIN
    )


def _first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0][:300] if lines else type(err).__name__


@contextmanager
def _no_code(fields: Mapping[str, Sequence[str]] | None = None) -> Iterator[None]:
    """Shut what could execute code in an archive, should the scan have missed it.

    Types of containers are never looked up: ``plain_treespec`` stands in for torch's reader of them.

    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` overrides the ``weights_only=False`` at torch's call sites.
    """

    def refuse(*_: object, **__: object) -> NoReturn:
        _refuse_pickle("a custom object")

    def loads(text: str) -> Any:
        return pytree.treespec_loads(plain_treespec(text, fields or {}))

    def artifact(serialized: Any) -> Any:
        # What comes in bytes are the example inputs, a pickle of whatever the program was exported with.
        return serialized if isinstance(serialized, dict | tuple) else None

    native = torch._C._pickle_load_obj
    unpickle = serialize.deserialize_torch_artifact
    aoti = _package._load_aoti
    forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    allowed = os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch._C._pickle_load_obj = refuse
    _package._load_aoti = refuse
    vars(serialize)["treespec_loads"] = loads
    vars(serialize)["deserialize_torch_artifact"] = artifact
    vars(_package)["pickle"] = SimpleNamespace(loads=refuse)
    try:
        yield
    finally:
        torch._C._pickle_load_obj = native
        _package._load_aoti = aoti
        vars(serialize)["treespec_loads"] = pytree.treespec_loads
        vars(serialize)["deserialize_torch_artifact"] = unpickle
        vars(_package)["pickle"] = pickle
        os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        if forced is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced
        if allowed is not None:
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = allowed
