"""Which of a model's engines a release of Triton can load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from farm.errors import NotFound
from farm.schemas.engines import EngineView
from farm.specs import triton


def misfits(engines: Sequence[EngineView], release: str | None) -> Mapping[str, str]:
    """The engines that a release can't load, by id, and why; none without a release.

    Raises:
        InvalidRequest: the farm doesn't know this release.
    """
    if release is None:
        return {}
    known = triton.release(release)
    told = {one.id: triton.misfit(known, one, gpu=one.gpu) for one in engines}
    return {engine: why for engine, why in told.items() if why is not None}


def nothing(
    engines: Sequence[EngineView], misfits: Mapping[str, str], release: str, tag: str
) -> NotFound:
    """The error for a pull of which a release can load nothing."""
    whys = dict.fromkeys(
        f"{one.precision} by {one.runtime} ({one.gpu}): {misfits[one.id]}" for one in engines
    )
    of = f"version {engines[0].version} of {engines[0].model}"
    needs = (
        f"build it with TensorRT {triton.release(release).tensorrt}: a worker with that version, "
    )
    return NotFound(
        f"{of} has no engine for {tag} that Triton {release} loads; {'; '.join(whys)}",
        hint=f"{needs}--gpu tensorrt:{tag}" if tag != "cpu" else "build it: --gpu onnxruntime:cpu",
    )
