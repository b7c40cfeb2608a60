"""A version's ONNX, which the farm made on the way to its engines, and how to build an engine from it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Artifact, Build, BuildJob, Job
from farm.errors import NotFound
from farm.registry import names, versions
from farm.schemas.onnx import OnnxFile
from farm.specs.precision import Precision
from farm.specs.references import Reference
from farm.specs.roles import Role
from farm.specs.states import JobState
from farm.stages import JobKind

_AT_ONCE = 10
#: What a precision's jobs may have made, the fastest to run first.
_TYPED = (Role.TYPED_HALF, Role.TYPED_FP16, Role.TYPED)


def onnx_of(
    session: Session,
    model: str,
    *,
    precision: Precision | None = None,
    version: int | None = None,
    alias: str | None = None,
) -> OnnxFile:
    """The newest ONNX of the version that a pull takes.

    Parameters:
        precision: by default the exported ONNX, without the types of any.

    Raises:
        NotFound: the model or version doesn't exist, or has no such ONNX.
        NameAmbiguous
    """
    known = names.named(session, model)
    of = versions.taken(session, known, Reference(version=version, alias=alias))
    version_id = versions.version_id(session, known, of.number)
    for outputs, request in _made(session, version_id, precision):
        roles = (Role.ONNX,) if precision is None else _TYPED
        for digest in (outputs[role] for role in roles if role in outputs):
            artifact = session.get(Artifact, digest)
            if artifact is not None and artifact.lost_at is None:
                typed = f"-{precision}" if precision else ""
                file_name = f"{known.name}-v{of.number}{typed}.onnx"
                return OnnxFile(
                    model=known.name,
                    version=of.number,
                    precision=precision,
                    digest=digest,
                    bytes=artifact.bytes,
                    file_name=file_name,
                    why=of.why,
                    build=_command(file_name, request, typed=precision is not None),
                )
    kind = f"ONNX in {precision}" if precision else "ONNX"
    raise NotFound(
        f"the farm has no {kind} of version {of.number} of {known.name}",
        hint="a build for TensorRT or ONNX Runtime makes it; if its intermediates were deleted, one for a "
        "GPU that the version has no engine for: farm submit, with that precision",
    )


def _made(
    session: Session, version_id: int, precision: Precision | None
) -> Iterator[tuple[Mapping[str, str], Mapping[str, Any]]]:
    """What jobs of the version's builds made, the newest first, with the builds' requests."""
    kinds = [JobKind.EXPORT] if precision is None else [JobKind.CAST, JobKind.CALIBRATE]
    found = (
        select(Job.outputs, Build.request)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .join(Build, Build.id == BuildJob.build_id)
        .where(
            Build.version_id == version_id,
            Job.kind.in_(kinds),
            Job.state == JobState.SUCCEEDED,
            Job.outputs.is_not(None),
        )
        .order_by(Build.id.desc(), Job.id.desc())
    )
    if precision is not None:
        found = found.where(Job.precision == precision)
    # The first will nearly always do, and requests may be large.
    for row in session.execute(found.execution_options(yield_per=_AT_ONCE)):
        yield row.outputs, row.request


def _command(file_name: str, request: Mapping[str, Any], *, typed: bool) -> str:
    """``trtexec`` with the shapes of the request's first profile."""
    words = ["trtexec", f"--onnx={file_name}", f"--saveEngine={file_name[:-5]}.engine"]
    words += ["--stronglyTyped"] if typed else []
    [profile] = request.get("profiles", [])[:1] or [{}]
    for option, bound in (("minShapes", "min"), ("optShapes", "opt"), ("maxShapes", "max")):
        shapes = [f"{name}:{_shape(range_[bound])}" for name, range_ in profile.items()]
        words += [f"--{option}={','.join(shapes)}"] if shapes else []
    return shlex.join(words)


def _shape(sizes: list[int]) -> str:
    return "x".join(map(str, sizes)) or "1"
