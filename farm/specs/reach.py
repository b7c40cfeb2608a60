"""Which GPUs an engine serves, and how closely. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Protocol

from farm.specs import gpus
from farm.specs.options import BuilderOptions
from farm.specs.runtime import Runtime

#: Products whose hosts are Arm. Native code from an x86-64 host doesn't load there.
_ON_ARM = ("gh200", "gb200", "gb300", "gb10", "dgx-spark", "jetson-orin", "jetson-thor")
_AMPERE = 80


class Reach(IntEnum):
    """How close an engine is to a GPU, the closest first."""

    EXACT = 0  #: built for this product
    CAPABILITY = 1  #: built for its compute capability
    PORTABLE = 2  #: built to run on others, at a cost in speed


class Aimed(Protocol):
    """An engine, as far as it matters for which GPUs it serves."""

    @property
    def gpu(self) -> str: ...
    @property
    def runtime(self) -> Runtime: ...
    @property
    def options(self) -> BuilderOptions | None: ...
    @property
    def toolchain(self) -> Mapping[str, str]: ...


def reach(engine: Aimed, tag: str) -> Reach | None:
    """How close an engine is to a GPU; None if it isn't for it.

    Parameters:
        tag: canonical; that of a MIG slice is a product of its own.
    """
    if engine.gpu == tag:
        return Reach.EXACT
    if _is_on_arm(tag) and engine.toolchain.get("instruction-set", "").startswith("x86-64"):
        return None
    capability = gpus.compute_capability(tag)
    if engine.gpu == capability:
        return Reach.CAPABILITY
    return Reach.PORTABLE if _is_portable(engine, tag, capability) else None


def served(engine: Aimed) -> dict[Reach, list[str]]:
    """The products that an engine serves, by how closely."""
    found: dict[Reach, list[str]] = {}
    for product in gpus.PRODUCTS:
        close = reach(engine, product)
        if close is not None:
            found.setdefault(close, []).append(product)
    return dict(sorted(found.items()))


def _is_portable(engine: Aimed, tag: str, capability: str) -> bool:
    """By TensorRT's levels of hardware compatibility, which aren't for Jetson."""
    if engine.runtime is not Runtime.TENSORRT or engine.options is None:
        return False
    if gpus.CPU in (tag, engine.gpu) or _is_on_arm(tag) != _is_on_arm(engine.gpu):
        return False
    level = engine.options.hardware_compatibility_level
    if level == "same_compute_capability":
        return gpus.compute_capability(engine.gpu) == capability
    return level == "ampere_plus" and not _is_jetson(tag) and gpus.number(capability) >= _AMPERE


def _is_on_arm(tag: str) -> bool:
    """Whether it is such a product, or a slice of one."""
    return any(tag == product or tag.startswith(f"{product}-") for product in _ON_ARM)


def _is_jetson(tag: str) -> bool:
    products = [tag, *gpus.products_of(tag)]
    return any(product.startswith("jetson-") for product in products)
