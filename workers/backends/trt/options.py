"""Sets TensorRT builder options by name, or refuses those that a runtime lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farm.errors import EngineBuildFailed
from farm.specs.options import BuilderOptions

if TYPE_CHECKING:
    import tensorrt as types


def set_capability(trt: Any, config: Any, compute_capability: str) -> None:
    """Build ahead of time for this compute capability, if the runtime can.

    Raises:
        EngineBuildFailed: names the capabilities it builds for.
    """
    if not hasattr(config, "set_compute_capability"):
        return
    name = compute_capability.replace("_", "").upper()
    capability = getattr(trt.ComputeCapability, name, None)
    if capability is None:
        known = sorted(c for c in dir(trt.ComputeCapability) if c.startswith("SM"))
        raise EngineBuildFailed(
            f"this runtime can't build for {compute_capability}",
            hint="choose one of " + ", ".join(f"sm_{c[2:]}" for c in known),
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)


_FLAGS = {
    "tf32": "TF32",
    "sparse_weights": "SPARSE_WEIGHTS",
    "version_compatible": "VERSION_COMPATIBLE",
    "weight_streaming": "WEIGHT_STREAMING",
}


def set_options(trt: Any, config: types.IBuilderConfig, options: BuilderOptions) -> None:
    """Set each option that isn't at its default, and TF32 in any case.

    Raises:
        EngineBuildFailed: names what this runtime lacks.
    """
    for name, flag in _FLAGS.items():
        wanted = getattr(options, name)
        if hasattr(trt.BuilderFlag, flag):
            (config.set_flag if wanted else config.clear_flag)(getattr(trt.BuilderFlag, flag))
        elif wanted and name in options.changed():
            raise _no_option(trt, name)
    if not options.timing_cache and hasattr(trt.BuilderFlag, "DISABLE_TIMING_CACHE"):
        config.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)
    for name in ("builder_optimization_level", "max_aux_streams"):
        value = getattr(options, name)
        if value is not None:
            if not hasattr(config, name):
                raise _no_option(trt, name)
            setattr(config, name, value)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.hardware_compatibility_level != "none":
        levels = getattr(trt, "HardwareCompatibilityLevel", None)
        level = getattr(levels, options.hardware_compatibility_level.upper(), None)
        if level is None:
            raise _no_option(trt, "hardware_compatibility_level")
        config.hardware_compatibility_level = level


def _no_option(trt: Any, name: str) -> EngineBuildFailed:
    return EngineBuildFailed(
        f"{trt.__name__} {trt.__version__} has no {name}", hint="omit that option"
    )
