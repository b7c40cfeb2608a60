"""Why a job ran or was reused, compared with the closest earlier job, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Build, BuildJob, Job
from farm.errors import NotFound
from farm.planning.differences import differences
from farm.planning.recipe import Recipe
from farm.reports import kept
from farm.schemas.builds import Explanation, JobReason
from farm.specs.states import Reuse

#: How many earlier jobs of the same kind are compared.
_CANDIDATES = 200


def explain(session: Session, build_id: str) -> Explanation:
    """Why each job of a build ran or was reused.

    Raises:
        NotFound
    """
    if session.get(Build, build_id) is None:
        raise NotFound(f"there is no build {build_id!r}", hint="`farm builds` lists them")
    pairs = session.execute(
        select(Job, BuildJob.reuse)
        .join(BuildJob, BuildJob.job_id == Job.id)
        .where(BuildJob.build_id == build_id)
        .order_by(BuildJob.position)
    ).all()
    earlier = _Earlier(session, [job for job, reuse in pairs if reuse == Reuse.RAN])
    return Explanation(build=build_id, jobs=[_reason(earlier, job, reuse) for job, reuse in pairs])


class _Earlier:
    """The jobs before a build's, read once per kind."""

    def __init__(self, session: Session, jobs: Sequence[Job]) -> None:
        of_kind: dict[str, list[int]] = {}
        for job in jobs:
            of_kind.setdefault(job.kind, []).append(job.id)
        self._jobs = {
            kind: session.scalars(
                select(Job)
                .where(Job.kind == kind, Job.id < max(ids))
                .order_by(Job.id.desc())
                .limit(_CANDIDATES + len(ids))
            ).all()
            for kind, ids in of_kind.items()
        }

    def of(self, job: Job) -> Iterable[Job]:
        """The latest of the same kind."""
        return islice((one for one in self._jobs[job.kind] if one.id < job.id), _CANDIDATES)


def _reason(earlier: _Earlier, job: Job, reuse: str) -> JobReason:
    nearest, differs = (None, []) if reuse != Reuse.RAN else _nearest(earlier, job)
    why = {
        Reuse.CACHED: f"job {job.id} of the same key had already succeeded",
        Reuse.JOINED: f"job {job.id} of the same key was already queued or running",
    }.get(Reuse(reuse))
    if why is None:
        why = _why_it_ran(nearest, differs)
    return JobReason(
        job=job.id,
        title=job.title,
        reuse=reuse,
        why=why,
        nearest=nearest.id if nearest else None,
        differs=differs,
    )


def _why_it_ran(nearest: Job | None, differs: list[str]) -> str:
    if nearest is None:
        return "no earlier job of this kind"
    if not differs:
        return f"job {nearest.id} of the same key had {nearest.state}"
    return f"differs from job {nearest.id}: {'; '.join(differs)}"


def _nearest(earlier: _Earlier, job: Job) -> tuple[Job | None, list[str]]:
    """The earlier job of the same kind with the fewest differences, the latest of them."""
    recipe = Recipe.read(job.recipe)
    ranked = [
        (list(differences(Recipe.read(old.recipe), recipe, _samples(old, job))), old)
        for old in earlier.of(job)
    ]
    if not ranked:
        return None, []
    differs, nearest = min(ranked, key=lambda pair: len(pair[0]))
    return nearest, differs


def _samples(old: Job, new: Job) -> str:
    """How many samples each of two jobs used, as far as they recorded it."""
    before, after = (kept.shown(job.facts).get("samples") for job in (old, new))
    if not isinstance(before, int) or not isinstance(after, int) or before == after:
        return ""
    return f" ({before} → {after} samples)"
