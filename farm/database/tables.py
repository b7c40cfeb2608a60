"""The tables."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    and_,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from farm.database.base import Base, Instant, now
from farm.database.declared import ANY, Holds, Names
from farm.specs.roles import GIVEN
from farm.specs.states import EngineState

# None is SQL's NULL, not JSON's null.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


# SQLite autoincrements only an INTEGER PRIMARY KEY.
BigId = BigInteger().with_variant(Integer(), "sqlite")


# SQLite ignores lengths, and would copy the table to change one.
PrecisionName = String(20).with_variant(String(10), "sqlite")


IS_KEPT = text("versions.deleted_at IS NULL")


class Model(Base):
    """A name under which versions are kept."""

    __tablename__ = "models"
    __table_args__ = (Index("uq_models_folded", "folded", unique=True),)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    #: `farm.specs.names.folded`; None for older names that differ from another in case alone.
    folded: Mapped[str | None] = mapped_column(String(100))
    note: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class Version(Base):
    """A source of a model; each new source gets the next number.

    The same bytes with different fixed inputs or another architecture are a different source. A deleted
    version stays as a row, for its builds and its number, and keeps nothing in the store.
    """

    __tablename__ = "versions"
    blobs = {"source_digest": Names(holds=Holds.SOURCE, only=IS_KEPT.text, comes_with="a build")}
    no_blobs = frozenset({"variant", "fixed_inputs", "architecture", "interface", "changes"})
    __table_args__ = (
        UniqueConstraint("model_id", "number"),
        UniqueConstraint("model_id", "source_digest", "variant"),
        Index("ix_versions_source_digest", "source_digest"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    source_digest: Mapped[str] = mapped_column(String(71))
    source_format: Mapped[str] = mapped_column(String(20))
    #: `farm.planning.keys.variant` of the columns below; empty if they are. ``deleted:7`` of a deleted
    #: version: its source may come again, as another one.
    variant: Mapped[str] = mapped_column(String(71), default="", server_default="")
    fixed_inputs: Mapped[dict[str, Any] | None] = mapped_column(Json)
    architecture: Mapped[dict[str, Any] | None] = mapped_column(Json)
    note: Mapped[str | None] = mapped_column(Text)
    #: A ``farm.reports.interfaces.Interface``: the model's, as the file says, or once exported the graph.
    interface: Mapped[dict[str, Any] | None] = mapped_column(Json)
    #: How it differs from that of the version before it, in words; None if it doesn't, or nobody knows.
    changes: Mapped[list[str] | None] = mapped_column(Json)
    #: Whether somebody said that it may.
    new_inputs: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    deleted_at: Mapped[datetime | None] = mapped_column(Instant)


class Label(Base):
    """A label of a model, a version or a build: one of the three ids is set."""

    __tablename__ = "labels"
    __table_args__ = (
        UniqueConstraint("model_id", "key"),
        UniqueConstraint("version_id", "key"),
        UniqueConstraint("build_id", "key"),
        Index("ix_labels_key_value", "key", "value"),
    )
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"))
    build_id: Mapped[str | None] = mapped_column(ForeignKey("builds.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(100))
    value: Mapped[str] = mapped_column(String(200))


class GoalRow(Base):
    """What a version's engines for a GPU are ranked by, as the newest bench that named a goal set it."""

    __tablename__ = "goals"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    gpu: Mapped[str] = mapped_column(String(100), primary_key=True)
    aim: Mapped[str] = mapped_column(String(20))
    batch: Mapped[int | None]


class AliasRow(Base):
    """A name for one version of a model, such as ``prod``."""

    __tablename__ = "aliases"
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))  #: None once deleted
    revision: Mapped[int]  #: the number of its moves


class AliasMove(Base):
    """A move of an alias. Never changed."""

    __tablename__ = "alias_moves"
    no_blobs = frozenset({"left_out"})
    __table_args__ = (
        ForeignKeyConstraint(["model_id", "name"], ["aliases.model_id", "aliases.name"]),
    )
    model_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    action: Mapped[str] = mapped_column(String(10))
    version_id: Mapped[int | None] = mapped_column(
        ForeignKey("versions.id")
    )  #: None if it was deleted
    before_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))  #: None without one
    who: Mapped[str] = mapped_column(String(400))
    note: Mapped[str | None] = mapped_column(Text)
    #: As ``farm.schemas.aliases.Lack``.
    left_out: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    at: Mapped[datetime] = mapped_column(Instant, default=now)


class Yank(Base):
    """A version, or an engine of one, that pulls no longer take by default."""

    __tablename__ = "yanks"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    #: Of an engine, ``farm.registry.rows.SAME``; empty for the whole version.
    same: Mapped[str] = mapped_column(String(100), primary_key=True, default="")
    reason: Mapped[str] = mapped_column(Text)
    who: Mapped[str] = mapped_column(String(400))
    at: Mapped[datetime] = mapped_column(Instant, default=now)


class Artifact(Base):
    """A blob in the store that the farm knows."""

    __tablename__ = "artifacts"
    no_blobs = frozenset({"digest"})  # it is the blob
    __table_args__ = (Index("ix_artifacts_owner_bytes", "owner", "bytes"),)
    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    #: The client (`farm.trust.callers`) that stored it first; None if nobody is known to have.
    owner: Mapped[str | None] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    lost_at: Mapped[datetime | None] = mapped_column(
        Instant
    )  #: when it was found damaged; None once it was stored again


class Upload(Base):
    """An upload that counts for its client: no build has used it yet, or it is still arriving."""

    __tablename__ = "uploads"
    no_blobs = frozenset({"digest"})  # nothing is kept for it
    __table_args__ = (Index("ix_uploads_owner", "owner"), Index("ix_uploads_digest", "digest"))
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))  #: the key, or without one the address
    digest: Mapped[str | None] = mapped_column(
        ForeignKey("artifacts.digest", ondelete="CASCADE")
    )  #: None while it arrives
    bytes: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(Instant, default=now)


class KnownStore(Base):
    """The store that holds the artifacts."""

    __tablename__ = "stores"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class Build(Base):
    """What a client asked for: one model version × precisions × targets."""

    __tablename__ = "builds"
    blobs = {
        "request": Names(
            holds=Holds.DATA,
            paths=tuple((role, "digest") for role in GIVEN),
            only="builds.version_id NOT IN (SELECT id FROM versions WHERE deleted_at IS NOT NULL)",
            newer="id",
        )
    }
    no_blobs = frozenset({"gates", "left_out", "trace"})
    __table_args__ = (
        Index("ix_builds_version_id_id", "version_id", "id"),
        Index("ix_builds_state_id", "state", "id"),
    )
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    state: Mapped[str] = mapped_column(String(20))
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    priority: Mapped[int]
    client: Mapped[str] = mapped_column(
        String(100), default=""
    )  #: whose turn it takes in the queues
    idempotency_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    gates: Mapped[dict[str, Any] | None] = mapped_column(Json)  #: gates its engines must pass
    #: Of a bench, or a build that skips the unsupported: what isn't built, as ``schemas.builds.LeftOut``.
    left_out: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    #: Its span, as ``farm.tracing.spans.reserved``; None if nobody traces it.
    trace: Mapped[dict[str, str] | None] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    finished_at: Mapped[datetime | None] = mapped_column(Instant)


#: Whether a version's inputs or outputs are other ones, and nobody said that they may be.
HELD_BACK = and_(Version.changes.is_not(None), ~Version.new_inputs)


# Conditions of the partial indexes. Queries must use the same text: with a bound parameter SQLite can't tell
# that an index applies.
IS_USABLE = text("jobs.state NOT IN ('failed', 'cancelled')")


IS_QUEUED = text("jobs.state = 'queued'")


IS_RUNNING = text("jobs.state = 'running'")


IS_OUTDATED = text("jobs.outdated IS NOT NULL")


IS_IN_LINE = text("jobs.state IN ('waiting', 'queued')")


#: Whether it once succeeded, whatever became of its outputs: it says how long its like take.
HAS_RUN = text("jobs.facts IS NOT NULL AND jobs.started_at IS NOT NULL")
IS_LIVE = text("jobs.state IN ('waiting', 'queued', 'running')")


class Job(Base):
    """A unit of work, identified by what it does. Failed and cancelled rows are history."""

    __tablename__ = "jobs"
    blobs = {
        "recipe": Names(
            holds=Holds.INPUT,
            paths=(("inputs", ANY),),
            only="jobs.state IN ('waiting', 'queued', 'running')",
            comes_with="a build",
        ),
        "outputs": Names(
            holds=Holds.OUTPUT,
            paths=((ANY,),),
            only="jobs.state = 'succeeded'",
            newer="finished_at",
        ),
    }
    no_blobs = frozenset({"key", "facts", "error", "trace"})
    __table_args__ = (
        # Single flight: at most one job per key is live or has succeeded.
        Index(
            "uq_jobs_key_usable",
            "key",
            unique=True,
            sqlite_where=IS_USABLE,
            postgresql_where=IS_USABLE,
        ),
        Index("ix_jobs_kind_id", "kind", "id"),
        Index("ix_jobs_finished_at", "finished_at"),
        # For taking turns in a queue: the job started last, and a client's newest.
        Index("ix_jobs_queue_priority_started_at", "queue", "priority", "started_at"),
        Index(
            "ix_jobs_queue_client_place",
            "queue",
            "client",
            "place",
            sqlite_where=IS_IN_LINE,
            postgresql_where=IS_IN_LINE,
        ),
        # A job's like, nearest by size.
        Index(
            "ix_jobs_like",
            "kind",
            "runtime",
            "precision",
            "source_bytes",
            "id",
            sqlite_where=HAS_RUN,
            postgresql_where=HAS_RUN,
        ),
        # What workers do now.
        Index(
            "ix_jobs_running_queue",
            "queue",
            sqlite_where=IS_RUNNING,
            postgresql_where=IS_RUNNING,
        ),
        # Jobs that wait to be announced.
        Index(
            "ix_jobs_rung_at",
            "rung_at",
            sqlite_where=IS_QUEUED,
            postgresql_where=IS_QUEUED,
        ),
        Index(
            "ix_jobs_outdated",
            "outdated",
            sqlite_where=IS_OUTDATED,
            postgresql_where=IS_OUTDATED,
        ),
        # What monitoring asks, without reading the rows.
        Index(
            "ix_jobs_live",
            "state",
            "queue",
            "kind",
            "queued_at",
            sqlite_where=IS_LIVE,
            postgresql_where=IS_LIVE,
        ),
        # The order in which a queue's jobs are claimed.
        Index(
            "ix_jobs_queue_place_id",
            "queue",
            "place",
            "id",
            sqlite_where=IS_QUEUED,
            postgresql_where=IS_QUEUED,
        ),
    )
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    key: Mapped[str] = mapped_column(String(71))
    kind: Mapped[str] = mapped_column(String(20))
    title: Mapped[str] = mapped_column(String(250))
    state: Mapped[str] = mapped_column(String(20))
    recipe: Mapped[dict[str, Any]] = mapped_column(Json)  #: what the key covers
    runtime: Mapped[str | None] = mapped_column(String(20))
    target: Mapped[str | None] = mapped_column(String(60))
    precision: Mapped[str | None] = mapped_column(PrecisionName)
    #: Of its build's source; None if it has none, or of jobs from before this was kept.
    source_bytes: Mapped[int | None] = mapped_column(BigInteger)
    queue: Mapped[str] = mapped_column(String(80))
    priority: Mapped[int]
    client: Mapped[str] = mapped_column(
        String(100), default=""
    )  #: client of the build that created it
    place: Mapped[int] = mapped_column(
        BigInteger, default=0
    )  #: position in the queue: `farm.queue.turns`
    needs: Mapped[int] = mapped_column(default=0)  #: inputs that haven't succeeded yet
    attempt: Mapped[int] = mapped_column(default=1)
    first_attempt: Mapped[int] = mapped_column(default=1)
    queued_at: Mapped[datetime | None] = mapped_column(Instant)  #: since when it can run
    rung_at: Mapped[datetime | None] = mapped_column(Instant)  #: when its message was last sent
    not_before: Mapped[datetime | None] = mapped_column(Instant)  #: when it may be tried again
    owner: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None] = mapped_column(Instant)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    #: How its tools differ from those of the worker that left it, until its builds are replanned.
    outdated: Mapped[str | None] = mapped_column(String(200))
    phase: Mapped[str | None] = mapped_column(String(100))
    progress: Mapped[float | None]
    outputs: Mapped[dict[str, str] | None] = mapped_column(Json)  #: role → digest
    facts: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    #: Headers that name the span below which its attempts are: of its first build, or its request.
    trace: Mapped[dict[str, str] | None] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    finished_at: Mapped[datetime | None] = mapped_column(Instant)


class GpuTime(Base):
    """How long a key's jobs took GPUs, by the day of UTC on which they ended. Jobs may be gone by then."""

    __tablename__ = "gpu_times"
    client: Mapped[str] = mapped_column(String(100), primary_key=True)  #: as ``Job.client``
    day: Mapped[date] = mapped_column(primary_key=True)
    seconds: Mapped[float]


class SharedParameter(Base):
    """A large parameter, stored once: recipes refer to it by digest."""

    __tablename__ = "shared_parameters"
    no_blobs = frozenset({"digest", "value"})  # of the value, which is in the database
    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    value: Mapped[Any] = mapped_column(Json)


class JobInput(Base):
    """An edge: a job takes another's output."""

    __tablename__ = "job_inputs"
    __table_args__ = (Index("ix_job_inputs_needs_id", "needs_id"),)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(30), primary_key=True)
    needs_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    output: Mapped[str] = mapped_column(String(30))


class BuildJob(Base):
    """A job that a build needs, and whether it ran, joined or reused it."""

    __tablename__ = "build_jobs"
    __table_args__ = (Index("ix_build_jobs_job_id", "job_id"),)
    build_id: Mapped[str] = mapped_column(ForeignKey("builds.id"), primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    reuse: Mapped[str] = mapped_column(String(10))
    position: Mapped[int]


class Wanted(Base):
    """An engine that a build asks for: one precision × target."""

    __tablename__ = "wanted_engines"
    __table_args__ = (
        Index("ix_wanted_engines_build_job_id", "build_job_id"),
        Index("ix_wanted_engines_measure_job_id", "measure_job_id"),
    )
    build_id: Mapped[str] = mapped_column(ForeignKey("builds.id"), primary_key=True)
    target: Mapped[str] = mapped_column(String(60), primary_key=True)
    precision: Mapped[str] = mapped_column(PrecisionName, primary_key=True)
    asked: Mapped[str] = mapped_column(String(100))
    why: Mapped[str] = mapped_column(Text)
    build_job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    measure_job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    engine_id: Mapped[str | None] = mapped_column(ForeignKey("engines.id"))


class EngineRow(Base):
    """The registry: an engine, checked against its model. Never changed."""

    __tablename__ = "engines"
    blobs = {"digest": Names(holds=Holds.ENGINE, comes_with="an output of a job")}
    no_blobs = frozenset({"accuracy", "metrics", "doubts", "description", "toolchain"})
    __table_args__ = (
        UniqueConstraint("version_id", "build_job_id", "measure_job_id"),
        Index("ix_engines_version_id_gpu_precision", "version_id", "gpu", "precision"),
        Index("ix_engines_digest", "digest"),
        # For whether a build or a job can go.
        Index("ix_engines_build_id", "build_id"),
        Index("ix_engines_build_job_id", "build_job_id"),
        Index("ix_engines_measure_job_id", "measure_job_id"),
    )
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    runtime: Mapped[str] = mapped_column(String(20))
    runtime_version: Mapped[str] = mapped_column(String(40))
    gpu: Mapped[str] = mapped_column(String(40))
    precision: Mapped[str] = mapped_column(PrecisionName)
    prune: Mapped[str | None] = mapped_column(String(40))  #: ``2:4``, ``l1:0.5``
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"))
    accuracy: Mapped[dict[str, Any]] = mapped_column(Json)
    metrics: Mapped[dict[str, Any] | None] = mapped_column(Json)
    metrics_reason: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(10), server_default=EngineState.READY)
    doubts: Mapped[list[str] | None] = mapped_column(Json)  #: why it is doubtful, in words
    #: A ``farm.reports.description.Description``.
    description: Mapped[dict[str, Any]] = mapped_column("io", Json)
    toolchain: Mapped[dict[str, str]] = mapped_column(Json)
    build_id: Mapped[str] = mapped_column(ForeignKey("builds.id"))
    build_job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    measure_job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class EnginePull(Base):
    """When an engine was last pulled, to the hour; none until it first is."""

    __tablename__ = "engine_pulls"
    engine_id: Mapped[str] = mapped_column(ForeignKey("engines.id"), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)


class RetentionRow(Base):
    """What is kept of a model, instead of the farm's default."""

    __tablename__ = "retentions"
    no_blobs = frozenset({"rule"})
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    rule: Mapped[dict[str, Any]] = mapped_column(Json)  #: a ``farm.specs.retention.Retention``
    who: Mapped[str] = mapped_column(String(400))
    at: Mapped[datetime] = mapped_column(Instant)


#: A sha512 with its prefix: OCI clients may name by it what they push.
_LONGEST_DIGEST = 135


class OciDocument(Base):
    """A JSON document as OCI clients get it: a manifest, or a small blob of one. Never changed."""

    __tablename__ = "oci_documents"
    no_blobs = frozenset({"digest", "body"})
    digest: Mapped[str] = mapped_column(String(_LONGEST_DIGEST), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(255))
    body: Mapped[bytes] = mapped_column(LargeBinary)


class OciManifest(Base):
    """A manifest of a repository: pushed, or what the farm made of an engine or a version once."""

    __tablename__ = "oci_manifests"
    blobs = {"needs": Names(holds=Holds.PUSHED)}
    no_blobs = frozenset({"digest", "subject"})
    __table_args__ = (
        Index("ix_oci_manifests_repository_subject", "repository", "subject"),
        Index("ix_oci_manifests_engine_id", "engine_id"),
        Index("ix_oci_manifests_version_id", "version_id"),
    )
    repository: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("oci_documents.digest"), primary_key=True)
    #: The manifest that it is about.
    subject: Mapped[str | None] = mapped_column(String(_LONGEST_DIGEST))
    #: Digests of everything in the store that a pushed one needs.
    needs: Mapped[list[str]] = mapped_column(Json)
    #: What the farm made it of; both None if it was pushed.
    engine_id: Mapped[str | None] = mapped_column(ForeignKey("engines.id", ondelete="CASCADE"))
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class OciTag(Base):
    """A tag that was pushed."""

    __tablename__ = "oci_tags"
    no_blobs = frozenset({"digest"})
    __table_args__ = (
        ForeignKeyConstraint(
            ["repository", "digest"], ["oci_manifests.repository", "oci_manifests.digest"]
        ),
    )
    repository: Mapped[str] = mapped_column(String(255), primary_key=True)
    tag: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(String(_LONGEST_DIGEST))
    #: Whether a key with the scope admin wrote it: only such a key moves it then.
    is_admins: Mapped[bool] = mapped_column(default=False, server_default=false())


class OciBlob(Base):
    """A blob that was pushed to a repository, or mounted into it; kept while a manifest needs it."""

    __tablename__ = "oci_blobs"
    no_blobs = frozenset({"digest"})
    __table_args__ = (Index("ix_oci_blobs_digest", "digest"),)
    repository: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(
        ForeignKey("artifacts.digest", ondelete="CASCADE"), primary_key=True
    )


class OciDigest(Base):
    """Another digest of a blob, by which a client pushed it: its sha512. The store knows its sha256."""

    __tablename__ = "oci_digests"
    no_blobs = frozenset({"digest", "content"})
    __table_args__ = (Index("ix_oci_digests_content", "content"),)
    digest: Mapped[str] = mapped_column(String(_LONGEST_DIGEST), primary_key=True)
    content: Mapped[str] = mapped_column(ForeignKey("artifacts.digest", ondelete="CASCADE"))


class Event(Base):
    """Every change of state, every phase and every piece of log, in order; a log's text is in ``JobLog``."""

    __tablename__ = "events"
    no_blobs = frozenset({"data"})
    __table_args__ = (
        # An event is of a build or of a job.
        *(
            Index(
                f"ix_events_{column}_id",
                column,
                "id",
                sqlite_where=text(f"events.{column} IS NOT NULL"),
                postgresql_where=text(f"events.{column} IS NOT NULL"),
            )
            for column in ("build_id", "job_id")
        ),
    )
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    build_id: Mapped[str | None] = mapped_column(ForeignKey("builds.id"))
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[str] = mapped_column(String(10))
    state: Mapped[str | None] = mapped_column(String(20))
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    at: Mapped[datetime] = mapped_column(Instant, default=now)


class JobLog(Base):
    """What a job printed, keyed by the event with its time and attempt; read only to be shown."""

    __tablename__ = "job_logs"
    event_id: Mapped[int] = mapped_column(
        BigId, ForeignKey("events.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    text: Mapped[str] = mapped_column(Text)


class JobSampleRow(Base):
    """What an attempt at a job used over its time, in columns as ``farm.schemas.samples.AttemptSamples``."""

    __tablename__ = "job_samples"
    no_blobs = frozenset({"series"})
    __table_args__ = (Index("ix_job_samples_began_at", "began_at"),)
    job_id: Mapped[int] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    began_at: Mapped[datetime] = mapped_column(Instant)
    series: Mapped[dict[str, list[Any]]] = mapped_column(Json)


class TimingCache(Base):
    """TensorRT's timing cache for one GPU and toolchain; only the newest revision."""

    __tablename__ = "timing_caches"
    blobs = {"digest": Names(holds=Holds.TIMING_CACHE)}
    gpu: Mapped[str] = mapped_column(String(100), primary_key=True)
    compute_capability: Mapped[str] = mapped_column(String(20), primary_key=True)
    tensorrt: Mapped[str] = mapped_column(String(40), primary_key=True)
    cuda: Mapped[str] = mapped_column(String(10), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"))
    revision: Mapped[int]
    entries: Mapped[int | None]  #: None if this TensorRT doesn't report it
    builds: Mapped[int]  #: builds that added to it, or found every entry
    hits: Mapped[int]  #: of these, the builds that found every entry
    updated_at: Mapped[datetime] = mapped_column(Instant)


class Plugin(Base):
    """A plugin library that builds may load: one of the farm's keys signed it."""

    __tablename__ = "plugins"
    blobs = {"digest": Names(holds=Holds.PLUGIN)}
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    signature: Mapped[str] = mapped_column(String(100))
    key: Mapped[str] = mapped_column(String(50))
    created_at: Mapped[datetime] = mapped_column(Instant)


class SigningKeyRow(Base):
    """A public key that the farm signs with, or has signed with. Never deleted."""

    __tablename__ = "signing_keys"
    no_blobs = frozenset({"id"})
    id: Mapped[str] = mapped_column(
        String(64), primary_key=True
    )  #: ``farm.signing.keys.PublicKey``
    pem: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)  #: when it was called compromised


class SigningVoucher(Base):
    """A signed statement of one of the farm's keys that another one is the farm's too."""

    __tablename__ = "signing_vouchers"
    no_blobs = frozenset({"key_id", "by_id"})
    key_id: Mapped[str] = mapped_column(ForeignKey("signing_keys.id"), primary_key=True)
    by_id: Mapped[str] = mapped_column(ForeignKey("signing_keys.id"), primary_key=True)
    bundle: Mapped[str] = mapped_column(Text)


class EngineSignature(Base):
    """The signatures of an engine; made once, and gone with the engine."""

    __tablename__ = "engine_signatures"
    no_blobs = frozenset({"key_id"})
    engine_id: Mapped[str] = mapped_column(
        ForeignKey("engines.id", ondelete="CASCADE"), primary_key=True
    )
    key_id: Mapped[str] = mapped_column(ForeignKey("signing_keys.id"), index=True)
    engine: Mapped[str] = mapped_column(Text)  #: the bundle of its ``statements.ENGINE``
    model: Mapped[str] = mapped_column(Text)  #: the bundle of its ``statements.MODEL``
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class AliasStatement(Base):
    """The signature of an alias's latest move, made before the move."""

    __tablename__ = "alias_statements"
    no_blobs = frozenset({"key_id"})
    __table_args__ = (
        ForeignKeyConstraint(["model_id", "name"], ["aliases.model_id", "aliases.name"]),
    )
    model_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    revision: Mapped[int]
    key_id: Mapped[str] = mapped_column(ForeignKey("signing_keys.id"), index=True)
    bundle: Mapped[str] = mapped_column(Text)  #: of its ``farm.signing.moves.ALIAS``


class ApiKey(Base):
    """An API key, of which only the digest is stored. Never deleted: the audit refers to it.

    Or whom an issuer's tokens are for: whatever is a key's, is theirs.
    """

    __tablename__ = "api_keys"
    no_blobs = frozenset({"digest", "scopes", "limits"})
    id: Mapped[str] = mapped_column(
        String(10), primary_key=True
    )  #: the part of the key that isn't secret
    name: Mapped[str] = mapped_column(String(100))
    #: sha256 of the whole key; of a subject, of its issuer and its name there.
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    issuer: Mapped[str | None] = mapped_column(String(400))  #: None of a key
    subject: Mapped[str | None] = mapped_column(String(255))
    scopes: Mapped[list[str]] = mapped_column(Json)  #: none of a subject: its tokens say
    #: A ``farm.specs.limits.Limits`` without what isn't set; None if nothing is.
    limits: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(Instant)
    created_by: Mapped[str] = mapped_column(String(400))
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_at: Mapped[datetime | None] = mapped_column(Instant)  #: to the minute
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)


class Login(Base):
    """What a browser has instead of a key, or a link by which it gets one; only the digest is stored."""

    __tablename__ = "logins"
    no_blobs = frozenset({"digest", "scopes"})
    id: Mapped[str] = mapped_column(String(10), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    is_link: Mapped[bool]  #: opens one page, once, which then has a login
    scopes: Mapped[list[str] | None] = mapped_column(Json)  #: of the token; None of a key's
    until: Mapped[datetime | None] = mapped_column(Instant)  #: when the token expires
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


class JoinToken(Base):
    """What a machine joins the farm by, of which only the digest is stored. Never deleted, as keys aren't."""

    __tablename__ = "join_tokens"
    no_blobs = frozenset({"digest"})
    id: Mapped[str] = mapped_column(String(10), primary_key=True)  #: isn't secret
    digest: Mapped[str] = mapped_column(String(64))
    uses: Mapped[int]  #: how often it may be used
    used: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(Instant)
    created_by: Mapped[str] = mapped_column(String(400))
    expires_at: Mapped[datetime] = mapped_column(Instant)
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)


class AuditRow(Base):
    """A change that somebody made. The database refuses to change or delete one."""

    __tablename__ = "audit"
    no_blobs = frozenset({"details"})  # it says what was; nothing is kept for it
    __table_args__ = (Index("ix_audit_key_id_id", "key_id", "id"),)
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    key_id: Mapped[str | None] = mapped_column(String(10))  #: None if no key was required
    who: Mapped[str] = mapped_column(String(400))
    label: Mapped[str] = mapped_column(String(100))  #: what the client calls itself
    address: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(40))
    object: Mapped[str] = mapped_column(String(200))
    details: Mapped[dict[str, Any] | None] = mapped_column(Json)


class Worker(Base):
    """A registered worker."""

    __tablename__ = "workers"
    no_blobs = frozenset(
        {"tags", "queues", "unread", "runtimes", "toolchain", "sandbox", "gpu_load"}
    )
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    #: Whose the name is: the id of the home that it works in. None of older farms' workers.
    holder: Mapped[str | None] = mapped_column(String(36))
    gpu: Mapped[str | None] = mapped_column(String(100))
    gpu_uuid: Mapped[str | None] = mapped_column(String(100))
    tags: Mapped[list[str]] = mapped_column(Json)
    slots: Mapped[int] = mapped_column(default=1, server_default="1")  #: jobs it runs at once
    queues: Mapped[list[str]] = mapped_column(Json)
    unread: Mapped[list[str] | None] = mapped_column(
        Json
    )  #: queues that it should read and doesn't
    runtimes: Mapped[dict[str, str]] = mapped_column(Json)
    toolchain: Mapped[dict[str, str]] = mapped_column(Json)
    sandbox: Mapped[dict[str, Any]] = mapped_column(Json, server_default="{}")
    gpu_load: Mapped[dict[str, float] | None] = mapped_column(Json)  #: a ``machine.load.GpuLoad``
    started_at: Mapped[datetime] = mapped_column(Instant)
    last_seen_at: Mapped[datetime] = mapped_column(Instant)
    left_at: Mapped[datetime | None] = mapped_column(Instant)


class Tally(Base):
    """A part of a counter, or of a histogram's bucket: `farm.database.tallies`. It only grows."""

    __tablename__ = "tallies"
    metric: Mapped[str] = mapped_column(String(60), primary_key=True)
    labels: Mapped[str] = mapped_column(String(200), primary_key=True)  #: values, a JSON array
    le: Mapped[str] = mapped_column(
        String(20), primary_key=True
    )  #: the bucket; empty for a counter
    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(BigInteger)
    total: Mapped[float]  #: of the values observed


class SchemaFloor(Base):
    """The oldest revision whose farms still work with this schema: `farm.database.migrate`. One row."""

    __tablename__ = "schema_floor"
    revision: Mapped[str] = mapped_column(String(4), primary_key=True)
