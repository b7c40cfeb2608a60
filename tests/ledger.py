"""A farm without processes: submissions and job ends against a real database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from farm.builds import loaded, replan, views
from farm.builds.cancel import cancel_build
from farm.builds.submit import Terms, submit_build
from farm.database.session import Database
from farm.database.tables import Artifact, BuildJob, Job
from farm.errors import FarmError
from farm.fleet import workers
from farm.fleet.workers import Announcement, Fleet
from farm.formats.sources import Look
from farm.queue import jobs, leases, turns
from farm.queue.jobs import Claim, Output
from farm.queue.turns import Bell
from farm.schemas.builds import BuildView
from farm.schemas.submission import BuildRequest
from farm.specs.gates import GateSet
from farm.specs.runtime import Runtime

#: For how long a worker that a test has announced is online, however slow its machine.
TTL_S = 240.0
SOURCE, DATA, LABELLED = (f"sha256:{digit * 64}" for digit in "123")
TOOLCHAIN = {"torch": "2.13.0", "onnx": "1.23.2", "onnxruntime": "1.31.1", "tensorrt-rtx": "1.7.1"}


@dataclass
class Ledger:
    """Drives builds by their ledger alone, playing client and worker."""

    db: Database
    ready: Sequence[Bell] = ()  #: what the last submission rings for
    facts: Mapping[str, Any] = field(default_factory=dict)  #: of every job, besides the usual ones

    def fleet(self, session) -> Fleet:
        return Fleet.load(session, ttl_s=TTL_S)

    def worker(
        self, name="cpu@here", queues=("cpu", "tensorrt-rtx.cpu", "onnxruntime.cpu"), **more
    ):
        given = {"gpu": None, "gpu_uuid": None, "tags": ("cpu",), "toolchain": TOOLCHAIN} | more
        with self.db.write() as session:
            workers.announce(
                session,
                Announcement(name=name, host="here", queues=tuple(queues), runtimes={}, **given),
            )

    def upload(self, number: int) -> dict[str, str]:
        """A source of its own, so that builds share no work."""
        digest = f"sha256:{number:064x}"
        with self.db.write() as session:
            session.add(Artifact(digest=digest, bytes=1))
        return {"digest": digest, "format": "onnx"}

    def submit(
        self,
        idempotency_key=None,
        client="",
        plugin_keys=(),
        held_to=GateSet(),
        look=Look(),
        **changes,
    ) -> str:
        request = BuildRequest.model_validate(
            {
                "model": "digits",
                "source": {"digest": SOURCE, "format": "onnx"},
                "precisions": ["fp16"],
                "targets": ["sm_89"],
            }
            | changes
        )
        with self.db.write() as session:
            submitted = submit_build(
                session,
                request,
                Terms(
                    fleet=self.fleet(session),
                    runtimes=(Runtime.TENSORRT, Runtime.TENSORRT_RTX),
                    plugin_keys=plugin_keys,
                    gates=held_to,
                ),
                look=look,
                client=client,
                idempotency_key=idempotency_key,
            )
        self.ready = submitted.ready
        return submitted.build_id

    def view(self, build_id: str) -> BuildView:
        with self.db.read() as session:
            return views.build(loaded.load(session, build_id), self.fleet(session))

    def states(self, build_id: str) -> dict[str, str]:
        return {job.title: job.state.value for job in self.view(build_id).jobs}

    def cancel(self, build_id: str) -> None:
        with self.db.write() as session:
            cancel_build(session, build_id)

    def retry(self, build_id: str, *, force: bool = False) -> None:
        with self.db.write() as session:
            replan.retry_build(session, build_id, fleet=self.fleet(session), force=force)

    def queued(self) -> list[Job]:
        with self.db.read() as session:
            return list(session.scalars(select(Job).where(Job.state == "queued").order_by(Job.id)))

    def claim(self, job: Job, owner="cpu@here", lease_s=30.0) -> Claim | None:
        with self.db.write() as session:
            return jobs.claim(session, job.id, job.attempt, owner=owner, lease_s=lease_s)

    def first_in_line(self, queue="cpu") -> Job | None:
        """What a message for any job of the queue makes a worker do."""
        with self.db.write() as session:
            anyone = session.scalar(select(Job.id).where(Job.queue == queue).limit(1))
            values = {"job_id": anyone} | turns.due(longest_s=60)
            first = session.scalar(turns.LINE, values)
            return session.get_one(Job, first) if first else None

    def reload(self, job: Job) -> Job:
        with self.db.read() as session:
            return session.get_one(Job, job.id)

    def claim_next(self, **options) -> Claim:
        claim = self.claim(self.queued()[0], **options)
        assert claim is not None
        return claim

    def succeed(
        self, claim: Claim, digest: str = "", doubts: Sequence[str] = (), **told
    ) -> list[Bell]:
        digest = digest or f"sha256:{'e' * 8}{claim.job_id:056d}"
        facts = (
            {
                "runtime_version": "1.7.1",
                "inputs": [],
                "outputs": [],
                "profiles": [],
                "accuracy": {"cosine": 1.0},
                "doubts": list(doubts),
                "metrics": None,
                "metrics_reason": "nobody measured",
                "run_ms": 1.0,
            }
            | dict(self.facts)
            | told
        )
        roles = {
            "prune": ["source"],
            "export": ["onnx"],
            "build": ["engine"],
            "measure": ["report"],
            "infer": ["outputs"],
        }
        outputs = roles.get(claim.kind, ["typed", "typed_fp16", "typed_half"])
        with self.db.write() as session:
            return jobs.succeed(
                session,
                claim.job_id,
                claim.attempt,
                outputs={role: Output(digest=digest, bytes=7) for role in outputs},
                facts=facts,
            )

    def fail(self, claim: Claim, error: FarmError) -> None:
        with self.db.write() as session:
            jobs.fail(session, claim.job_id, claim.attempt, error)

    def run_all(self, limit=100, doubts: Sequence[str] = (), **told) -> list[str]:
        """Run what is queued until nothing is; return the titles in the order they ran.

        Parameters:
            doubts: that every measurement has.
            told: facts of every job.
        """
        ran = []
        while queue := self.queued():
            claim = self.claim(queue[0])
            assert claim is not None
            self.succeed(claim, doubts=doubts, **told)
            ran.append(claim.title)
            assert len(ran) < limit
        return ran

    def reap(self, max_attempts=3) -> None:
        """What the sweep does when every worker has been silent for the time of a lease."""
        with self.db.read() as session:
            held = leases.running(session)
        for lease in held:
            with self.db.write() as session:
                leases.reap(session, lease, max_attempts=max_attempts)

    def jobs_of(self, build_id: str) -> Iterable[int]:
        with self.db.read() as session:
            return session.scalars(
                select(BuildJob.job_id).where(BuildJob.build_id == build_id)
            ).all()
