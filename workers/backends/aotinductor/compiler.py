"""The C++ compiler and the instruction set of AOTInductor packages. Imports no framework."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

#: Runs on every x86-64 server processor since 2013 (AVX2, FMA), and so do packages for it. Faster ones with
#: AVX-512 would end a process on a machine without.
INSTRUCTION_SET = "x86-64-v3"
SIMD_BITS = 256
#: Its vectors, as inductor names them.
VECTORS = "avx2"
#: How torch says it, from the release on that can.
_MARCH = "TORCHINDUCTOR_CPP_MARCH"
_NEEDS = frozenset("avx2 fma bmi1 bmi2 f16c movbe".split())
_NAMES = ("g++", "c++", "clang++", "/usr/bin/g++", "/usr/bin/clang++")


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A C++ compiler whose programs can be loaded."""

    path: str
    version: str


@cache
def compiler(wanted: str | None = None) -> Compiler | None:
    """The first compiler here that links the shared C++ library; None without one.

    One whose ``libstdc++.so`` is a dangling link falls back to the static library, and what it makes
    crashes in a process that has loaded the shared one.

    Parameters:
        wanted: tried first, as ``CXX``.
    """
    for name in _candidates(wanted):
        path = shutil.which(name)
        if path is None:
            continue
        library = _said(path, "-print-file-name=libstdc++.so")
        if library and Path(library).is_absolute() and Path(library).exists():
            return Compiler(path=path, version=_said(path, "-dumpfullversion", "-dumpversion"))
    return None


def _candidates(wanted: str | None) -> Iterator[str]:
    yield from dict.fromkeys(filter(None, (wanted, *_NAMES)))


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def tools() -> Mapping[str, str]:
    """What changes a package beside the versions of torch and Triton: name in a key → value.

    Nothing where packages can't be compiled: without a compiler, or on a processor below the instruction set.
    """
    found = compiler(os.environ.get("CXX"))
    torch = _torch()
    if found is None or torch is None or not _flags() >= _NEEDS:
        return {}
    return {
        "c++": f"{Path(found.path).name} {found.version}",
        "instruction-set": INSTRUCTION_SET if _is_settable(torch) else "native",
        "cuda": _cuda(torch),
    }


def environment() -> Mapping[str, str]:
    """Variables for a process that compiles packages."""
    found = compiler(os.environ.get("CXX"))
    return {"CXX": found.path, _MARCH: INSTRUCTION_SET} if found else {}


def _torch() -> Path | None:
    spec = find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def _cuda(torch: Path) -> str:
    """The CUDA version that torch was built for, or ``none``."""
    for line in (torch / "version.py").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.partition(":")[0].strip() == "cuda":
            return value.strip().strip("'\"").lower()
    return "none"


@cache
def _is_settable(torch: Path) -> bool:
    return _MARCH in (torch / "_inductor" / "config.py").read_text()


@cache
def _flags() -> frozenset[str]:
    """What an x86-64 processor says that it runs."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())
