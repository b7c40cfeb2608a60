"""What of the farm is installed here: `pip install engine-farm` is the client and the command line.

Extras bring the libraries of the rest. What runs in processes of its own, ``workers`` and ``migrations``,
comes with the distribution ``engine-farm-server``, in a folder of ``farm``'s: beside it they would be
anybody's names. In a checkout they lie beside ``farm``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from farm import __version__
from farm.errors import ExtraMissing

SERVER = "engine-farm-server"
_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parent
_BROUGHT = (
    _HERE / "_parts"
)  #: by ``engine-farm-server``; distributions/server/hatch_build.py names it too


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """What the block imports is brought by this extra.

    Raises:
        ExtraMissing: it isn't there.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        name = (err.name or "").partition(".")[0]
        if name in ("", "farm"):
            raise  # the farm's own fault
        raise missing(name, extra) from err


def require(module: str, extra: str) -> None:
    """Return if a module, which another process imports, is there.

    Raises:
        ExtraMissing
    """
    with needs(extra):
        if find_spec(module) is None:
            raise missing(module, extra)


def missing(what: str, extra: str) -> ExtraMissing:
    """The error that says how to install what isn't."""
    return ExtraMissing(
        f"this needs {what}, which isn't installed here", hint=f"pip install '{_named(extra)}'"
    )


def _named(extra: str) -> str:
    return f"engine-farm[{extra}]"


def parts(extra: str = "server") -> Path:
    """The folder that holds ``workers`` and ``migrations``.

    Raises:
        ExtraMissing: they aren't installed, or are another version's.
    """
    if (_CHECKOUT / "pyproject.toml").is_file() and _holds(_CHECKOUT):
        return _CHECKOUT
    if not _holds(_BROUGHT):
        raise missing(SERVER, extra)
    version = metadata.version(SERVER)
    if version != __version__:
        raise ExtraMissing(
            f"{SERVER} is {version}, and this is engine-farm {__version__}",
            hint=f"pip install --upgrade '{_named(extra)}=={__version__}'",
        )
    return _BROUGHT


def _holds(folder: Path) -> bool:
    return all((folder / file).is_file() for file in ("workers/__main__.py", "migrations/env.py"))


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs one of ``workers``' modules, in ``environment()``."""
    # -P: nothing is imported from the folder that it starts in.
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(extra: str = "worker") -> dict[str, str]:
    """This process's environment for one that imports ``workers``: the farm's, whoever else has one.

    Raises:
        ExtraMissing
    """
    others = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(parts(extra)), *([others] if others else [])])
    return os.environ | {"PYTHONPATH": path}
