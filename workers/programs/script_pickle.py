"""Reads the pickles in a TorchScript archive without importing or calling anything."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from workers.programs.script_records import Records, RefusedArchive

OPCODES = frozenset(
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


class Instance:
    """An instance of one of the archive's classes, or a value of an enumeration."""

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
class Storages:
    """The storages that a pickle's tensors may use."""

    reader: Records
    folder: str
    names: set[str]

    def find(self, claim: Any) -> _Storage:
        match claim:
            case ("storage", str(kind), str(key), str(), int(items)) if items >= 0:
                size = _ITEM_BYTES.get(kind)
                place = f"{self.folder}/{key}"
                if size is None or place not in self.names:
                    raise RefusedArchive(f"a tensor in it lies in {place[:80]!r} as {kind[:40]}")
                there = self.reader.get_record_size(place)
                # torch.jit.save writes only the shapes of a trace's inputs, and no more is read.
                is_shape = self.folder == "traced_inputs" and there == 0
                if items * size > there and not is_shape:
                    raise RefusedArchive(f"{place} in it is shorter than its tensors claim")
                return _Storage(items)
        raise RefusedArchive("it names a storage in another way than torch.jit.save")


def read_pickle(content: bytes, storages: Storages) -> Any:
    """Return a pickle's values, with stand-ins for objects and tensors; nothing is imported or called."""
    try:
        for opcode, _, _ in pickletools.genops(content):
            if opcode.name not in OPCODES:
                raise RefusedArchive(f"a pickle in it has the opcode {opcode.name}")
        return _Unpickler(content, storages).load()
    except RefusedArchive:
        raise
    except Exception as err:  # pickle may raise anything on a damaged one
        raise RefusedArchive("a pickle in it is damaged") from err


#: The unpickler written in Python: its opcodes can be overridden.
_IN_PYTHON: Any = pickle._Unpickler


class _Unpickler(_IN_PYTHON):  # type: ignore[misc]
    def __init__(self, content: bytes, storages: Storages) -> None:
        super().__init__(io.BytesIO(content))
        self._storages = storages
        self._classes: dict[str, type[Instance]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _ITEM_BYTES:
            return name
        made = _MADE.get((module, name))
        if made is not None:
            return made
        full = f"{module}.{name}"
        if full.startswith("__torch__.") and not full.startswith("__torch__.torch.classes."):
            return self._classes.setdefault(full, type("_Named", (Instance,), {"kind": full}))
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
        # 1, 1.0 and True are one key to Python and three to PyTorch: one could hide another's value.
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
