"""Which parts of the farm are installed: `pip install engine-farm` is the client and the command line.

Extras bring the other parts' libraries. ``workers`` and ``migrations``, which run in separate processes, come
with the distribution ``engine-farm-server``, in a folder inside ``farm``: at the top level such generic names
could clash. In a checkout they are beside ``farm``.
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
    """Convert a failed import in the block to the error that names this extra.

    Raises:
        ExtraMissing: it isn't there.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        name = (err.name or "").partition(".")[0]
        if name in ("", "farm"):
            raise  # a bug in the farm
        raise missing(name, extra) from err


def require(module: str, extra: str) -> None:
    """Return if a module that another process will import is installed.

    Raises:
        ExtraMissing
    """
    with needs(extra):
        if find_spec(module) is None:
            raise missing(module, extra)


def missing(what: str, extra: str) -> ExtraMissing:
    """The error that says how to install what is missing."""
    return ExtraMissing(
        f"this needs {what}, which isn't installed here", hint=f"pip install '{_named(extra)}'"
    )


def _named(extra: str) -> str:
    return f"engine-farm[{extra}]"


def parts(extra: str = "server") -> Path:
    """The folder that holds ``workers`` and ``migrations``.

    Raises:
        ExtraMissing: they aren't installed, or have another version.
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
    # -P: import nothing from the current folder.
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(extra: str = "worker") -> dict[str, str]:
    """This process's environment, with the path from which another process imports the farm's ``workers``.

    Raises:
        ExtraMissing
    """
    others = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(parts(extra)), *([others] if others else [])])
    return os.environ | {"PYTHONPATH": path}
