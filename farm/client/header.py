"""Checks a TensorRT-RTX engine's header against its registry entry."""

from __future__ import annotations

from pathlib import Path

from farm.errors import DigestMismatch
from farm.formats.rtx_header import HEADER_BYTES, parse_header
from farm.schemas.engines import EngineView
from farm.specs.gpus import compute_capability
from farm.specs.runtime import Runtime

CONTRADICTION_HINT = (
    "don't use this engine, and alert the farm's operator: its records contradict each other"
)


def verify(partial: Path, engine: EngineView) -> None:
    """Delete an RTX engine whose header contradicts the registry.

    Raises:
        DigestMismatch
    """
    if engine.runtime is not Runtime.TENSORRT_RTX:
        return
    with partial.open("rb") as file:
        start = file.read(HEADER_BYTES)
    differs = _disagreement(start, engine)
    if differs:
        partial.unlink(missing_ok=True)
        raise DigestMismatch(
            f"engine {engine.id}: {differs}; nothing was kept", hint=CONTRADICTION_HINT
        )


def _disagreement(start: bytes, engine: EngineView) -> str | None:
    try:
        header = parse_header(start)
    except ValueError as err:
        return f"the registry calls it a TensorRT-RTX engine, but {err}"
    capability = compute_capability(engine.gpu)
    if capability not in header.compute_capabilities:
        made_for = ", ".join(header.compute_capabilities) or "no GPU"
        return f"the registry says it is for {capability}, its header for {made_for}"
    if header.bytes != engine.bytes:
        return f"the registry says it has {engine.bytes} bytes, its header {header.bytes}"
    if not _same_version(header.version, engine.runtime_version):
        return (
            f"the registry says TensorRT-RTX {engine.runtime_version}, its header {header.version}"
        )
    return None


def _same_version(header: str, registry: str) -> bool:
    """Compares as many parts as both have: ``1.7.1.116`` and ``1.7.1`` are equal."""
    pairs = zip(header.split("."), registry.split("."), strict=False)
    return all(left == right for left, right in pairs)
