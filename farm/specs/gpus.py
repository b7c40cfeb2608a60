"""GPU tags: compute capabilities, and the products that map to them."""

from __future__ import annotations

import difflib
import re

from farm.errors import GpuUnsupported, UnknownGpu
from farm.specs import gpu_families, texts

#: Product → compute capability. Source: NVIDIA's table of CUDA GPUs.
PRODUCTS: dict[str, str] = {
    "t4": "sm_75",
    "rtx-2060": "sm_75",
    "rtx-2070": "sm_75",
    "rtx-2080": "sm_75",
    "rtx-2080-ti": "sm_75",
    "quadro-rtx-6000": "sm_75",
    "quadro-rtx-8000": "sm_75",
    "a30": "sm_80",
    "a100": "sm_80",
    "a2": "sm_86",
    "a10": "sm_86",
    "a10g": "sm_86",
    "a16": "sm_86",
    "a40": "sm_86",
    "rtx-3060": "sm_86",
    "rtx-3070": "sm_86",
    "rtx-3080": "sm_86",
    "rtx-3090": "sm_86",
    "rtx-a4000": "sm_86",
    "rtx-a5000": "sm_86",
    "rtx-a6000": "sm_86",
    "jetson-orin": "sm_87",
    "l4": "sm_89",
    "l40": "sm_89",
    "l40s": "sm_89",
    "rtx-4060": "sm_89",
    "rtx-4070": "sm_89",
    "rtx-4080": "sm_89",
    "rtx-4090": "sm_89",
    "rtx-6000-ada": "sm_89",
    "h100": "sm_90",
    "h200": "sm_90",
    "gh200": "sm_90",
    "b200": "sm_100",
    "gb200": "sm_100",
    "b300": "sm_103",
    "gb300": "sm_103",
    "jetson-thor": "sm_110",
    "rtx-5070": "sm_120",
    "rtx-5080": "sm_120",
    "rtx-5090": "sm_120",
    "rtx-pro-6000": "sm_120",
    "gb10": "sm_121",
    "dgx-spark": "sm_121",
}

CPU = "cpu"

#: Products for data centres; the others are for workstations and devices.
_SERVERS = frozenset(
    "t4 a2 a10 a10g a16 a30 a40 a100 l4 l40 l40s h100 h200 gh200 b200 gb200 b300 gb300".split()
)


def number(compute_capability: str) -> int:
    """``sm_89`` → 89."""
    return int(compute_capability.removeprefix("sm_"))


COMPUTE_CAPABILITIES: tuple[str, ...] = tuple(sorted(set(PRODUCTS.values()), key=number))
_ALIASES = {
    re.sub(r"[^a-z0-9]", "", name): name for name in (*PRODUCTS, *COMPUTE_CAPABILITIES, CPU)
}
#: A slice of a GPU, as NVML names its profile: ``h200-1g.18gb``; with fewer or more engines than its share,
#: ``1c.2g.20gb``, ``1g.10gb+me``, ``1g.24gb-me``. Tuning and timings on a slice don't apply to the whole
#: GPU, so it has its own tag.
_SLICE = re.compile(
    r"(?P<gpu>.+?)[ -](?:mig[ -])?(?P<profile>(?:\dc\.)?\dg\.\d{1,4}gb(?:[+-][a-z]{1,5}(?:\.[a-z]{1,5})?)?)",
    re.IGNORECASE,
)
_MOST_CHARS = 100
_VENDOR = re.compile(r"\b(nvidia|geforce|tesla|graphics|gpu|generation)\b")


def canonical(tag: str) -> str:
    """The tag as the farm writes it: ``RTX 4090`` → ``rtx-4090``, ``SM89`` → ``sm_89``, ``8.9`` → ``sm_89``.

    Raises:
        GpuUnsupported: such a chip exists, and the farm builds nothing for it, or has no tag for it.
        UnknownGpu: suggests the closest known tags.
    """
    if texts.fault(tag) is not None:
        raise UnknownGpu(f"{tag!r} isn't a GPU tag", hint="`farm targets` lists every tag")
    if len(tag) > _MOST_CHARS:
        raise UnknownGpu(f"unknown GPU tag {tag[:40]!r}…", hint="`farm targets` lists every tag")
    sliced = _SLICE.fullmatch(tag.strip())
    if not sliced:
        return _whole(tag)
    whole = _whole(sliced["gpu"])
    if whole == CPU:
        raise UnknownGpu(f"{tag!r}: a CPU has no slices", hint="use cpu")
    return f"{whole}-{sliced['profile'].lower()}"


def _whole(tag: str) -> str:
    """The tag of a whole GPU."""
    dotted = re.fullmatch(r"(\d+)\.(\d)", tag.strip())
    squeezed = re.sub(r"[^a-z0-9]", "", f"sm{dotted[1]}{dotted[2]}" if dotted else tag.lower())
    if squeezed in _ALIASES:
        return _ALIASES[squeezed]
    _refuse_existing(tag, squeezed)
    near = difflib.get_close_matches(squeezed, _ALIASES, n=3, cutoff=0.5)
    closest = ", ".join(_ALIASES[name] for name in near)
    raise UnknownGpu(
        f"unknown GPU tag {tag!r}",
        hint=f"did you mean {closest}? " * bool(closest) + "`farm targets` lists every tag",
    )


def _refuse_existing(tag: str, squeezed: str) -> None:
    """Say of a chip that exists why it is no tag: whoever wrote it made no typing error.

    Raises:
        GpuUnsupported
    """
    numbered = f"sm_{squeezed.removeprefix('sm')}"
    capability = numbered if numbered in gpu_families.OLD else gpu_families.of(squeezed)
    if capability in COMPUTE_CAPABILITIES:
        raise GpuUnsupported(
            f"{tag!r} has no tag of its own", hint=f"use its compute capability: {capability}"
        )
    if capability is not None:
        first = COMPUTE_CAPABILITIES[0]
        named = "" if capability == numbered else f", {capability}"
        raise GpuUnsupported(
            f"{tag!r} is too old ({gpu_families.OLD[capability]}{named}): "
            f"the farm builds for {first} and newer"
        )
    made_by = gpu_families.foreign(squeezed)
    if made_by is not None:
        raise GpuUnsupported(
            f"{tag!r} is {made_by}: the farm builds for NVIDIA's GPUs, and for cpu"
        )


def is_known(tag: str) -> bool:
    """Whether the farm knows this GPU tag."""
    try:
        canonical(tag)
    except UnknownGpu:
        return False
    return True


def compute_capability(tag: str) -> str:
    """``h200`` → ``sm_90``; a compute capability and ``cpu`` stand for themselves."""
    name = canonical(tag)
    sliced = _SLICE.fullmatch(name)
    if sliced:
        name = sliced["gpu"]
    return PRODUCTS.get(name, name)


def serves(tag: str) -> bool:
    """Whether a tag is a product for data centres, or a slice of one."""
    name = canonical(tag)
    sliced = _SLICE.fullmatch(name)
    return (sliced["gpu"] if sliced else name) in _SERVERS


def product_of(device_name: str) -> str | None:
    """The product tag of a device's NVML name: ``NVIDIA H100 80GB HBM3`` → ``h100``,
    ``NVIDIA H200 MIG 1g.18gb`` → ``h200-1g.18gb``.
    """
    sliced = _SLICE.fullmatch(device_name.strip())
    if sliced:
        return slice_of(device_name, product_of(sliced["gpu"]))
    words = re.findall(r"[a-z0-9]+", _VENDOR.sub(" ", device_name.lower()))
    if "ada" in words and "6000" in words:
        return "rtx-6000-ada"
    joined = f"-{'-'.join(words)}-"
    found = [name for name in PRODUCTS if f"-{name}-" in joined]
    return max(found, key=len) if found else None


def slice_of(device_name: str, whole: str | None) -> str | None:
    """The tag of a slice of the GPU tagged ``whole``; None if it isn't a slice."""
    sliced = _SLICE.fullmatch(device_name.strip())
    return f"{whole}-{sliced['profile'].lower()}" if sliced and whole else None


def products_of(tag: str) -> list[str]:
    """The products with this compute capability."""
    return [name for name, capability in PRODUCTS.items() if capability == tag]
