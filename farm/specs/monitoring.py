"""What ``/metrics`` tells: every metric of the farm, its labels and its buckets.

Labels take their values from short lists, from the fleet's queues and from its workers; never from a model's
name, a title or an id.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_MINUTE, _HOUR = 60.0, 3600.0


class Form(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Where a metric's value comes from."""

    FARM = "farm"  #: the database: every API process tells the same
    PROCESS = "process"  #: this API process alone: it begins at zero when it starts


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Parameters:
        text: what it means, in a line.
        labels: their names, in order.
        buckets: of a histogram, the upper bounds; ``+Inf`` isn't among them.
    """

    name: str
    form: Form
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    source: Source = Source.FARM

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its series, as queries use them."""
        if self.form is Form.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.name,)


#: From a second to a day: a queue may be empty, or have no worker for a night.
_WAITS = (
    *(1.0, 5.0, 15.0, 30.0, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE),
    *(_HOUR, 2 * _HOUR, 6 * _HOUR, 24 * _HOUR),
)
#: From a small model's cast to a build at the time limit of a stage.
_RUNS = (
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE),
    *(20 * _MINUTE, 40 * _MINUTE, _HOUR, 2 * _HOUR, 4 * _HOUR),
)
_ANSWERS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_QUEUE = ("queue", "runtime", "gpu")

# Now, in the database

DATABASE_UP = Metric(
    name="farm_database_up",
    form=Form.GAUGE,
    text="Whether the database answers: 1 or 0. While it is 0, all that comes from it is absent.",
    source=Source.PROCESS,
)
INFO = Metric(
    name="farm_info",
    form=Form.GAUGE,
    text="Always 1; the label is the version of the farm.",
    labels=("version",),
    source=Source.PROCESS,
)
BUILDS = Metric(
    name="farm_builds",
    form=Form.GAUGE,
    text="Builds that haven't ended, by state.",
    labels=("state",),
)
JOBS = Metric(
    name="farm_jobs",
    form=Form.GAUGE,
    text="Jobs that haven't ended, by kind and state.",
    labels=("kind", "state"),
)
QUEUED_JOBS = Metric(
    name="farm_queued_jobs",
    form=Form.GAUGE,
    text="Jobs that could run now and wait for a worker, by queue.",
    labels=_QUEUE,
)
RUNNING_JOBS = Metric(
    name="farm_running_jobs",
    form=Form.GAUGE,
    text="Jobs that a worker runs, by queue.",
    labels=_QUEUE,
)
QUEUE_AGE = Metric(
    name="farm_queue_age_seconds",
    form=Form.GAUGE,
    text="How long the queue's oldest job has been ready to run; 0 if the queue is empty.",
    labels=_QUEUE,
)
QUEUE_WORKERS = Metric(
    name="farm_queue_workers",
    form=Form.GAUGE,
    text="Online workers that read the queue.",
    labels=_QUEUE,
)
IDLE_WORKERS = Metric(
    name="farm_queue_idle_workers",
    form=Form.GAUGE,
    text="Online workers that read the queue and run nothing, of this queue or another.",
    labels=_QUEUE,
)
WORKERS = Metric(
    name="farm_workers",
    form=Form.GAUGE,
    text="Workers seen within a week, by state: online; deaf, online without reading its queues; "
    "silent, gone without a word; left, ended in order.",
    labels=("state",),
)
ENGINES = Metric(
    name="farm_engines",
    form=Form.GAUGE,
    text="Engines in the registry, by GPU tag and precision.",
    labels=("gpu", "precision"),
)
STORE_BYTES = Metric(
    name="farm_store_bytes",
    form=Form.GAUGE,
    text="Size of the files in the store, by kind, as of farm_store_counted_timestamp_seconds.",
    labels=("kind",),
)
STORE_FILES = Metric(
    name="farm_store_files",
    form=Form.GAUGE,
    text="Files in the store, by kind, as of farm_store_counted_timestamp_seconds.",
    labels=("kind",),
)
STORE_COUNTED = Metric(
    name="farm_store_counted_timestamp_seconds",
    form=Form.GAUGE,
    text="When the store's files were last counted, in Unix time.",
)
STORE_FREE = Metric(
    name="farm_store_free_bytes",
    form=Form.GAUGE,
    text="Free space for the store; absent if that is unlimited or the store can't be read.",
)

# A worker's GPU, as of its last heartbeat

_GPU = ("worker", "gpu")
GPU_UTILIZATION = Metric(
    name="farm_gpu_utilization_ratio",
    form=Form.GAUGE,
    text="Share of time that the GPU was busy when its worker last looked, 0 to 1.",
    labels=_GPU,
)
GPU_MEMORY_USED = Metric(
    name="farm_gpu_memory_used_bytes",
    form=Form.GAUGE,
    text="GPU memory in use.",
    labels=_GPU,
)
GPU_MEMORY = Metric(
    name="farm_gpu_memory_bytes", form=Form.GAUGE, text="GPU memory there is.", labels=_GPU
)
GPU_POWER = Metric(
    name="farm_gpu_power_watts", form=Form.GAUGE, text="Power that the GPU draws.", labels=_GPU
)
GPU_TEMPERATURE = Metric(
    name="farm_gpu_temperature_celsius",
    form=Form.GAUGE,
    text="Temperature of the GPU.",
    labels=_GPU,
)

# Since the farm began to count: tallied in the transaction of what they count

BUILDS_SUBMITTED = Metric(
    name="farm_builds_submitted_total", form=Form.COUNTER, text="Builds submitted."
)
BUILDS_ENDED = Metric(
    name="farm_builds_ended_total",
    form=Form.COUNTER,
    text="Builds ended, by state; a retried build ends again.",
    labels=("state",),
)
BUILD_START_DELAY = Metric(
    name="farm_build_start_delay_seconds",
    form=Form.HISTOGRAM,
    text="From a build's submission to the start of its first job. Builds that run nothing aren't in it.",
    buckets=_WAITS,
)
BUILD_DURATION = Metric(
    name="farm_build_duration_seconds",
    form=Form.HISTOGRAM,
    text="From a build's submission to its first end, by state.",
    labels=("state",),
    buckets=_WAITS,
)
JOBS_WANTED = Metric(
    name="farm_jobs_wanted_total",
    form=Form.COUNTER,
    text="Jobs that builds and inferences wanted, by kind and by how they came by them: ran, a new job; "
    "joined, another's on its way; cached, a result that was there.",
    labels=("kind", "reuse"),
)
JOB_ATTEMPTS = Metric(
    name="farm_job_attempts_total",
    form=Form.COUNTER,
    text="Attempts that workers began, by kind.",
    labels=("kind",),
)
JOB_QUEUE_WAIT = Metric(
    name="farm_job_queue_seconds",
    form=Form.HISTOGRAM,
    text="From when a job could run to when a worker began it, by queue; an attempt each.",
    labels=("queue",),
    buckets=_WAITS,
)
JOB_DURATION = Metric(
    name="farm_job_duration_seconds",
    form=Form.HISTOGRAM,
    text="From the start of a job's last attempt to its end, by kind and state.",
    labels=("kind", "state"),
    buckets=_RUNS,
)
JOBS_ENDED = Metric(
    name="farm_jobs_ended_total",
    form=Form.COUNTER,
    text="Jobs ended, by kind, state and error code (empty unless failed).",
    labels=("kind", "state", "code"),
)
JOBS_REQUEUED = Metric(
    name="farm_jobs_requeued_total",
    form=Form.COUNTER,
    text="Attempts that ended with the job back in its queue, by kind and reason.",
    labels=("kind", "reason"),
)
LEASES_LOST = Metric(
    name="farm_leases_lost_total",
    form=Form.COUNTER,
    text="Jobs taken back from a worker that didn't renew its lease, by kind.",
    labels=("kind",),
)

# This API process

HTTP_REQUESTS = Metric(
    name="farm_http_requests_total",
    form=Form.COUNTER,
    text="Requests answered, by method, route and status. The route is its template, or unrouted.",
    labels=("method", "route", "status"),
    source=Source.PROCESS,
)
HTTP_DURATION = Metric(
    name="farm_http_request_duration_seconds",
    form=Form.HISTOGRAM,
    text="From a request's arrival to the start of its answer, uploads included, by method and route.",
    labels=("method", "route"),
    buckets=_ANSWERS,
    source=Source.PROCESS,
)

QUOTA_REFUSALS = Metric(
    name="farm_quota_refusals_total",
    form=Form.COUNTER,
    text="Requests refused by a limit of their key, by the limit: builds, gpu_minutes_day, "
    "gpu_minutes_month, stored_bytes or requests_per_minute.",
    labels=("quota",),
    source=Source.PROCESS,
)

METRICS: tuple[Metric, ...] = tuple(one for one in vars().copy().values() if type(one) is Metric)
TALLIED: tuple[Metric, ...] = tuple(
    one for one in METRICS if one.form is not Form.GAUGE and one.source is Source.FARM
)
