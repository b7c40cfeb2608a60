"""The machine that asks for an engine: what it has, and why an engine can't run there. Pure, no I/O.

Facts come from NVIDIA's and PyTorch's statements of compatibility; what isn't known of a machine, or of the
machine that built the engine, rules nothing out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Protocol, Self

from pydantic import Field, StringConstraints, field_validator

from farm.errors import InvalidRequest
from farm.specs.options import BuilderOptions
from farm.specs.runtime import Runtime
from farm.specs.values import Value

LINUX = "linux"
SYSTEMS = (LINUX, "windows")
#: What a machine may say of itself.
NAMES = ("os", "driver", "tensorrt", "tensorrt-rtx", "onnxruntime", "torch")
_VERSION = r"^\d{1,6}(\.\d{1,6}){0,4}([a-z+.-][0-9a-z+.-]{0,30})?$"
Fact = Annotated[
    str,
    StringConstraints(max_length=80),
    Field(examples=["tensorrt=10.13.3"]),
]
#: CUDA's major version → the oldest branch of drivers that runs it. Source: NVIDIA's "CUDA Compatibility",
#: table of minor version compatibility.
_OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
#: TensorRT's major version → the major versions, besides itself, whose version-compatible engines it runs.
#: Source: TensorRT's support matrix, "Engine Portability".
_OLDER_MAJORS = {10: (8,), 11: (10,)}


class Built(Protocol):
    """An engine, as far as it matters for where it runs."""

    @property
    def runtime(self) -> Runtime: ...
    @property
    def runtime_version(self) -> str: ...
    @property
    def options(self) -> BuilderOptions | None: ...
    @property
    def toolchain(self) -> Mapping[str, str]: ...


class Machine(Value):
    """What is known of a machine: its system, its driver, and the runtimes that it has."""

    os: str | None = Field(None, description="linux or windows")
    driver: str | None = Field(None, description="version of the NVIDIA driver")
    versions: Mapping[str, str] = Field({}, description="runtime's package → version")

    @field_validator("os")
    @classmethod
    def _a_system(cls, given: str | None) -> str | None:
        if given not in (None, *SYSTEMS):
            raise ValueError("use linux or windows")
        return given

    @classmethod
    def of(cls, facts: Iterable[str]) -> Self:
        """From ``driver=580.65``, ``tensorrt=10.13.3`` and the like.

        Raises:
            InvalidRequest
        """
        found: dict[str, str] = {}
        for fact in facts:
            name, _, value = (part.strip().lower() for part in fact.partition("="))
            if name not in NAMES:
                raise InvalidRequest(
                    f"{fact!r} is nothing that a machine says of itself",
                    hint=f"use NAME=VALUE, with one of {', '.join(NAMES)}",
                )
            if name == "os" and value not in SYSTEMS:
                raise InvalidRequest(f"unknown system {value!r}", hint="use os=linux or os=windows")
            if name != "os" and not re.fullmatch(_VERSION, value):
                raise InvalidRequest(
                    f"{value!r} isn't a version", hint=f"a version is like this: {name}=10.13.3"
                )
            if found.setdefault(name, value) != value:
                raise InvalidRequest(f"{name} is given twice: {found[name]} and {value}")
        return cls(os=found.pop("os", None), driver=found.pop("driver", None), versions=found)

    def but(self, other: Machine) -> Machine:
        """This machine with what is known of another instead, where it is."""
        return Machine(
            os=other.os or self.os,
            driver=other.driver or self.driver,
            versions={**self.versions, **other.versions},
        )

    def facts(self) -> list[str]:
        """As ``of`` takes them."""
        told = {"os": self.os, "driver": self.driver, **self.versions}
        return [f"{name}={value}" for name, value in told.items() if value]


ANY = Machine()


def misfit(engine: Built, machine: Machine) -> str | None:
    """Why an engine can't run on a machine, in words; None if nothing known speaks against it."""
    if machine == ANY:
        return None
    checks = (_system(engine, machine), _version(engine, machine), _driver(engine, machine))
    return next(filter(None, checks), None)


def _system(engine: Built, machine: Machine) -> str | None:
    """Plans and packages hold native code; TensorRT-RTX's engines are portable."""
    if machine.os in (None, LINUX) or engine.runtime not in (Runtime.TENSORRT, Runtime.AOTINDUCTOR):
        return None
    return f"it was built on Linux, and the machine runs {machine.os}"


def _version(engine: Built, machine: Machine) -> str | None:
    package, needed = _PACKAGES.get(engine.runtime), _numbers(engine.runtime_version)
    here = machine.versions.get(package) if package else None
    if here is None or not needed:
        return None
    lacks = _RULES[engine.runtime](engine, needed, _numbers(here))
    return lacks and f"it needs {lacks}, and the machine has {here}"


def _numbers(version: str) -> tuple[int, ...]:
    """``10.13.3.9`` → its numbers; those of ``2.11.0+cu130`` without what follows the sign."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


_Rule = Callable[[Built, tuple[int, ...], tuple[int, ...]], str | None]


def _same(engine: Built, needed: tuple[int, ...], here: tuple[int, ...]) -> str | None:
    """Plans and packages load only with the version that built them."""
    shared = min(len(needed), len(here))
    if needed[:shared] == here[:shared]:
        return None
    return f"{_PACKAGES[engine.runtime]} {engine.runtime_version}"


def _tensorrt(engine: Built, needed: tuple[int, ...], here: tuple[int, ...]) -> str | None:
    if not (engine.options and engine.options.version_compatible):
        return _same(engine, needed, here)
    shared = min(len(needed), len(here))
    if needed[0] == here[0] and needed[:shared] <= here[:shared]:
        return None
    if needed[0] in _OLDER_MAJORS.get(here[0], ()):
        return None
    return f"tensorrt {engine.runtime_version} or a later one that runs its engines"


def _at_least(engine: Built, needed: tuple[int, ...], here: tuple[int, ...]) -> str | None:
    """ONNX files and TorchScript load with later versions."""
    shared = min(len(needed), len(here), 2)
    if needed[:shared] <= here[:shared]:
        return None
    return f"{_PACKAGES[engine.runtime]} {engine.runtime_version} or later"


_PACKAGES = {
    Runtime.TENSORRT: "tensorrt",
    Runtime.TENSORRT_RTX: "tensorrt-rtx",
    Runtime.ONNXRUNTIME: "onnxruntime",
    Runtime.AOTINDUCTOR: "torch",
    Runtime.TORCHSCRIPT: "torch",
}
_RULES: Mapping[Runtime, _Rule] = {
    Runtime.TENSORRT: _tensorrt,
    Runtime.TENSORRT_RTX: _same,
    Runtime.ONNXRUNTIME: _at_least,
    Runtime.AOTINDUCTOR: _same,
    Runtime.TORCHSCRIPT: _at_least,
}


def _driver(engine: Built, machine: Machine) -> str | None:
    """The driver must run the CUDA that the engine was built with, where that is known."""
    cuda, driver = _numbers(engine.toolchain.get("cuda", "")), _numbers(machine.driver or "")
    oldest = _OLDEST_DRIVERS.get(cuda[0]) if cuda and driver else None
    if oldest is None or driver[0] >= oldest:
        return None
    return f"CUDA {cuda[0]} needs driver {oldest} or later, and the machine has {machine.driver}"
