"""Scans the archive of a ``torch.export`` program before PyTorch loads it."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch.export.pt2_archive import _package

from farm.errors import InvalidModel
from workers.programs import operators
from workers.programs.expressions import check_expression

EXPORT_AGAIN = (
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

_MAX_JSON_BYTES = 256 << 20


def scan_archive(path: Path) -> dict[str, list[str]]:
    """Refuse a ``.pt2`` that holds anything but plain weights and standard operators.

    Returns:
        The fields of its named tuples: type name → field names.

    Raises:
        InvalidModel: names the refused entry.
    """
    reader = _open_archive(path)
    names = reader.get_file_names()
    # PyTorch matches record names case-insensitively.
    if len({name.lower() for name in names}) < len(names):
        raise InvalidModel("the archive holds two records of one name", hint=EXPORT_AGAIN)
    if "serialized_exported_program.json" in names or "archive_version" not in names:
        raise InvalidModel(
            "this isn't a torch.export program in the archive format of torch 2.8 or later",
            hint=EXPORT_AGAIN,
        )
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise InvalidModel(f"it holds compiled native code ({name})", hint=EXPORT_AGAIN)
        if name.endswith(".pt") and name.startswith(("data/weights/", "data/constants/")):
            refuse_pickle(f"{name} is a legacy pickled state")
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
        raise InvalidModel("the program is nested too deep", hint=EXPORT_AGAIN) from err
    return _named_tuples(program)


def _named_tuples(program: Mapping[str, Any]) -> dict[str, list[str]]:
    graph = program.get("graph_module")
    given = graph.get("treespec_namedtuple_fields") if isinstance(graph, dict) else None
    return {
        name: [str(field) for field in one["field_names"]]
        for name, one in (given or {}).items()
        if isinstance(one, dict) and isinstance(one.get("field_names"), list)
    }


def _open_archive(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise InvalidModel("the file is empty", hint="upload the model again")
    try:
        return _package.PT2ArchiveReader(str(path))
    except Exception as err:  # RuntimeError from the zip reader, or an assertion in its wrapper
        raise InvalidModel(
            f"the file isn't a torch.export archive: {first_line(err)}",
            hint=f"check that the upload is complete, and {EXPORT_AGAIN}",
        ) from err


def _read_json(reader: Any, name: str) -> Mapping[str, Any]:
    try:
        if reader.archive_file.get_record_size(name) > _MAX_JSON_BYTES:
            raise ValueError("too large")
        content = json.loads(reader.read_string(name))
    except (RuntimeError, ValueError, RecursionError, MemoryError) as err:
        raise InvalidModel(f"{name} in the archive is damaged", hint=EXPORT_AGAIN) from err
    if not isinstance(content, dict):
        raise InvalidModel(f"{name} in the archive isn't a JSON object", hint=EXPORT_AGAIN)
    return content


def _scan_payloads(config: Mapping[str, Any], where: str) -> None:
    payloads = config.get("config")
    if not isinstance(payloads, dict):
        raise InvalidModel(f"{where} in the archive is damaged", hint=EXPORT_AGAIN)
    for name, payload in payloads.items():
        _check_name(name)
        # Tensors in the archive are raw bytes; everything else is a pickle.
        if not isinstance(payload, dict) or not isinstance(payload.get("tensor_meta"), dict):
            refuse_pickle(f"{name} in {where} has no description")
        path = str(payload.get("path_name", ""))
        if payload.get("use_pickle") is not False or not path.startswith(("weight_", "tensor_")):
            refuse_pickle(f"{name} in {where} is a pickled object")
        device = (payload["tensor_meta"].get("device") or {}).get("type", "cpu")
        if device != "cpu":
            raise InvalidModel(
                f"its weights are on the device {device!r}",
                hint="export it on the CPU: torch.export.export(model.cpu(), args)",
            )
        if not _NAME.fullmatch(path):
            raise InvalidModel(f"{where} names a file outside itself", hint=EXPORT_AGAIN)


def _scan_program(value: Any, key: str = "") -> None:
    """Check every string of the program's JSON that torch would turn into code."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in ("metadata", "guards_code"):
                continue  # looked up but never called, and dropped after loading
            if key in _NAME_MAPPINGS:
                _check_name(name)
            if key == "range_constraints":
                check_expression(name)  # s0, or 8*s0 for an axis in multiples of 8
            _scan_program(item, name)
    elif isinstance(value, list):
        for item in value:
            _scan_program(item, key)
    elif isinstance(value, str):
        _scan_string(value, key)


def _scan_string(value: str, key: str) -> None:
    if key == "expr_str":
        check_expression(value)
    elif key in ("target", "as_operator"):
        _check_operator(value)
    elif key in _NAME_KEYS:
        _check_name(value)
    elif key == "forward_arg_names":
        _check_argument(value)
    elif key in ("class_fqn", "custom_obj_name"):
        refuse_pickle(f"it needs the custom object {value!r}")
    elif key in ("in_spec", "out_spec") and "__enum__" in value:
        raise InvalidModel("its inputs hold Python enums", hint=EXPORT_AGAIN)
    elif key == "in_spec":
        _check_keywords(value)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidModel(
            f"{name[:80]!r} isn't a name that a program may use",
            hint="name modules and inputs with letters, digits and underscores",
        )


def _check_argument(name: str) -> None:
    """Check an argument's name: it appears in the function that the graph is compiled to."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidModel(
            f"{name[:80]!r} isn't a name that an input may have",
            hint="name inputs with letters, digits and underscores",
        )


def _check_keywords(text: str) -> None:
    """Check the names of keyword arguments: the keys of the second of a call's two containers."""
    try:
        _, tree = json.loads(text)
        children = tree["children_spec"]
        is_call = tree["type"] == "builtins.tuple" and len(children) == 2
        named = is_call and children[1]["type"] in ("builtins.dict", "collections.OrderedDict")
        names = json.loads(children[1]["context"]) if named else []
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise InvalidModel("the program's inputs are described wrongly", hint=EXPORT_AGAIN) from err
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


def refuse_pickle(fact: str) -> NoReturn:
    raise InvalidModel(
        f"the program contains a pickle, which the farm never runs: {fact}", hint=EXPORT_AGAIN
    )


def first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0][:300] if lines else type(err).__name__
