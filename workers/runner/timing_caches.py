"""A worker's part in the fleet's timing caches: gives a build the newest and merges its timings back.

A build never fails because of its cache: a fault goes to the job's log, and the next build times those
kernels again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import FarmError
from farm.fleet import timing_caches
from farm.fleet.timing_caches import Revision, Timed
from farm.queue import jobs
from farm.queue.jobs import Claim
from farm.specs.roles import Role
from farm.specs.runtime import Runtime
from farm.stages import JobKind
from workers.backends.trt import build
from workers.runner import toolchain
from workers.runner.app import Context
from workers.runner.child import Child
from workers.runner.hooks import Part
from workers.runner.inside import Link
from workers.runner.made import Made
from workers.sandbox import folder

log = logging.getLogger(__name__)

_RACES = 10
_COMBINE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The fleet's cache that a build starts from."""

    timed: Timed
    revision: Revision
    digest: str | None  #: None if there is none yet, or its blob is gone

    def as_facts(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "revision": self.revision.number if self.digest else None,
        }


class Cache(Part):
    """The hook's part in a build; other jobs have none."""

    def __init__(self, context: Context, claim: Claim) -> None:
        self._context = context
        self._claim = claim
        self._offer = offer(context, claim)
        self._timed: tuple[Path, Mapping[str, Any]] | None = None
        if self._offer and self._offer.digest:
            self.blobs = {Role.TIMING_CACHE: self._offer.digest}

    def made(self, made: Made) -> Made:
        """Drop the cache: its revisions aren't outputs of the job."""
        outputs = {role: path for role, path in made.outputs.items() if role != Role.TIMING_CACHE}
        timed = made.outputs.get(Role.TIMING_CACHE)
        if timed is None or self._offer is None:
            return Made(outputs=outputs, facts=made.facts)
        facts = made.facts["timing_cache"] | self._offer.as_facts()
        self._timed = timed, facts
        return Made(outputs=outputs, facts={**made.facts, "timing_cache": facts})

    def kept(self) -> None:
        if self._offer and self._timed:
            merge(self._context, self._claim, self._offer, *self._timed)


def offer(context: Context, claim: Claim) -> Offer | None:
    """The newest cache for a TensorRT build; None for other jobs and for builds that opt out."""
    timed = _timed(context, claim)
    if timed is None:
        return None
    try:
        with context.db.write() as session:
            revision = timing_caches.newest(session, timed)
        is_here = revision.digest is not None and context.store.has(revision.digest)
    except FarmError as err:
        log.warning("%s: without a timing cache: %s", claim.title, err.detail)
        return None
    if revision.digest and not is_here:
        # Deleted behind the farm's back: this build's cache replaces it.
        log.warning("%s: its timing cache %s is gone", claim.title, revision.digest)
    return Offer(timed=timed, revision=revision, digest=revision.digest if is_here else None)


def _timed(context: Context, claim: Claim) -> Timed | None:
    if claim.kind != JobKind.BUILD or context.gpu is None:
        return None
    if claim.params["target"]["runtime"] != Runtime.TENSORRT:
        return None  # TensorRT-RTX times nothing at build time: its cache is empty
    if not claim.params["options"].get("timing_cache", True):
        return None
    return Timed(
        gpu=context.gpu.name,
        compute_capability=context.gpu.compute_capability,
        tensorrt=toolchain.installed().get("tensorrt", "unknown"),
        cuda=toolchain.cuda_of_tensorrt(),
    )


def merge(
    context: Context, claim: Claim, offer: Offer, made: Path, facts: Mapping[str, Any]
) -> None:
    """Merge a build's timings into the fleet's cache. Never raises an error that would fail the build."""
    try:
        if facts["hit"]:
            with context.db.write() as session:
                timing_caches.count_hit(session, offer.timed)
        elif not _add(context, offer, made, facts["entries_after"]):
            _tell(context, claim, "what this build has timed doesn't go with the fleet's cache")
    except FarmError as err:
        _tell(context, claim, f"what this build has timed isn't in the fleet's cache: {err.detail}")


def _add(context: Context, offer: Offer, made: Path, entries: int | None) -> bool:
    """Compare and set; the loser of a race merges both caches and retries."""
    revision, beside = offer.revision, made.parent
    for race in range(_RACES):
        stored = context.store.take(made)
        with context.db.write() as session:
            if timing_caches.replace(
                session,
                offer.timed,
                instead_of=revision,
                digest=stored.digest,
                size=stored.bytes,
                entries=entries,
            ):
                return True
            revision = timing_caches.newest(session, offer.timed)
        made = beside / f"combined-{race}"
        with (
            context.store.local(stored.digest) as mine,
            context.store.local(revision.digest or "") as newest,
        ):
            combined = _combined(context, newest, mine, made)
        if not combined["done"]:
            return False
        entries = combined["entries"]
    raise FarmError(f"other builds were quicker {_RACES} times")


def _combined(context: Context, newest: Path, mine: Path, made: Path) -> dict[str, Any]:
    argument = {"newest": str(newest), "mine": str(mine), "made": str(made)}
    sandbox = context.sandbox(made.parent, (newest, mine), timeout_s=_COMBINE_S)
    with Child(_combine, argument, timeout_s=_COMBINE_S, sandbox=sandbox) as child:
        for _ in child.events():
            if context.stopping.is_set():
                raise FarmError("the worker shuts down")
        match child.result():
            case {"done": True, "entries": int() | None as entries}:
                folder.checked(str(made), made.parent)
                return {"done": True, "entries": entries}
        return {"done": False}


def _combine(argument: Mapping[str, str], _link: Link) -> dict[str, Any]:
    """Merge in a child, since this loads TensorRT and so takes the GPU."""
    newest, mine = (Path(argument[name]).read_bytes() for name in ("newest", "mine"))
    combined = build.combine_timing_caches(newest, mine)
    if combined is None:
        return {"done": False}
    data, entries = combined
    Path(argument["made"]).write_bytes(data)
    return {"done": True, "entries": entries}


def _tell(context: Context, claim: Claim, what: str) -> None:
    log.warning("%s: %s", claim.title, what)
    try:
        with context.db.write() as session:
            jobs.report(session, claim.job_id, claim.attempt, text=f"timing cache: {what}\n")
    except FarmError as err:  # the log matters no more than the cache
        log.warning("%s", err.detail)
