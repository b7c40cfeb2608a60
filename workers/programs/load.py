"""Loads a ``torch.export`` program without running anything that its author put into the file.

``torch.export.load`` isn't safe on untrusted files (torch 2.13): it unpickles custom objects and
tensor subclasses, falls back from ``weights_only=True`` to a full unpickle, loads AOTInductor's native
libraries, passes symbolic sizes to ``sympy.sympify``, which evaluates Python, and looks up operators by
``getattr`` from ``torch``. So the archive is scanned here first, with torch's own reader, and anything
but plain data is refused; while it loads, every unpickler that could run code is disabled.
"""

from __future__ import annotations

import os
import pickle
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
from workers.programs import enumerations
from workers.programs.program_archive import EXPORT_AGAIN, first_line, refuse_pickle, scan_archive
from workers.programs.treespecs import plain_treespec


def load_program(path: Path) -> ExportedProgram:
    """Load the ``torch.export`` program in ``path``; no code in the file is run.

    Containers of its author's own in its inputs and outputs (dataclasses, ``ModelOutput``, caches) become
    dicts and tuples of the same fields.

    Raises:
        InvalidModel: the file isn't a program, or holds more than plain data.
    """
    fields = scan_archive(path)
    try:
        with _no_code(fields), path.open("rb") as file:
            programs = _package.load_pt2(file).exported_programs
    except pickle.UnpicklingError as err:
        refuse_pickle(str(err).splitlines()[0])
    except InvalidModel:
        raise
    except Exception as err:  # torch raises a dozen error types on a malformed program
        raise InvalidModel(
            f"torch {torch.__version__} can't read this program: {first_line(err)}",
            hint=EXPORT_AGAIN,
        ) from err
    program = programs.get("model") or next(iter(programs.values()))
    # module() would compile and execute these; they only repeat the shape ranges.
    program._guards_code = []
    try:
        enumerations.check_program(program)
    except enumerations.Unknown as err:
        raise InvalidModel(f"the farm doesn't run this program: {err}", hint=EXPORT_AGAIN) from err
    _drop_ranges_of_expressions(program)
    return program


def _drop_ranges_of_expressions(program: ExportedProgram) -> None:
    """Drop them: torch also saves the range of 8*s0 for s0, and then can't export the loaded program."""
    environment = _get_shape_env_from_gm(program.graph_module)
    for ranges in (program._range_constraints, environment.var_to_range if environment else {}):
        for expression in [key for key in ranges if not key.is_Symbol]:
            del ranges[expression]


@contextmanager
def _no_code(fields: Mapping[str, Sequence[str]] | None = None) -> Iterator[None]:
    """Disable whatever could execute code in an archive, in case the scan missed it.

    Container types are never looked up: ``plain_treespec`` replaces torch's reader for them.

    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` overrides the ``weights_only=False`` at torch's call sites.
    """

    def refuse(*_: object, **__: object) -> NoReturn:
        refuse_pickle("a custom object")

    def loads(text: str) -> Any:
        return pytree.treespec_loads(plain_treespec(text, fields or {}))

    def artifact(serialized: Any) -> Any:
        # Bytes are the example inputs: a pickle of whatever the program was exported with.
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
