"""The archive of a TorchScript module, read before PyTorch loads it.

Loading isn't reading: PyTorch computes the defaults of arguments and the constants of classes, calls
``__setstate__``, takes it on trust that a record is as long as its storage claims to be, and that what
is pickled is of the type that its class declares. So it may only see archives in which defaults and
constants are literals, no class restores itself, and records and values are what they claim.
"""

from __future__ import annotations

import ast
import io
import pickle
import pickletools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch._C import PyTorchFileReader

#: In code, and in each of the pickles: larger ones are no module's.
MAX_BYTES = 64 << 20
_MAX_RECORDS = 200_000
_ZIP = b"PK\x03\x04"
_RECORD = re.compile(
    r"(?:data|constants|traced_inputs|bytecode|mobile_debug_handles)(?:\.pkl|/\d+)"
    r"|code/[\w./]+\.py(?:\.debug_pkl)?|extra/.*|version|byteorder"
    r"|\.format_version|\.storage_alignment|\.data/\w+",
    re.ASCII,
)
_PICKLES = ("constants", "data", "traced_inputs")
_TEXT = re.compile(r'(?<![\w"])"(?:[^"\\\n]|\\[^\n])*"(?!")', re.ASCII)
#: What is left of code without its texts: no comment, no other quote, nothing that joins lines.
_CODE = re.compile(r"[A-Za-z0-9_ \n()\[\]{}.,:=<>!+\-*/%@&|^~]*")
_OPCODES = frozenset(
    """
    PROTO STOP GLOBAL REDUCE BUILD NEWOBJ MARK BINPUT LONG_BINPUT BINGET LONG_BINGET BINPERSID
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
    BINUNICODE BININT BININT1 BININT2 LONG1 BINFLOAT NEWTRUE NEWFALSE NONE
    """.split()
)
_ITEM_BYTES = {
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ShortStorage": 2,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "IntStorage": 4,
    "FloatStorage": 4,
    "LongStorage": 8,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}
#: What may be called in a default: it makes a value of its literals.
_MAKERS = frozenset({"annotate", "torch.device"})


class RefusedArchive(ValueError):
    """The archive holds what could run, or isn't what it claims."""


class _Records(Protocol):
    def get_all_records(self) -> list[str]: ...
    def get_record(self, name: str) -> bytes: ...
    def get_record_size(self, name: str) -> int: ...


@dataclass(frozen=True, kw_only=True)
class _Class:
    """A class in the archive's code."""

    base: str  #: ``Module``, ``NamedTuple``, ``Enum``, ``Interface``; empty of a plain one
    attributes: dict[str, ast.expr]  #: name → type, without constants


def scan(path: Path) -> None:
    """Look at all of an archive that ``torch.jit.load`` reads; nothing in it is run.

    Raises:
        RefusedArchive
    """
    with path.open("rb") as file:
        if file.read(4) != _ZIP:
            raise RefusedArchive("it isn't an archive")
    try:
        reader: _Records = PyTorchFileReader(str(path))
        names = reader.get_all_records()
    except RuntimeError as err:
        raise RefusedArchive("its directory is damaged") from err
    _check_names(names)
    classes: dict[str, _Class] = {}
    for name in names:
        if name.startswith("code/") and name.endswith(".py"):
            classes |= _read_code(name, _record(reader, name))
    for which in _PICKLES:
        if f"{which}.pkl" in names:
            content = _record(reader, f"{which}.pkl")
            _Values(classes).check(_read_pickle(content, _Storages(reader, which, set(names))))


def _check_names(names: Sequence[str]) -> None:
    if len(names) > _MAX_RECORDS:
        raise RefusedArchive(f"it holds more than {_MAX_RECORDS} records")
    # PyTorch finds records whatever the case of their names.
    if len({name.lower() for name in names}) < len(names):
        raise RefusedArchive("it holds two records of one name")
    for name in names:
        if not _RECORD.fullmatch(name):
            raise RefusedArchive(f"it holds {name[:80]!r}, which TorchScript doesn't")
    if "data.pkl" not in names or not any(name.startswith("code/") for name in names):
        raise RefusedArchive("there is no TorchScript in it")


def _record(reader: _Records, name: str) -> bytes:
    if reader.get_record_size(name) > MAX_BYTES:
        raise RefusedArchive(f"{name} in it has more than {MAX_BYTES >> 20} MiB")
    try:
        return reader.get_record(name)
    except RuntimeError as err:
        raise RefusedArchive(f"{name} in it is damaged") from err


def _read_code(name: str, content: bytes) -> dict[str, _Class]:
    """The classes in a file of code, by their qualified names.

    Python's parser reads it, PyTorch's will: so it is refused unless both see the same words in it.
    """
    try:
        text = content.decode("ascii")
        if not _CODE.fullmatch(_TEXT.sub(" ", text)):
            raise RefusedArchive(f"{name} in it isn't written as torch.jit.save writes")
        tree = ast.parse(text)
    except (UnicodeError, SyntaxError, ValueError, RecursionError, MemoryError) as err:
        if isinstance(err, RefusedArchive):
            raise
        raise RefusedArchive(f"{name} in it can't be read as TorchScript") from err
    module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            _check_function(name, node)
        if isinstance(node, ast.ClassDef):
            found[f"{module}.{node.name}"] = _read_class(name, node)
    return found


def _check_function(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
    if isinstance(node, ast.Lambda | ast.AsyncFunctionDef) or node.decorator_list:
        raise RefusedArchive(f"{name} in it isn't written as torch.jit.save writes")
    if node.name == "__setstate__":
        raise RefusedArchive(f"{name} in it has code that runs when it is loaded: __setstate__")
    for default in [*node.args.defaults, *node.args.kw_defaults]:
        _check_literal(name, default)


def _read_class(name: str, node: ast.ClassDef) -> _Class:
    attributes: dict[str, ast.expr] = {}
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=attribute), annotation=kind, value=value):
                _check_literal(name, value)
                if not (isinstance(kind, ast.Subscript) and _dotted(kind.value) == "Final"):
                    attributes[attribute] = kind
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(), slice=ast.Constant(value=str(attribute)))],
                value=kind,
            ):
                _check_literal(name, kind)
                attributes[attribute] = kind  # whose name is no identifier: "0"
            case ast.Assign(targets=[ast.Name()], value=value):
                _check_literal(name, value)
            case ast.FunctionDef() | ast.Pass():
                pass
            case _:
                raise RefusedArchive(f"{name} in it isn't written as torch.jit.save writes")
    bases = [_dotted(base) for base in node.bases]
    return _Class(base=bases[0] if bases else "", attributes=attributes)


def _check_literal(name: str, node: ast.expr | None) -> None:
    """PyTorch computes these expressions as it loads: only what makes a value of literals is taken."""
    match node:
        case None | ast.Constant() | ast.Name():
            return
        case ast.Attribute() if _dotted(node):
            return
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant() | ast.Name()):
            return
        case ast.Tuple(elts=inner) | ast.List(elts=inner):
            parts: list[ast.expr | None] = [*inner]
        case ast.Dict(keys=keys, values=values):
            parts = [*keys, *values]
        case ast.Subscript(value=value, slice=index):  # a type
            parts = [value, index]
        case ast.Call(func=func, args=arguments, keywords=[]) if _dotted(func) in _MAKERS:
            parts = [*arguments]
        case _:
            raise RefusedArchive(
                f"{name} in it has code that runs when it is loaded: {ast.unparse(node)[:80]!r}"
            )
    for part in parts:
        _check_literal(name, part)


def _dotted(node: ast.expr) -> str:
    """``a.b.c`` of such an expression, else nothing."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name) if inner := _dotted(value):
            return f"{inner}.{name}"
    return ""


class _Object:
    """An instance of a class of the archive, or a value of an enumeration."""

    kind = ""

    def __init__(self, *_value: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Tensor:
    pass


@dataclass(frozen=True)
class _Storage:
    items: int


@dataclass(frozen=True)
class _Storages:
    """What a pickle's tensors may lie in."""

    reader: _Records
    folder: str
    names: set[str]

    def find(self, claim: Any) -> _Storage:
        match claim:
            case ("storage", str(kind), str(key), str(), int(items)) if items >= 0:
                size = _ITEM_BYTES.get(kind)
                record = f"{self.folder}/{key}"
                if size is None or record not in self.names:
                    raise RefusedArchive(f"a tensor in it lies in {record[:80]!r} as {kind[:40]}")
                there = self.reader.get_record_size(record)
                # Of a trace's inputs torch.jit.save writes the shapes alone, and no more is read.
                is_shape = self.folder == "traced_inputs" and there == 0
                if items * size > there and not is_shape:
                    raise RefusedArchive(f"{record} in it is shorter than its tensors claim")
                return _Storage(items)
        raise RefusedArchive("it names a storage in another way than torch.jit.save")


def _read_pickle(content: bytes, storages: _Storages) -> Any:
    """A pickle's values, with stand-ins for objects and tensors: nothing in it is imported or called."""
    try:
        for opcode, _, _ in pickletools.genops(content):
            if opcode.name not in _OPCODES:
                raise RefusedArchive(f"a pickle in it has the opcode {opcode.name}")
        return _Unpickler(content, storages).load()
    except RefusedArchive:
        raise
    except Exception as err:  # pickle raises of a damaged one whatever it stumbles on
        raise RefusedArchive("a pickle in it is damaged") from err


#: Python's unpickler in Python, whose opcodes can be given another meaning.
_IN_PYTHON: Any = pickle._Unpickler


class _Unpickler(_IN_PYTHON):  # type: ignore[misc]
    def __init__(self, content: bytes, storages: _Storages) -> None:
        super().__init__(io.BytesIO(content))
        self._storages = storages
        self._classes: dict[str, type[_Object]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _ITEM_BYTES:
            return name
        made = _MADE.get((module, name))
        if made is not None:
            return made
        full = f"{module}.{name}"
        if full.startswith("__torch__.") and not full.startswith("__torch__.torch.classes."):
            return self._classes.setdefault(full, type("_Named", (_Object,), {"kind": full}))
        raise RefusedArchive(f"a pickle in it names {full[:80]!r}")

    def persistent_load(self, pid: Any) -> _Storage:
        return self._storages.find(pid)

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._put(items[::2], items[1::2])

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key], [value])

    def _put(self, keys: Sequence[object], values: Sequence[object]) -> None:
        # To Python 1, 1.0 and True are one key, and to PyTorch three: none is to hide another's value.
        if not all(type(key) in (str, int) for key in keys):
            raise RefusedArchive("a pickle in it has keys that are neither texts nor integers")
        self.stack[-1].update(zip(keys, values, strict=True))

    dispatch: ClassVar[dict[int, Any]] = {
        **_IN_PYTHON.dispatch,
        pickle.SETITEMS[0]: _set_items,
        pickle.SETITEM[0]: _set_item,
    }


def _tensor(
    storage: Any, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], *_more: object
) -> _Tensor:
    numbers = [offset, *sizes, *strides]
    if not isinstance(storage, _Storage) or not all(
        type(number) is int and number >= 0 for number in numbers
    ):
        raise RefusedArchive("a tensor in it isn't written as torch.jit.save writes")
    last = offset + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    if prod(sizes) and last >= storage.items:
        raise RefusedArchive("a tensor in it reaches past its storage")
    return _Tensor()


def _as_list(values: list[Any]) -> list[Any]:
    return values


def _retagged(value: Any, kind: str) -> Any:
    if "__torch__" in kind:
        raise RefusedArchive("a pickle in it names a class as a text")
    return value


def _as_dict() -> dict[Any, Any]:
    return {}


def _as_device(name: str, *_index: int) -> str:
    return name


_MADE = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): _as_dict,
    ("torch", "device"): _as_device,
    ("builtins", "complex"): complex,
    ("torch.jit._pickle", "build_intlist"): _as_list,
    ("torch.jit._pickle", "build_doublelist"): _as_list,
    ("torch.jit._pickle", "build_boollist"): _as_list,
    ("torch.jit._pickle", "build_tensorlist"): _as_list,
    ("torch.jit._pickle", "restore_type_tag"): _retagged,
}


@dataclass(frozen=True)
class _Values:
    """Whether pickled values are of the types that the code says.

    PyTorch doesn't look, and reads an object's attributes and a tuple's elements by position.
    """

    classes: Mapping[str, _Class]
    _seen: set[int] = field(default_factory=set)
    _kept: list[object] = field(default_factory=list)  #: so that no id is used again

    def check(self, root: Any) -> None:
        waiting = [root]
        while waiting:
            value = waiting.pop()
            if isinstance(value, list | tuple | dict | _Object):
                if id(value) in self._seen:
                    continue
                self._seen.add(id(value))
                self._kept.append(value)
            waiting += self._inner(value)

    def _inner(self, value: Any) -> Iterator[Any]:
        if isinstance(value, list | tuple):
            yield from value
        elif isinstance(value, dict):
            yield from value.keys()
            yield from value.values()
        elif isinstance(value, _Object):
            kind = self.classes.get(value.kind)
            if kind is None:
                raise RefusedArchive(f"there is no {value.kind[:80]!r} in its code")
            if kind.base == "Enum":
                return
            if not isinstance(value.state, dict):
                raise RefusedArchive(f"a {value.kind[:80]} in it isn't pickled by its attributes")
            for name, declared in kind.attributes.items():
                if name in value.state and not self._is_of(value.state[name], declared):
                    raise RefusedArchive(
                        f"{name[:80]!r} of a {value.kind[:80]} in it is of another type than declared"
                    )
            yield from value.state.values()

    def _is_of(self, value: Any, kind: ast.expr) -> bool:
        """Of numbers, texts and tensors PyTorch looks itself."""
        match kind:
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                inner = index.elts if isinstance(index, ast.Tuple) else [index]
                return self._is_of_generic(value, name, inner)
            case ast.Name(id="Any"):
                return True
            case ast.Attribute():
                return self._is_of_class(value, _dotted(kind))
        return isinstance(kind, ast.Name | ast.Constant) and not isinstance(value, tuple | _Object)

    def _is_of_generic(self, value: Any, name: str, inner: Sequence[ast.expr]) -> bool:
        if name == "Tuple":
            return (
                isinstance(value, tuple)
                and len(value) == len(inner)
                and all(map(self._is_of, value, inner))
            )
        if name in ("Optional", "Union"):
            return value is None or any(self._is_of(value, one) for one in inner)
        if name == "List":
            return isinstance(value, list) and all(self._is_of(one, inner[0]) for one in value)
        if name == "Dict" and len(inner) == 2:
            return isinstance(value, dict) and all(
                self._is_of(one, inner[0]) and self._is_of(of, inner[1])
                for one, of in value.items()
            )
        return False

    def _is_of_class(self, value: Any, name: str) -> bool:
        kind = self.classes.get(name)
        if kind is None:
            return False
        if kind.base == "NamedTuple":
            return self._is_of_generic(value, "Tuple", list(kind.attributes.values()))
        if kind.base in ("Interface", "ModuleInterface"):
            return isinstance(value, _Object)
        return isinstance(value, _Object) and value.kind == name
