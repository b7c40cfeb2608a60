"""The one task: claims a job, runs its stage in a child, and finishes it if it is still held."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery, Task
from sqlalchemy.orm import Session

from farm import logs
from farm.daemon import scrub
from farm.errors import (
    BlobDamaged,
    DatabaseUnavailable,
    FarmError,
    InternalError,
    LeaseLost,
    StorageFull,
    StorageUnavailable,
    Unavailable,
)
from farm.queue import jobs, leases
from farm.queue.celery_app import TASK
from farm.queue.jobs import Claim, Output
from farm.queue.turns import Bell
from farm.stages import JobKind
from workers.runner import (
    claims,
    inputs,
    kept_peers,
    plugins,
    stage_spans,
    timing_caches,
    toolchain,
)
from workers.runner.app import Context
from workers.runner.child import Child, await_preload
from workers.runner.hooks import Hook, Part
from workers.runner.inside import Link, peak_memory_bytes
from workers.runner.made import Made, made_of
from workers.runner.watch import Stopping, Watch, ended_together
from workers.sandbox import folder
from workers.stages.base import StageRequest, run_request

log = logging.getLogger(__name__)

_SHUN_S = 60.0  #: how long to avoid a job to be retried that failed because of this machine
_PASS_ON_S = 0.5

#: Take part in jobs alongside their stages.
HOOKS: Sequence[Hook] = (timing_caches.Cache, kept_peers.Peers, plugins.Libraries)


class _OtherTools(Exception):
    """This worker lacks the tools that the job was planned with."""


class _Cancelled(Exception):
    """No build needs the job any more."""


def register(app: Celery, context: Context) -> None:
    """Add the task to a worker's application."""

    # Failures are ordinary results: the log needs no traceback. Celery's own events are about messages, while
    # Flower shows attempts.
    @app.task(  # type: ignore[untyped-decorator]
        name=TASK,
        bind=True,
        throws=(FarmError, _OtherTools),
        send_events=False,
        Request=context.flower.request_class(),
    )
    def run(task: Task[Any, Any], job_id: int, _attempt: int) -> str:
        if type(job_id) is not int or not 0 < job_id < 2**63:
            return "no job's id"  # the farm never sends such a message
        return _run(task.request.id, context, job_id)


def _run(message_id: str, context: Context, job_id: int) -> str:
    # A lease that ran while frameworks are still being imported would expire before the job starts.
    await_preload()
    if not context.store_watch.is_usable():
        return _left_without_store(context, job_id)
    try:
        claim = claims.claim(context, job_id)
    except DatabaseUnavailable as err:
        log.warning("job %s isn't claimed, the sweep rings for it again: %s", job_id, err.detail)
        return "not claimed: the database is away"
    except claims.ForOthers as err:
        context.stopping.wait(_PASS_ON_S)  # otherwise it would come back here at once
        claims.pass_on(context, err.job_id)
        return "left for another worker, since something failed it here"
    if claim is None:
        return "nothing to claim"
    context.held[claim.job_id] = claim.attempt
    context.flower.began(message_id, claim)
    try:
        with logs.handling(**_fields(claim)):
            return _run_claimed(context, job_id, claim)
    finally:
        context.flower.left(message_id)
        # During a shutdown, jobs given back are released once the worker has ended.
        if not context.stopping.is_set():
            context.held.pop(claim.job_id, None)


def _left_without_store(context: Context, job_id: int) -> str:
    context.stopping.wait(_PASS_ON_S)  # otherwise it would come back here at once
    with suppress(DatabaseUnavailable):
        if claims.others_may(context, job_id):
            claims.pass_on(context, job_id)
            return "left for another worker: the store can't be used here"
    return "not claimed: the store can't be used; the sweep rings again"


def _fields(claim: Claim) -> dict[str, object]:
    return {
        "build": claim.build,
        "job": claim.job_id,
        "attempt": claim.attempt,
        "stage": claim.kind,
    }


def _run_claimed(context: Context, job_id: int, claim: Claim) -> str:
    log.info("%s begins", claim.title)
    # If the message named a job that isn't first in line any more, that one waits for another message.
    if claim.job_id != job_id and not claim.announced:
        claims.pass_on(context, job_id)
    flower = context.flower
    try:
        with stage_spans.attempt(claim), ended_together(context.stopping):
            _work(context, claim)
    except _Cancelled:
        flower.cancelled(claim)
        return "cancelled"
    except Stopping:
        flower.interrupted(claim, f"worker {context.worker} shuts down")
        return "given back: the worker shuts down"
    except _OtherTools as err:
        log.warning("%s: %s", claim.title, err)
        cause = str(err)
        _end(context, lambda session: leases.leave(session, claim.job_id, claim.attempt, cause))
        flower.interrupted(claim, cause)
        raise
    except FarmError as err:
        _end_failed(context, claim, err)
        flower.failed(claim, err)
        raise
    except Exception as err:
        bug = InternalError(f"the worker has a bug here: {err!r}")
        _fail(context, claim, bug)
        flower.failed(claim, bug)
        raise
    log.info("%s succeeded", claim.title)
    flower.succeeded(claim)
    return "succeeded"


def _end_failed(context: Context, claim: Claim, err: FarmError) -> None:
    """End an attempt at a job that didn't succeed: there is another one if it may help."""
    if isinstance(err, LeaseLost):
        log.warning("%s: the result is refused", err.detail)
        return
    if isinstance(err, Unavailable):
        log.warning("%s is interrupted: %s", claim.title, err.detail)
        if isinstance(err, StorageUnavailable | StorageFull):
            context.store_watch.doubt()
        context.shunned[claim.job_id] = time.monotonic() + _SHUN_S
        _interrupt(context, claim, err)
        return
    if isinstance(err, BlobDamaged):
        # Don't rely on the child: it may report a sound blob as damaged.
        copies = [one for one in claim.inputs.values() if context.store.drop_wrong_copy(one)]
        damaged = [d for d in claim.inputs.values() if not scrub.is_right(context.store, d)]
        if copies and not damaged:
            here = StorageUnavailable(f"this machine's copy of {copies[0]} was damaged")
            _interrupt(context, claim, here)
            return
        claims.insist(context, lambda session: scrub.quarantine(session, context.store, damaged))
    _fail(context, claim, err)


def _interrupt(context: Context, claim: Claim, error: Unavailable) -> None:
    _end(
        context,
        lambda session: leases.interrupt(
            session,
            claim.job_id,
            claim.attempt,
            error,
            max_attempts=context.settings.max_attempts,
            wait_s=(context.settings.retry_first_s, context.settings.retry_longest_s),
        ),
    )


def _fail(context: Context, claim: Claim, error: FarmError) -> None:
    log.warning("%s failed: %s: %s", claim.title, error.code, error.detail)
    _end(context, lambda session: jobs.fail(session, claim.job_id, claim.attempt, error))


def _end(context: Context, work: Callable[[Session], None]) -> None:
    try:
        claims.insist(context, work)
    except LeaseLost as err:
        log.warning("%s: its result is discarded", err.detail)


def _ring(context: Context, ready: Sequence[Bell]) -> None:
    try:
        context.doorbell.ring(ready)
    except Unavailable as err:
        log.warning("%s; the sweep rings for %s", err.detail, [bell.title for bell in ready])


def _work(context: Context, claim: Claim) -> None:
    """Run the job's stage, finish it, and ring for the jobs that became ready.

    Raises:
        FarmError: the attempt has failed or can't be finished.
        Stopping, _OtherTools, _Cancelled
    """
    if context.stopping.is_set():
        raise Stopping  # what it would be forked from may be gone, and take longer to start than is left
    _check_toolchain(claim)
    began = time.monotonic()
    with context.left.leaving() as leave_slot, _workdir(context, claim) as workdir:
        parts = [hook(context, claim) for hook in HOOKS]
        request = _request(context, claim, workdir, parts)
        timeout_s = context.settings.timeout_s(request.kind)
        with (
            stage_spans.stage(claim) as phases,
            Child(
                _run_stage,
                request,
                timeout_s=timeout_s,
                siblings=context.siblings,
                sandbox=context.sandbox(workdir, request.inputs.values(), timeout_s=timeout_s),
                log_bytes=context.settings.job_log_bytes,
            ) as child,
        ):
            cancelled = Watch(context, claim, phases).follow(child)
            if cancelled:
                child.end()
                claims.insist(
                    context,
                    lambda session: jobs.end_cancelled(session, claim.job_id, claim.attempt),
                )
                raise _Cancelled
            try:
                result = child.result()
            except FarmError:
                inputs.require(request.inputs.values())
                raise
            made = made_of(result, request.kind, workdir)
        if context.gpu is None:  # nothing else works beside a job that is measured on a GPU
            leave_slot()
        for part in parts:
            made = part.made(made)
        ready = _keep(context, claim, made, took_s=time.monotonic() - began)
        for part in parts:
            part.kept()
        _ring(context, ready)  # before the folder goes, which takes as long as they wait


def _keep(context: Context, claim: Claim, made: Made, *, took_s: float) -> list[Bell]:
    """Store what was made, and finish the job with it; return the bells of those that became ready.

    Parameters:
        took_s: how long it took to make.
    """
    outputs = {}
    with context.transfers.leased(claim) as lost:
        insist = partial(context.transfers.insist, lost=lost, took_s=took_s)
        for role, path in made.outputs.items():
            stored = insist(partial(context.store.take, path))
            outputs[role] = Output(digest=stored.digest, bytes=stored.bytes)

    def are_there() -> bool:
        return all(context.store.has(output.digest) for output in outputs.values())

    def require_outputs() -> None:
        # After an hour, garbage collection may have taken outputs that nothing refers to yet.
        if not insist(are_there):
            raise StorageUnavailable("the store has lost what was made")

    def succeed(session: Session) -> list[Bell]:
        return jobs.succeed(
            session, claim.job_id, claim.attempt, outputs=outputs, facts=dict(made.facts)
        )

    # Not within: the store may be the API, which has to write, too.
    return claims.insist(context, succeed, before=require_outputs)


def _run_stage(request: StageRequest, link: Link) -> dict[str, Any]:
    """Run the stage, in the child, and add its peak memory to the facts."""
    made = run_request(request, link.progress, link.quiet)
    made["facts"]["peak_memory_bytes"] = peak_memory_bytes()
    return made


def _check_toolchain(claim: Claim) -> None:
    """Refuse a job planned with other tools: its key would promise something untrue."""
    here = toolchain.installed()
    other = [
        f"{tool} {planned} → {here.get(tool, 'none')}"
        for tool, planned in claim.toolchain.items()
        if planned not in ("any", here.get(tool))
    ]
    if other:
        raise _OtherTools(f"planned with another toolchain: {', '.join(other)}")


@contextmanager
def _workdir(context: Context, claim: Claim) -> Iterator[Path]:
    """A private folder for the child; kept after a failure if the settings say so."""
    path = context.workdirs / f"{claim.job_id}-{claim.attempt}"
    path.mkdir(parents=True)
    kept = context.settings.keep_workdirs
    try:
        yield path
        kept = False
    finally:
        if not kept:
            folder.remove(path)
            folder.remove(_inputs_folder(path))
            if context.settings.keep_workdirs:
                _request_file(path).unlink(missing_ok=True)


def _inputs_folder(workdir: Path) -> Path:
    """The folder for a stage's inputs: beside its own, where it can't write."""
    return workdir.with_suffix(".inputs")


def _request_file(workdir: Path) -> Path:
    """The file for a failed stage's request, beside the stage's folder."""
    return workdir.with_suffix(".json")


def _request(context: Context, claim: Claim, workdir: Path, parts: Sequence[Part]) -> StageRequest:
    """The child's request: the job's own inputs, and those of the hooks."""
    blobs = dict(claim.inputs)
    placed: dict[str, Path] = {}
    for part in parts:
        blobs |= part.blobs
        placed |= part.place(workdir)
    with context.transfers.leased(claim):
        held = inputs.hold(context.store, blobs, _inputs_folder(workdir))
    request = StageRequest(
        kind=JobKind(claim.kind),
        params=dict(claim.params),
        inputs=held | placed,
        workdir=workdir,
        digests=dict(claim.inputs),
        timing_share=context.settings.cpu_timing_share,
    )
    if context.settings.keep_workdirs:
        file = _request_file(workdir)
        file.write_text(request.model_dump_json(indent=2))
        log.info("%s by hand: python -m workers.stages '%s'", claim.title, file)
    return request
